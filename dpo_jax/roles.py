"""Which parameters the policy and the reference have, of what moves and what stands.

Where adapters are trained (LoRA), the train state holds them and what is trained in
full beside them (a score, a critic); the weights on which they act are
`frozen['base']`, and the reference acts on the same. This file knows nothing of what is
computed: it joins trees.
"""

from flax import traverse_util

from dpo_jax.models import scalar
from dpo_jax.types import Frozen, Params, TrainState

LORA = "lora"  # in a tree of parameters: adapters, as `layers` has the kernels


def whole(own: Params, frozen: Frozen) -> Params:
    """Joins what a role has of its own with the base that it stands on.

    Args:
      own: a whole tree, which stands alone; or `lora` and trees that take the place of
        the base's; {} = the base itself.
      frozen: with `base` where adapters are trained.

    Returns:
      The tree of `models.decoder`, with `a` and `b` of an adapter beside its kernel.
    """
    if "base" not in frozen or "layers" in own:
        return own
    base = frozen["base"]
    flat = traverse_util.flatten_dict(base["layers"])
    flat = {**flat, **traverse_util.flatten_dict(own.get(LORA, {}))}
    others = {name: tree for name, tree in own.items() if name != LORA}
    return {**base, **others, "layers": traverse_util.unflatten_dict(flat)}


def policy(params: Params, frozen: Frozen) -> Params:
    """Returns the policy's parameters, without a critic beside it.

    Args:
      params: of the train state.
      frozen: what does not change.
    """
    return scalar.policy_of(whole(params, frozen))


def reference(state: TrainState, frozen: Frozen) -> Params:
    """Returns the reference's: of the state if it moves, else of what is frozen."""
    if state.ref is not None:
        return whole(state.ref, frozen)
    assert {"ref", "base"} & frozen.keys(), "there is no reference on the device"
    return whole(frozen.get("ref", {}), frozen)
