"""Batches of ragged prompts: what is said does not depend on how they are batched."""

import functools

import jax
import numpy as np
import pytest

from dpo_jax.models.decoder import abstract_params, init_params
from dpo_jax.models.spec import preset
from dpo_jax.sampling import complete, pick, stops
from dpo_jax.sharding import arrays, mesh, rules
from dpo_jax.wiring.generation import make_decoding

SPEC = preset("tiny", vocab=32, max_positions=64)
NEW, SEED = 20, 5
PROMPTS = [np.arange(3, 3 + size) for size in (3, 17, 1, 20, 9)]
WORDS = "abcdefghijklmnopqrstuvwxyz0123456789"


def decode(ids):
    return "".join(WORDS[i] for i in ids if i > 2)


@functools.cache
def params():
    drawn = jax.jit(init_params, static_argnums=0)(SPEC, jax.random.key(1))
    return jax.tree.map(lambda leaf: 4 * leaf, drawn)


@functools.cache
def engine(how, ends=(2,)):
    model = make_decoding(
        SPEC, dtype="float32", attention="xla", length=0, constrain=lambda x: x
    )
    return complete.make_engine(
        model, pick=how, stops=ends, max_new_tokens=NEW, spread=lambda rows: rows
    )


WARM = pick.temperature(1.5)


def run(how=WARM, strings=(), n=2, batch=4, prompts=PROMPTS, ends=(2,), seed=SEED):
    return complete.complete(
        params(),
        prompts,
        engine=engine(how, ends),
        decode=decode,
        strings=strings,
        n=n,
        batch=batch,
        seed=seed,
    )


def tokens(found):
    return [[one.tokens for one in of] for of in found]


def test_buckets_are_powers_of_two():
    assert [complete.bucket(n) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]


def test_every_prompt_gets_its_continuations():
    found = run()
    assert [len(of) for of in found] == [2] * 5
    assert len({tuple(one.tokens) for of in found for one in of}) == 10
    for one in (one for of in found for one in of):
        assert len(one.tokens) == len(one.logps) <= NEW
        assert one.ended == (one.tokens[-1] == 2) and one.text == decode(one.tokens)
        assert 2 not in one.tokens[:-1]
    lengths = {len(one.tokens) for of in found for one in of}
    assert len(lengths) > 2 and NEW in lengths


def test_neither_batch_size_nor_company_matters():
    found = run()
    for other in (run(batch=7), run(n=3), run(prompts=PROMPTS[:2])):
        for ours, theirs in zip(found, other, strict=False):
            for one, two in zip(ours, theirs, strict=False):
                assert one.tokens == two.tokens
                np.testing.assert_allclose(one.logps, two.logps, atol=1e-4)
    assert tokens(run(seed=6)) != tokens(found)
    assert tokens(run()) == tokens(found)


def test_eight_devices_say_what_one_says():
    """Rows over data and fsdp, heads over tensor."""
    built = mesh.make_mesh(2, 2, 2)
    model = make_decoding(
        SPEC,
        dtype="float32",
        attention="xla",
        length=0,
        constrain=arrays.constrain_rows,
    )
    place = arrays.row_sharding(built)
    with jax.set_mesh(built):
        spread = complete.make_engine(
            model,
            pick=WARM,
            stops=(2,),
            max_new_tokens=NEW,
            spread=lambda rows: arrays.to_global(jax.tree.map(np.asarray, rows), place),
            replicated=arrays.replicated(built),
        )
        places = rules.shardings(abstract_params(SPEC), built, rules.PARAM_RULES)
        found = complete.complete(
            jax.device_put(params(), places),
            PROMPTS,
            engine=spread,
            decode=decode,
            strings=(),
            n=2,
            batch=4,
            seed=SEED,
        )
    assert tokens(found) == tokens(run())


def test_stop_strings_cut_exactly():
    """Two letters that two greedy continuations hold, found across chunks."""
    plain = [of[0] for of in run(pick.greedy, n=1, ends=())]
    string = plain[0].text[17:19]  # lies behind the first chunk of 16
    assert complete.CHUNK == 16 and len(string) == 2
    found = [of[0] for of in run(pick.greedy, n=1, ends=(), strings=[string, "??"])]
    for whole, cut in zip(plain, found, strict=True):
        at = whole.text.find(string)
        assert cut.ended == (at >= 0)
        assert cut.text == (whole.text[:at] if at >= 0 else whole.text)
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert string not in decode(cut.tokens[:-1])
        assert len(cut.logps) == len(cut.tokens)
    assert found[0].ended


def test_a_cut_keeps_the_token_that_completes_the_string():
    pieces = {0: "on", 1: "e t", 2: "wo th", 3: "ree"}
    spell = lambda ids: "".join(pieces[i] for i in ids)  # noqa: E731
    assert stops.cut([0, 1, 2, 3], spell, ["two"]) == (3, "one ", True)
    assert stops.cut([0, 1, 2, 3], spell, ["three", "two"]) == (3, "one ", True)
    assert stops.cut([0, 1], spell, ["two"]) == (2, "one t", False)
    assert stops.cut([0, 1, 2], spell, ["e", "on"]) == (1, "", True)
    assert stops.cut([], spell, ["e"]) == (0, "", False)


@pytest.mark.parametrize("strings", [(), ("zz",)])
def test_the_loop_ends_when_all_rows_have(strings):
    """Every token is a stop: one token each, whatever the chunk."""
    found = run(strings=strings, n=1, ends=tuple(range(32)))
    assert all(len(of[0].tokens) == 1 and of[0].ended for of in found)
