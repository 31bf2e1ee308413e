"""`sample`: continues prompts with the policies of runs or of HF folders."""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from absl import flags
from etils import epath

from dpo_jax.cli import common
from dpo_jax.config import stated
from dpo_jax.errors import ConfigError, WriteError, collected


def define(values: flags.FlagValues) -> None:
    """Adds the verb's flags."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    whole = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    text("workdir", "", "run folders, separated by commas")
    text("model", "", "HF folders or hub ids, separated by commas")
    text("prompts", "", "a JSONL file of rows with `prompt`; default: data.eval")
    text("out", "", "a JSONL file to write: a line a continuation, its ids and logps")
    whole("limit", 0, "prompts to take, from the first; 0 = all")
    whole("n", 1, "continuations of each prompt")
    whole("max_new_tokens", 128, "tokens of a continuation, at most")
    number("temperature", 1.0, "0 = greedy")
    whole("top_k", 0, "keep the k likeliest tokens; 0 = all")
    number("top_p", 1.0, "keep the fewest likeliest tokens of this mass; 1 = all")
    number("min_p", 0.0, "keep tokens this times as likely as the likeliest; 0 = all")
    whole("seed", 0, "of the noise")
    whole("batch", 32, "rows that run together, at most; at least one a shard")
    what = "keep the continuation that reward.name likes best, of each prompt"
    flags.DEFINE_bool("best", False, what, flag_values=values)
    common.define_own(values, "rewards")
    flags.DEFINE_multi_string(
        "stop", [], "ends a continuation; may be repeated", flag_values=values
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    values = common.parse(arguments, config=True, define=define)
    config = values["config"].value
    runs, folders = (_names(values[name].value) for name in ("workdir", "model"))
    names = [*runs, *folders]
    if not names:
        raise ConfigError("nothing to sample: give --workdir=RUN or --model=FOLDER")
    if len(set(names)) < len(names):
        raise ConfigError("--workdir and --model name something twice; name it once")
    common.setup_logging()
    from dpo_jax.sharding.mesh import make_mesh
    from dpo_jax.wiring import choosing, generation
    from dpo_jax.wiring.reading import request_of, sources_of
    from dpo_jax.wiring.restoring import run_config

    request = generation.SampleRequest(
        **{name: values[name].value for name in generation.SampleRequest._fields}
    )
    check(request)
    asker = _asker(config, values) if values["best"].value else None
    policies = [generation.Policy(name, run_config(name), name) for name in runs]
    for name in folders:
        whole = {"model.adapter": "", "lora.rank": 0}
        own = stated(config, {"model.path": name, "model.preset": "", **whole})
        policies.append(generation.Policy(name, own, None))
    common.setup_jax(config, debug=values["debug"].value)
    found = sources_of(request_of(config), "eval", None) if config.data.eval else {}
    held_out = [each.source for each in found.values()]
    asked = generation.read_prompts(request, held_out)
    mesh = make_mesh(**config.mesh)
    import jax

    if asker is None:
        answers = generation.sample(asked, request, policies, mesh)
    else:
        with jax.set_mesh(mesh):
            score = choosing.of_policies(
                policies,
                asked,
                request,
                mesh,
                given=config.reward,
                model=config.model,
                length=config.data.max_tokens,
            )
            answers = generation.sample(asked, request, policies, mesh)
            answers = choosing.best(answers, asked.columns, asker, score)

    if jax.process_index() == 0:
        if values["out"].value:
            write_rows(values["out"].value, rows(answers, request.temperature))
        sys.stdout.write(side_by_side(answers))
    return 0


def check(request: Any) -> None:
    """Refuses numbers that make no sense, all together.

    Raises:
      ConfigError: naming the flags.
    """
    from dpo_jax.sampling import pick

    lowest = {"n": 1, "max_new_tokens": 1, "batch": 1, "limit": 0, "seed": 0}
    values = request._asdict()
    with collected(ConfigError) as complaints:
        complaints += [
            f"--{name}={values[name]} must be ≥ {least}"
            for name, least in lowest.items()
            if values[name] < least
        ]
        if not all(request.stop):
            complaints.append("--stop='' is empty; leave it out")
        warps = request.temperature, request.top_k, request.top_p, request.min_p
        complaints += [f"--{fault}" for fault in pick.faults(*warps)]


def _asker(config: Any, values: common.Flags) -> Any:
    """Builds what judges the continuations of `--best`.

    Raises:
      ConfigError: if there is nothing to choose from, or by.
    """
    from dpo_jax.cli.own_functions import rewards_of
    from dpo_jax.wiring import rewarding

    table = rewards_of(values["rewards"].value)
    with collected(ConfigError) as complaints:
        complaints += rewarding.faults(config.reward, table)
        if config.reward.standardize:
            complaints.append("reward.standardize is of training; leave it out")
        if not rewarding.names_of(config.reward):
            complaints.append("--best needs a reward; set --config.reward.name or path")
        if values["n"].value < 2:
            complaints.append("--best chooses among several; set --n > 1")
    rewards = rewarding.chosen(config.reward, table)
    seconds = config.reward.timeout_seconds
    return rewarding.make_asker(rewards, name="best", seconds=seconds)


def _names(listed: str) -> list[str]:
    return [name for name in listed.split(",") if name]


def rows(answers: Any, temperature: float) -> Iterator[dict[str, Any]]:
    """Yields what the JSONL file holds: one object a continuation."""
    for index, prompt in enumerate(answers.prompts):
        for name, completions in answers.completions.items():
            for completion in completions[index]:
                said = completion._asdict()
                if completion.reward is None:
                    del said["reward"]
                yield {
                    "policy": name,
                    "temperature": temperature,
                    "index": index,
                    "prompt": prompt,
                    "prompt_ids": answers.prompt_ids[name][index],
                    **said,
                    "completion_ids": completion.tokens,  # a row of data, too
                }


def write_rows(path: str, objects: Iterator[dict[str, Any]]) -> None:
    """Writes a JSONL file.

    Raises:
      WriteError: if it cannot be written.
    """
    try:
        with epath.Path(path).open("w", encoding="utf-8") as file:
            for row in objects:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise WriteError(f"--out={path!r} cannot be written: {error}") from error


def side_by_side(answers: Any) -> str:
    """Renders each prompt with what every policy made of it, for a terminal."""
    width = max(map(len, answers.completions))
    lines, judged = [], False
    for index, prompt in enumerate(answers.prompts):
        shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        lines.append(f"[{index}] {shown!r}")
        samples = [of[index] for of in answers.completions.values()]
        for together in zip_longest(*samples):
            for name, one in zip(answers.completions, together, strict=True):
                if one is None:
                    continue
                judged = judged or one.reward is not None
                reward = "" if one.reward is None else f"{one.reward:9.3f}  "
                logp = f"{sum(one.logps):9.2f}"
                lines.append(f"  {name:<{width}}  {logp}  {reward}{one.text!r}")
    reward = f"{'reward':>9}  " * judged
    head = f"  {'policy':<{width}}  {'log-prob':>9}  {reward}continuation"
    return "\n".join([head, *lines]) + "\n"
