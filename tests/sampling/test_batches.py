"""Batches of ragged prompts: what is said does not depend on how they are batched."""

import itertools

import jax
import numpy as np
import pytest
from sampling_cases import EOS, NEW, PROMPTS, SPEC, decode, kept, params, run

from dpo_jax.models.decoder import abstract_params
from dpo_jax.sampling import batches, pick, stops
from dpo_jax.sharding import mesh, rules


def equal(ours, theirs):
    """The same samples, as far as both have them; log-probs up to rounding."""
    of = np.index_exp[: len(ours.ended), : ours.ended.shape[1]]
    for name in ("tokens", "mask", "ended"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name)[of])
    np.testing.assert_allclose(ours.logps, theirs.logps[of], atol=1e-4)


def test_buckets_are_powers_of_two():
    assert [batches.bucket(n) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]


@pytest.mark.parametrize("prompts", [1, 5, 64])
@pytest.mark.parametrize("n", [1, 3, 4, 33])
def test_a_plan_takes_everything_once_and_no_more_room(prompts, n):
    """Of each width no more prompts than asked, rounded up to the shards."""
    for batch, shards in itertools.product((1, 7, 8, 32), (1, 2, 4, 8)):
        check_plan(prompts, n, batch, shards)


def check_plan(prompts, n, batch, shards):
    lengths = [1 + 7 * i % 40 for i in range(prompts)]
    parts = list(batches.plan(lengths, n, batch=batch, shards=shards))
    taken = [
        (i, part.first + j)
        for part in parts
        for i in part.ids
        for j in range(part.n)
        if part.first + j < n
    ]
    assert sorted(taken) == [(i, j) for i in range(prompts) for j in range(n)]
    for part in parts:
        asked = sum(batches.bucket(length) == part.width for length in lengths)
        assert part.size % shards == 0 and len(part.ids) <= part.size
        assert part.size * part.n <= max(batch, shards)
        assert part.size < asked + shards and part.n <= n
        assert all(batches.bucket(lengths[i]) == part.width for i in part.ids)
    assert len({(part.width, part.size, part.n) for part in parts}) == len(
        {part.width for part in parts}
    )  # one program a width


def test_one_prompt_is_one_row():
    """The default of 32 rows is a limit, not what is run."""
    parts = batches.plan([3], 1, batch=32, shards=1)
    assert list(parts) == [batches.Part(16, [0], 1, 0, 1)]


def test_every_prompt_gets_its_continuations():
    found = run()
    assert found.tokens.shape == (5, 2, NEW)
    assert len({tuple(row) for row in found.tokens.reshape(10, NEW).tolist()}) == 10
    for prompt, number in np.ndindex(5, 2):
        ids = kept(found, prompt, number)
        assert found.ended[prompt, number] == (ids[-1] == EOS)
        assert (
            EOS not in ids[:-1] and not found.tokens[prompt, number, len(ids) :].any()
        )
    lengths = set(found.mask.sum(-1).reshape(-1).tolist())
    assert len(lengths) > 2 and NEW in lengths


def test_neither_batch_size_nor_company_matters():
    """One by one, more samples and those apart, fewer prompts: the same noise."""
    found = run()
    for other in (run(batch=1), run(batch=3, n=5)):
        equal(found, other)
    equal(run(prompts=PROMPTS[:2]), found)
    equal(run(), found)
    assert (run(seed=6).tokens != found.tokens).any()


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_say_what_one_says(shape):
    """Rows over data and fsdp, heads over tensor; 5 prompts on 8 or 4 shards."""
    built = mesh.make_mesh(*shape)
    equal(run(on=built, params=lambda: placed(built)), run())


def placed(on):
    places = rules.shardings(abstract_params(SPEC), on, rules.PARAM_RULES)
    return jax.device_put(params(), places)


def ends_at(string):
    def watch(tokens):
        found = stops.cut(tokens, decode, [string, "??"])
        return found.tokens if found.found else 0

    return watch


