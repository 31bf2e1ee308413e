"""What is sampled by whom: prompts, policies with a cache, and engines on a mesh."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dpo_jax.config import Config
from dpo_jax.data import records, sources, tokenize
from dpo_jax.data.encode import encode as encode_row
from dpo_jax.data.records import RawRow, Text
from dpo_jax.errors import ConfigError, DataError, DeviceError, ModelError, collected
from dpo_jax.models import decode
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.sampling import complete, pick
from dpo_jax.sampling.complete import Completion, Engine
from dpo_jax.sampling.generate import Decoding
from dpo_jax.sharding import arrays, mesh
from dpo_jax.types import Array, Params


class Request(NamedTuple):
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
      batch: rows that run together.
    """

    prompts: str
    limit: int
    n: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    stop: tuple[str, ...]
    seed: int
    batch: int


def check(request: Request, built: Mesh) -> None:
    """Refuses numbers that make no sense, all together.

    Raises:
      ConfigError: naming the flags.
      DeviceError: if the batch does not divide over the mesh.
    """
    with collected(ConfigError) as complaints:
        lowest = {"n": 1, "max_new_tokens": 1, "batch": 1, "limit": 0, "seed": 0}
        values = request._asdict()
        complaints += [
            f"--{name}={values[name]} must be ≥ {least}"
            for name, least in lowest.items()
            if values[name] < least
        ]
        if not all(request.stop):
            complaints.append("--stop='' is empty; leave it out")
        warps = request.temperature, request.top_k, request.top_p, request.min_p
        complaints += [f"--{fault}" for fault in pick.faults(*warps)]
    shards = mesh.row_shards(built)
    if request.batch % shards:
        fits = request.batch + -request.batch % shards
        raise DeviceError(
            f"--batch={request.batch} is not a multiple of the {shards} data shards; "
            f"use {fits}"
        )


def read_prompts(config: Config, request: Request) -> list[Text]:
    """Reads prompts of a file, or those of data.eval.

    Raises:
      DataError: if a row has no usable prompt.
      ConfigError: if there is neither.
    """
    if request.prompts:
        found = _prompts_of(request.prompts)
    elif name := config.data.eval:
        rows = sources.read(
            name,
            split="eval",
            path=config.data.path if name in sources.LOCAL_COPY else "",
            seed=config.seed,
        )
        kept, _ = records.validate(
            rows,
            kind="completions" if config.objective == "sft" else "pairs",
            format="hh" if name in sources.TRANSCRIPTS else config.data.format,
            on_bad_row=config.data.on_bad_row,
        )
        found = [row.prompt for row in kept]
    else:
        raise ConfigError("nothing to continue: give --prompts=FILE.jsonl or data.eval")
    return found[: request.limit or None]


def _prompts_of(file: str) -> list[Text]:
    """Reads the column `prompt` of a file, strings or chats."""
    found, faults = [], []
    for where, fields in sources.read(file, split="eval"):
        prompt = fields.get("prompt") if isinstance(fields, dict) else None
        chat = isinstance(prompt, list) and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role")
            for m in prompt
        )
        if prompt and (isinstance(prompt, str) or chat):
            found.append(prompt)
        else:
            faults.append(f"{where}: `prompt` must be a string or a list of messages")
    if faults or not found:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        what = " · ".join(faults[:3]) + more or "the file has no rows"
        raise DataError(f"--prompts={file!r}: {what}")
    return found


