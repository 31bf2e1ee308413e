"""What a run with adapters cannot be asked for."""

from dpo_jax import config as config_lib
from dpo_jax.schema import Section


def faults(given: Section, model: Section, ref: Section) -> list[str]:
    """Complains of keys of adapters that say nothing, or cannot be.

    Args:
      given: `config.lora`.
      model: `config.model`.
      ref: `config.ref`.
    """
    adapter = f"ref.adapter={ref['adapter']!r}"
    if not (given["rank"] or model["adapter"]):
        by = "lora.rank=0 without model.adapter"
        complaints = config_lib.unused_options("lora", given, ("rank",), by)
        return complaints + [f"{adapter} is not used by {by}"] * bool(ref["adapter"])
    which = f"lora.rank={given['rank']}"
    if model["adapter"]:
        which = f"model.adapter={model['adapter']!r}"
    complaints = []
    if model["preset"]:
        complaints.append(
            f"{which} and model.preset={model['preset']!r}: an adapter needs weights "
            "that others can find; set model.path"
        )
    if ref["adapter"] and (ref["path"] or ref["mode"] == "none"):
        complaints.append(
            f"{adapter} lies beside the policy's base; leave it, or ref.path="
            f"{ref['path']!r} and ref.mode={ref['mode']!r}, at its default"
        )
    if ref["adapter"] and ref["sync_every_steps"]:
        complaints.append(
            f"{adapter} stays; set ref.sync_every_steps=0, or leave it out"
        )
    if ref["path"] and ref["sync_every_steps"]:
        complaints.append(
            f"ref.path={ref['path']!r} cannot follow adapters; set "
            "ref.sync_every_steps=0, or leave ref.path out"
        )
    own = ref["dtype"] not in ("", model["dtype"])
    if own and not ref["path"] and ref["mode"] != "none":
        complaints.append(
            f"ref.dtype={ref['dtype']!r}: the reference stands on the policy's base, "
            f"which is held in model.dtype={model['dtype']!r}; leave ref.dtype out"
        )
    return complaints