def test_stop_strings_cut_exactly():
    """Two letters that greedy continuations hold, looked for across chunks."""
    plain = run(pick.greedy, n=1, ends=())
    texts = [decode(kept(plain, i)) for i in range(5)]
    string = texts[0][17:19]  # lies behind the first chunk of 16
    assert batches.CHUNK == 16 and len(string) == 2 and not plain.ended.any()
    found = run(pick.greedy, n=1, ends=(), watch=ends_at(string))
    for i, text in enumerate(texts):
        ids, at = kept(found, i), text.find(string)
        assert found.ended[i, 0] == (at >= 0)
        assert ids == kept(plain, i)[: len(ids)]
        assert len(ids) == NEW if at < 0 else decode(ids).endswith(string)
        assert string not in decode(ids[:-1])
        assert not found.tokens[i, 0, len(ids) :].any()
        assert not found.logps[i, 0, len(ids) :].any()
    assert found.ended[0, 0]


def test_a_cut_keeps_the_token_that_completes_the_string():
    pieces = {0: "on", 1: "e t", 2: "wo th", 3: "ree"}
    spell = lambda ids: "".join(pieces[i] for i in ids)  # noqa: E731
    assert stops.cut([0, 1, 2, 3], spell, ["two"]) == (3, "one ", True)
    assert stops.cut([0, 1, 2, 3], spell, ["three", "two"]) == (3, "one ", True)
    assert stops.cut([0, 1], spell, ["two"]) == (2, "one t", False)
    assert stops.cut([0, 1, 2], spell, ["e", "on"]) == (1, "", True)
    assert stops.cut([], spell, ["e"]) == (0, "", False)


@pytest.mark.parametrize("watch", [None, ends_at("zz")], ids=["alone", "watched"])
def test_the_loop_ends_when_all_rows_have(watch):
    """Every token is a stop: one token each, whatever the chunk."""
    found = run(watch=watch, n=1, ends=tuple(range(32)))
    assert (found.mask.sum(-1) == 1).all() and found.ended.all()


@pytest.mark.parametrize("watch", [None, ends_at("h")], ids=["alone", "watched"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2)], ids=["one", "four"])
def test_rows_that_have_ended_are_left_behind(shape, watch, monkeypatch):
    """64 rows shrink to 32 and 16; every sample is what it is with nobody left."""
    on = mesh.make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    how = {"n": 16, "batch": 64, "ends": (2, 5, 7), "new": 64, "watch": watch, "on": on}
    how["params"] = lambda: placed(on)
    how["prompts"] = [np.arange(3, 3 + size) for size in (3, 7, 1, 5)]
    monkeypatch.setattr(batches, "LEAST_ROWS", 65)
    want, seen, only = run(**how), [], batches._only
    monkeypatch.setattr(batches, "LEAST_ROWS", 16)

    def record(state, at):
        seen.append((len(state.lengths), len(at)))
        return only(state, at)

    monkeypatch.setattr(batches, "_only", record)
    found = run(**how)
    assert seen and {after for _, after in seen} <= {16, 32}
    equal(found, want)
    lengths = want.mask.sum(-1)
    assert lengths.max() > 17 > lengths.min() and want.ended.any()


def test_any_of_several_ids_ends_a_sample_and_one_token_is_one():
    """The last token alone is one of them, exactly where a sample has ended."""
    ends = (2, 5, 7)
    found = run(ends=ends, n=6)
    for at in np.ndindex(found.ended.shape):
        ids = kept(found, *at)
        assert found.ended[at] == (ids[-1] in ends)
        assert not set(ids[:-1]) & set(ends)
        assert found.ended[at] or len(ids) == NEW
    assert {kept(found, *at)[-1] for at in np.ndindex(found.ended.shape)} >= {5, 7}
    alone = run(ends=ends, n=6, new=1)
    assert alone.tokens.shape[-1] == 1 and alone.mask.all()
    np.testing.assert_array_equal(alone.tokens[..., 0], found.tokens[..., 0])