def encode(config: Config, tokenizer: Any, prompt: Text) -> np.ndarray:
    """Encodes a prompt as training does: i32[P].

    Raises:
      DataError: if it has no tokens, or the template refuses it.
      ModelError: if it is a chat and there is no template.
    """
    template = tokenize.read_chat_template(config.data.chat_template)
    if isinstance(prompt, str):
        row = RawRow(prompt, ("",), where=f"prompt {prompt[:40]!r}")
        join = config.data.join
        ids, _ = encode_row(row, tokenizer, join=join, chat_template=template)
        return np.asarray(ids, np.int32)
    if not (template or tokenizer.chat_template):
        raise ModelError(
            "a prompt is a chat, but the tokenizer has no chat template; set "
            "data.chat_template=FILE"
        )
    try:
        text = tokenizer.apply_chat_template(
            prompt, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template may raise
        raise DataError(f"the chat template refuses a prompt: {error}") from error
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def make_decoding(
    spec: DecoderSpec,
    *,
    dtype: str,
    attention: str,
    length: int,
    constrain: Callable[[Array], Array],
) -> Decoding:
    """Builds a policy that reads texts piece by piece.

    Args:
      spec: of the decoder.
      dtype: of the computation and of the cache.
      attention: a key of `attention.BACKENDS`.
      length: tokens of the longest text, for rope scalings that depend on it.
      constrain: pins activations to a mesh.
    """
    module = Decoder(
        spec,
        dtype=jnp.dtype(dtype),
        attention=attention,
        length=length,
        constrain=constrain,
    )
    return Decoding(
        ready=functools.partial(decode.ready, module),
        prefill=lambda params, batch, lengths, tokens: decode.prefill(
            module, params, batch, lengths, tokens=tokens
        ),
        step=functools.partial(decode.step, module),
    )


def stop_ids(tokenizer: Any, folder: Path | None, words: tuple[str, ...]) -> list[int]:
    """Lists the ids that end a text.

    They are the tokenizer's EOS, what the model's folder declares, and those words that
    are tokens which no text contains.
    """
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        file = None if folder is None else folder / name
        if file is not None and file.is_file():
            declared = json.loads(file.read_bytes()).get("eos_token_id")
            found |= set(declared if isinstance(declared, list) else [declared])
    special = _special(tokenizer)
    found |= {special[word] for word in words if word in special}
    return sorted(token for token in found if token is not None)


def stop_strings(tokenizer: Any, words: tuple[str, ...]) -> list[str]:
    """Lists the words that are looked for in the text."""
    return [word for word in words if word not in _special(tokenizer)]


def _special(tokenizer: Any) -> dict[str, int]:
    return dict(
        zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    )


def check_lengths(spec: DecoderSpec, longest: int, request: Request) -> None:
    """Refuses texts that are longer than the learned positions.

    Raises:
      ConfigError: naming the flag.
    """
    total = longest + request.max_new_tokens
    if spec.learned_positions and total > spec.max_positions:
        raise ConfigError(
            f"--max_new_tokens={request.max_new_tokens} after a prompt of {longest} "
            f"tokens exceeds the {spec.max_positions} learned positions"
        )


def make_engine(
    config: Config,
    spec: DecoderSpec,
    built: Mesh,
    request: Request,
    *,
    longest: int,
    stops: list[int],
) -> Engine:
    """Builds generation over a mesh.

    Args:
      config: of the run.
      spec: of its decoder.
      built: the mesh.
      request: what is asked for.
      longest: tokens of the longest prompt.
      stops: ids that end a text.
    """
    model = make_decoding(
        spec,
        dtype=config.model.dtype,
        attention=config.model.attention,
        length=complete.bucket(longest) + request.max_new_tokens,
        constrain=arrays.constrain_rows,
    )
    place = arrays.row_sharding(built)

    def spread(rows: Any) -> Any:
        def here(leaf: Any) -> np.ndarray:
            return np.asarray(leaf)[arrays.rows_here(place, len(leaf))]

        return arrays.to_global(jax.tree.map(here, rows), place)

    return complete.make_engine(
        model,
        pick=pick.sampler(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
        ),
        stops=stops,
        max_new_tokens=request.max_new_tokens,
        spread=spread,
        replicated=arrays.replicated(built),
    )


def run(
    engine: Engine,
    params: Params,
    prompts: list[np.ndarray],
    tokenizer: Any,
    request: Request,
) -> list[list[Completion]]:
    """Continues encoded prompts."""
    return complete.complete(
        params,
        prompts,
        engine=engine,
        decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
        strings=stop_strings(tokenizer, request.stop),
        n=request.n,
        batch=request.batch,
        seed=request.seed,
    )
