"""Rows of the real dialogues, and the plan of a million records.

Fill is tokens by the places that an epoch's steps run, B·T of each. What it prints is
what is reported: also of 8 shards, where B is a multiple of 8, and of the places for
scored tokens, B·C.
"""

import os
import time

import numpy as np
import pytest
from row_cases import located, validate

from dpo_jax.data import loader
from dpo_jax.data.loader import Loader, Settings
from dpo_jax.data.tokenize import tokenize
from dpo_jax.types import Record

pytestmark = pytest.mark.nightly
MILLION = 1_000_000


def byte_level(texts):
    """A byte-level BPE of 16,384 ids, trained on what it will read."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=16_384,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<eos>")


@pytest.fixture(scope="module")
def dialogues():
    """The 2,304 pairs, cut as the schema says."""
    folder = os.environ.get("DPO_JAX_SHARED", "")
    if not folder:
        pytest.skip("DPO_JAX_SHARED is not set")
    pytest.importorskip("transformers")
    found = located(f"{folder}/data/hh-harmless-test.jsonl.gz")
    rows, _ = validate(found, kind="pairs", format="hh", on_bad_row="drop")
    texts = [row.prompt + response for row in rows for response in row.responses]
    records, _ = tokenize(
        rows,
        byte_level(texts),
        join="separate",
        chat_template=None,
        max_tokens=512,
        max_prompt_tokens=256,
        truncate_prompt="keep_end",
        truncate_response="rest",
        on_bad_row="error",
    )
    assert len(records) == 2304
    return records


def epoch(records, *, pairs, shards, seed):
    """Plans one epoch; returns the loader, its fill, and the padding of C."""
    size, steps = len(records), len(records) // pairs
    order = loader.train_steps(size, pairs=pairs, steps=steps, seed=seed, shuffle=True)
    loads = Loader(records, order, Settings(pairs, 1, "prefix_shared", 0, shards))
    facts = [loads.facts(step) for step in range(steps)]
    rows = sum(count * n for count, n in loads.compiled_shapes().items())
    tokens = sum(each["tokens"] for each in facts)
    scored = sum(each["scored"] for each in facts)
    places = loads.shape_at(0)
    return (
        loads,
        tokens / (rows * places.tokens),
        1 - scored / (rows * places.scored),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairs, least", [(64, 0.95), (32, 0.90), (8, 0.70)])
def test_rows_are_well_filled(dialogues, pairs, least, seed):
    for shards in (8, 1):
        loads, fill, unscored = epoch(dialogues, pairs=pairs, shards=shards, seed=seed)
        print(
            f"\n{pairs} pairs, {shards} shards: fill {fill:.4f}, padding of C "
            f"{unscored:.3f}, T = {loads.row_tokens}, C = {loads.shape_at(0).scored}, "
            f"rows: steps = {dict(sorted(loads.compiled_shapes().items()))}"
        )
        assert len(loads.compiled_shapes()) <= 6
    assert fill >= least  # of one shard


@pytest.fixture(scope="module")
def million():
    rng, ids = np.random.default_rng(0), np.ones(256, np.int32)

    def draw(median, spread):
        lengths = rng.lognormal(np.log(median), spread, MILLION)
        return lengths.clip(2, 256).astype(int).tolist()

    lengths = zip(draw(78, 0.99), draw(28, 0.87), draw(34, 0.92), strict=True)
    return [
        Record(i, ids[:p], (ids[:c], ids[:r]), comparisons=((0, 1),))
        for i, (p, c, r) in enumerate(lengths)
    ]


@pytest.mark.parametrize("layout", ["padded", "packed", "prefix_shared"])
@pytest.mark.parametrize("pairs, microbatches", [(8, 1), (64, 1), (512, 4)])
def test_a_million_pairs_are_planned_in_seconds(million, layout, pairs, microbatches):
    """Drawn, measured and packed, in seconds of one core: 2 to 4 of them."""
    start, steps = time.process_time(), MILLION // pairs
    order = loader.train_steps(MILLION, pairs=pairs, steps=steps, seed=0, shuffle=True)
    drawn = time.process_time() - start
    loads = Loader(million, order, Settings(pairs, microbatches, layout, 0, 1))
    seconds = time.process_time() - start
    print(
        f"\n{layout}, {pairs} pairs in {microbatches}: {seconds:.1f} s, of which "
        f"{drawn:.1f} to draw; T = {loads.row_tokens}, rows {loads.buckets}"
    )
    assert seconds < 10
    seen = loads.batch_at(steps - 1).ids
    assert sorted(seen[seen >= 0]) == sorted(2 * loads.ids_at(steps - 1))
