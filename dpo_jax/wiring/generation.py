"""Whose policies continue which prompts, and what each of them says."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax.data import columns, kinds, prepare, sources, tokenize
from dpo_jax.data.columns import Text
from dpo_jax.data.encode import encode_prompt
from dpo_jax.data.kinds import RawRow
from dpo_jax.data.prepare import Questions, Source, questions_of
from dpo_jax.data.sources.files import BadRow
from dpo_jax.errors import ConfigError, DataError, ModelError
from dpo_jax.files import read_json
from dpo_jax.models import decode, files, hf
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sampling import batches, pick, stops
from dpo_jax.sampling.batches import Sampler
from dpo_jax.sampling.rollout import Decoding
from dpo_jax.schema import Config, Section
from dpo_jax.types import Params
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import restoring, weights

LONGEST = 16_384  # tokens of a prompt, for models that name fewer positions


class SampleRequest(NamedTuple):
    """How prompts are to be continued.

    Attributes:
      prompts: a JSONL file of rows with `prompt`; '' = those of data.eval.
      limit: prompts that are taken, from the first; 0 = all.
      n: continuations of each.
      max_new_tokens: of each.
      temperature: 0 = greedy.
      top_k: 0 = off.
      top_p: 1 = off.
      min_p: 0 = off.
      stop: strings that end a continuation, special tokens among them.
      seed: of the noise.
      batch: rows that run together, at most; at least one a shard.
    """

    prompts: str
    limit: int
    n: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    stop: Sequence[str]
    seed: int
    batch: int


class Policy(NamedTuple):
    """A model that is sampled.

    Attributes:
      name: as the user gave it.
      config: whose model, tokenizer and chat template it has.
      workdir: the run whose newest checkpoint it is; None = the weights of model.path.
    """

    name: str
    config: Config
    workdir: os.PathLike | str | None

    def tokenizer(self) -> Any:
        """Loads the tokenizer; see `data_wiring.load_tokenizer`."""
        config = self.config
        return data_wiring.load_tokenizer(
            config.tokenizer.path, config.model, config.data.train
        )

    def encoded(self, asked: Questions, tokenizer: Any) -> list[np.ndarray]:
        """Encodes prompts as this policy reads them; see `encode`."""
        data, seconds = self.config.data, self.config.distributed.timeout_seconds
        now = data_wiring.launch_time(data, tokenizer, seconds=seconds, whose=self.name)
        template = tokenize.read_chat_template(data.chat_template, tokenizer)
        return encode(tokenizer, asked, join=data.join, template=template, now=now)


class Completion(NamedTuple):
    """One continuation of a prompt.

    Attributes:
      text: special tokens and the stop string left out.
      tokens: ids, the one that ended it included.
      logps: nats, of each token under the distribution that it was drawn from; greedy
        ones under the model itself.
      ended: by a stop token or string, not by the limit.
      sample: its number among the continuations of its prompt.
      reward: None where none was asked for.
    """

    text: str
    tokens: list[int]
    logps: list[float]
    ended: bool
    sample: int = 0
    reward: float | None = None


class Answers(NamedTuple):
    """What the policies made of the prompts.

    Attributes:
      prompts: texts or chats.
      prompt_ids: of each of them, by name of the policy.
      completions: by name, n completions of each prompt, or the best alone.
    """

    prompts: list[Text]
    prompt_ids: dict[str, list[list[int]]]
    completions: dict[str, list[list[Completion]]]


def sample(
    asked: Questions,
    request: SampleRequest,
    policies: Sequence[Policy],
    mesh: Mesh,
) -> Answers:
    """Continues the same prompts with each policy, one after the other.

    Args:
      asked: from `read_prompts`.
      request: what is asked for.
      policies: with names of their own.
      mesh: that all run on.

    Raises:
      UserError: what a user can mend, before anything compiles.
    """
    with jax.set_mesh(mesh):
        each = {of.name: _answers(of, asked, request, mesh) for of in policies}
    ids = {name: [i.tolist() for i in encoded] for name, (encoded, _) in each.items()}
    return Answers(
        list(asked.prompts), ids, {name: of for name, (_, of) in each.items()}
    )


def read_prompts(request: SampleRequest, held_out: Sequence[Source]) -> Questions:
    """Reads prompts of a file, or those of data.eval.

    Args:
      request: names the file.
      held_out: sources of data.eval.

    Raises:
      DataError: if a row has no usable prompt.
      ConfigError: if there is neither.
    """
    if request.prompts:
        asked = _prompts_of(request.prompts)
    elif held_out:
        asked = prepare.questions(held_out)
    else:
        raise ConfigError("nothing to continue: give --prompts=FILE.jsonl or data.eval")
    return asked.first(request.limit or len(asked.prompts))


def _prompts_of(file: str) -> Questions:
    """Reads the column `prompt` of a file, with `system` and `tools` beside a chat."""
    rows, faults = [], []
    (part,) = sources.parts_of(file, "--prompts")
    origin = sources.find(part, "eval")
    for where, fields in sources.read(origin, sources.Request("eval")):
        try:
            if isinstance(fields, BadRow):
                raise fields
            prompt = columns.text("prompt", columns.value_of(fields, "prompt"))
            if not prompt:
                raise BadRow("empty", "column 'prompt' is empty")
            row = RawRow(prompt, (), where=where)
            rows.append((kinds.told(row, fields), fields))
        except BadRow as bad:
            faults.append(f"{where}: {bad.detail}")
    if faults or not rows:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        what = " · ".join(faults[:3]) + more or "the file has no rows"
        raise DataError(f"the prompts of {file!r}: {what}")
    return questions_of(rows)


def _answers(
    policy: Policy, asked: Questions, request: SampleRequest, mesh: Mesh
) -> tuple[list[np.ndarray], list[list[Completion]]]:
    """Loads a policy; returns the ids of the prompts, and what it continues them by."""
    tokenizer, seed = policy.tokenizer(), policy.config.seed
    encoded = policy.encoded(asked, tokenizer)
    find = _find_folder if policy.workdir is None else model_wiring.find_model
    model = model_wiring.make_policy(policy.config, tokenizer, find)
    longest, new = max(map(len, encoded)), request.max_new_tokens
    check_texts(policy.name, model.spec, longest, new)
    model_wiring.check_loadable(model, mesh)
    base = weights.base_params(model, mesh, seed=seed)
    params = restoring.policy_params(policy.workdir, model, mesh, base, seed=seed)
    sampler = batches.make_sampler(
        make_decoding(model.decoder),
        pick=pick.sampler(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
        ),
        stops=stop_ids(tokenizer, model.folder, request.stop),
        max_new_tokens=new,
        mesh=mesh,
    )
    return encoded, complete(params, encoded, sampler, tokenizer, request)


def _find_folder(
    given: Section, tokenizer: Any, *, is_scalar: bool, max_tokens: int
) -> tuple[Path, DecoderSpec]:
    """Finds a folder that is sampled as it is, whatever the objective and lengths."""
    del is_scalar, max_tokens
    folder = files.resolve(given["path"], given["revision"])
    spec = hf.spec_of(files.read_config(folder))
    tokenize.check_ids(tokenize.max_token_id(tokenizer), spec.vocab)
    return folder, spec


def check_texts(name: str, spec: DecoderSpec, longest: int, new: int) -> None:
    """Refuses a model that continues no text, and texts beyond its positions.

    Args:
      name: of the policy.
      spec: of its decoder.
      longest: tokens of the longest prompt.
      new: tokens of a continuation, at most.

    Raises:
      ModelError: if it is a reward model.
      ConfigError: if there are too few learned positions.
      DataError: if a prompt is absurdly long.
    """
    if spec.scalar:
        raise ModelError(
            f"{name} is a reward model: it scores texts and continues none; sample a "
            "run of another objective"
        )
    if spec.learned_positions and longest + new > spec.max_positions:
        raise ConfigError(
            f"max_new_tokens={new} after a prompt of {longest} tokens exceeds the "
            f"{spec.max_positions} learned positions of {name}"
        )
    if longest > (most := max(spec.max_positions, LONGEST)):
        raise DataError(
            f"a prompt of {longest} tokens is longer than the {most} that {name} "
            "continues; shorten it"
        )


def complete(
    params: Params,
    prompts: Sequence[np.ndarray],
    sampler: Sampler,
    tokenizer: Any,
    request: SampleRequest,
) -> list[list[Completion]]:
    """Continues encoded prompts: n completions of each, in order."""
    decode_ids = functools.partial(tokenizer.decode, skip_special_tokens=True)
    strings = stop_strings(tokenizer, request.stop)

    def watch(tokens: list[int]) -> int:
        found = stops.cut(tokens, decode_ids, strings)
        return found.tokens if found.found else 0

    parts = batches.rollouts(
        params,
        prompts,
        jax.random.key(request.seed),
        sampler=sampler,
        n=request.n,
        batch=request.batch,
        watch=watch if strings else None,
    )
    on_host = ((part, sampler.read(samples)) for part, _, samples in parts)
    samples = batches.gather(on_host, len(prompts), request.n)

    def completion(
        number: int, tokens: Any, mask: Any, logps: Any, ended: Any
    ) -> Completion:
        ids = tokens[mask].tolist()
        text = stops.cut(ids, decode_ids, strings).text
        return Completion(text, ids, logps[mask].tolist(), bool(ended), number)

    return [
        [completion(j, *one) for j, one in enumerate(zip(*of_prompt, strict=True))]
        for of_prompt in zip(*samples, strict=True)
    ]


def encode(
    tokenizer: Any,
    asked: Questions,
    *,
    join: str,
    template: str | None,
    now: str = "",
) -> list[np.ndarray]:
    """Encodes prompts as training does: i32[P] each.

    Args:
      tokenizer: of the policy.
      asked: strings or chats, with the tools of each.
      join: `data.join`.
      template: of chats; None = the tokenizer's own.
      now: see `data.templates.template_text`.

    Raises:
      DataError: if one has no tokens, or the template refuses it.
      ModelError: if one is a chat and there is no template.
    """
    encoded = []
    for at, (prompt, tools) in enumerate(zip(asked.prompts, asked.tools, strict=True)):
        row = RawRow(prompt, (), tools=tuple(tools), where=f"prompt {at}")
        ids = encode_prompt(row, tokenizer, join=join, chat_template=template, now=now)
        encoded.append(np.asarray(ids, np.int32))
    return encoded


def make_decoding(decoder: Decoder, cache_dtype: str = "") -> Decoding:
    """Makes a decoder read texts piece by piece.

    Args:
      decoder: that reads.
      cache_dtype: of the keys and values that it keeps; '' = that of its computation.
    """
    dtype = jnp.dtype(cache_dtype) if cache_dtype else None
    return Decoding(
        dtype=decoder.dtype,
        ready=functools.partial(decode.ready, decoder),
        prefill=lambda params, batch, lengths, tokens: decode.prefill(
            decoder, params, batch, lengths, tokens=tokens, dtype=dtype
        ),
        step=functools.partial(decode.step, decoder),
    )


def stop_ids(tokenizer: Any, folder: Path | None, words: Sequence[str]) -> list[int]:
    """Lists the ids that end a text.

    They are the tokenizer's EOS, what the model's folder declares, and those words that
    are tokens which no text contains.
    """
    ids = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        file = None if folder is None else folder / name
        if file is not None and file.is_file():
            ids |= set(_declared(file))
    special = _special(tokenizer)
    ids |= {special[word] for word in words if word in special}
    return sorted(ids - {None})


def _declared(file: Path) -> list[int]:
    """Reads the ids that a file of a model declares to end a text.

    Raises:
      ModelError: if it says something else.
    """
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} must hold a JSON object")
    declared = found.get("eos_token_id")
    listed = declared if isinstance(declared, list) else [declared]
    if not all(token is None or type(token) is int for token in listed):
        raise ModelError(
            f"{file}: eos_token_id={str(declared)[:80]} must be a token id, or a list"
        )
    return [token for token in listed if token is not None]


def stop_strings(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Lists the words that are looked for in the text."""
    return [word for word in words if word not in _special(tokenizer)]


def _special(tokenizer: Any) -> dict[str, int]:
    return dict(
        zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    )
