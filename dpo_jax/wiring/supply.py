"""Where the tokenizer, the model and the rows of a run come from.

A run that trains reads them from files. One that is only planned needs no weights, no
rows and, if need be, no tokenizer: then rows are as long as the configuration allows.
What is built of them is built by the same functions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from dpo_jax.data import sources
from dpo_jax.data.prepare import Questions
from dpo_jax.errors import ModelError
from dpo_jax.files import AnyPath
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.schema import Section
from dpo_jax.types import Record
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import model as model_wiring
from dpo_jax.wiring import prompts, reading
from dpo_jax.wiring.data import Data
from dpo_jax.wiring.reading import DataRequest

RANKED = 4  # responses of a ranking that is not there to be counted


class Supply(NamedTuple):
    """Functions that find what a run is made of.

    Attributes:
      tokenizer: (tokenizer.path, config.model, data.train) -> the policy's.
      model: as `model.find_model`.
      rows: (request, tokenizer, workdir, splits) -> records.
      prompts: (request, tokenizer) -> records of an on-policy run, and what they ask.
      speakers: tokenizer -> those whose words a reward or value model must share.
      check: refuses a model before it is loaded.
    """

    tokenizer: Callable[[str, Section, str], Any]
    model: model_wiring.Find
    rows: Callable[..., Data]
    prompts: Callable[[DataRequest, Any], tuple[Data, Questions]]
    speakers: Callable[[Any], Sequence[Any]]
    check: model_wiring.Check


def read_prompts(request: DataRequest, tokenizer: Any) -> tuple[Data, Questions]:
    """Reads the prompts of data.train."""
    found = reading.sources_of(request, "train", tokenizer)
    return prompts.load_prompts(found, request.data["train"], request.data, tokenizer)


def any_tokenizer(path: str, model: Section, train: str) -> Any:
    """Loads the policy's tokenizer, or one that stands in for it: ids are not read."""
    try:
        return data_wiring.load_tokenizer(path, model, train)
    except ModelError as error:
        logging.info("no tokenizer is read, its words do not matter here: %s", error)
        return sources.TOKENIZERS["sentiment"]()


def described_model(
    given: Section, tokenizer: Any, *, is_scalar: bool, max_tokens: int
) -> tuple[None, DecoderSpec]:
    """Reads what a `config.json` says of the policy, whether it has weights or not."""
    if given["preset"]:
        found = model_wiring.find_model(
            given, tokenizer, is_scalar=is_scalar, max_tokens=max_tokens
        )
        return None, found[1]
    _, spec = model_wiring.find_folder(
        given["path"],
        given["revision"],
        is_scalar=is_scalar,
        ignored=given["ignore_attributes"],
    )
    return None, model_wiring.with_rows(spec, given["vocab_multiple"])


def longest(given: Section) -> tuple[int, int]:
    """Says how many tokens the longest prompt and response have, of `config.data`."""
    prompt = min(given["max_prompt_tokens"], given["max_tokens"] - 1)
    return prompt, given["max_tokens"] - prompt


def longest_rows(
    request: DataRequest,
    tokenizer: Any,
    workdir: AnyPath | None = None,
    splits: Sequence[str] = ("train",),
) -> Data:
    """Makes the rows of one step, each as long as the configuration allows."""
    del workdir, splits
    prompt, response = longest(request.data)
    kind = request.kind
    count = {"completions": 1, "singles": 1, "rankings": RANKED}.get(kind, 2)
    of_each: dict[str, tuple[float, ...]] = {}
    if request.reads_ratings:
        of_each["ratings"] = tuple(map(float, range(count, 0, -1)))
    if kind == "singles":
        of_each["labels"] = (1.0,)
    record = Record(
        0,
        np.ones(prompt, np.int32),
        (np.ones(response, np.int32),) * count,
        comparisons=((0, 1),) if count == 2 else (),
        ranked=kind == "rankings",
        response=of_each,
    )
    records = [record._replace(index=at) for at in range(request.batch)]
    return Data(tokenizer, records, [], {}, "")


def longest_prompts(request: DataRequest, tokenizer: Any) -> tuple[Data, Questions]:
    """Makes the prompts of one turn, each as long as the configuration allows."""
    ids = np.ones(request.data["max_prompt_tokens"], np.int32)
    records = [Record(at, ids, ()) for at in range(request.batch)]
    asked = Questions([""] * len(records), {}, [()] * len(records))
    return Data(tokenizer, records, [], {}, ""), asked


FROM_FILES = Supply(
    data_wiring.load_tokenizer,
    model_wiring.find_model,
    data_wiring.load_data,
    read_prompts,
    lambda tokenizer: [tokenizer],
    model_wiring.check_loadable,
)
FROM_CONFIG = Supply(
    any_tokenizer,
    described_model,
    longest_rows,
    longest_prompts,
    lambda tokenizer: [],
    model_wiring.check_heads,
)
