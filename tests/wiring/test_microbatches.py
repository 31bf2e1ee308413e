"""Into how many microbatches a step is cut where nobody says, by hand."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dpo_jax import schema
from dpo_jax.config import to_json
from dpo_jax.errors import ConfigError, RunFolderError
from dpo_jax.models import memory
from dpo_jax.sharding import mesh
from dpo_jax.types import Record
from dpo_jax.wiring import data as data_wiring
from dpo_jax.wiring import microbatches, reading, restoring
from experiments.throughput import inputs


def activations(spec, tokens):
    given = {"remat": "elementwise", "dtype": "float32", "chunk": 128}
    return lambda rows: memory.activation_bytes(spec, rows=rows, tokens=tokens, **given)


def test_the_fewest_that_keep_to_the_budget_and_divide_the_pairs():
    """Of 12 rows and 10 bytes each, 1, 2, 3, 4, 6 and 12 parts hold 120, 60, 40, …"""
    fewest = lambda **given: microbatches.fewest(lambda rows: 10.0 * rows, **given)  # noqa: E731
    assert fewest(rows=12, parts=12, budget=120) == 1
    assert fewest(rows=12, parts=12, budget=59) == 3
    assert fewest(rows=12, parts=12, budget=29) == 6
    assert fewest(rows=12, parts=4, budget=29) == 4  # none keeps to it
    assert fewest(rows=12, parts=32, budget=25) == 8  # 8 parts, of 2 rows at most


def test_the_budget_is_what_the_state_takes_or_half_of_what_it_leaves():
    assert microbatches.budget_of(1e6, None) == 805306368
    assert microbatches.budget_of(3e9, None) == 3e9
    assert microbatches.budget_of(45e9, 141e9) == 48e9
    assert microbatches.budget_of(150e9, 141e9) == 141e9 / 16  # split further elsewhere


@pytest.mark.parametrize(("rows", "tokens"), [(10, 768), (12, 768), (6, 1536)])
def test_32_pairs_of_hh_under_8_layers_of_512_are_cut_in_four(rows, tokens):
    """33.7 M parameters take 0.54 GB, so that activations may take 0.805.

    A token keeps 8·5,824·4 bytes, and 12,512·4 in the layer at work: 236 kB; a row's
    logits take 17 MB. 5 rows of 768 hold 0.99 GB and 3 rows 0.60; 3 rows of 1,536 hold
    1.14 and 2 rows 0.76.
    """
    spec = inputs.spec(layers=8, width=512, vocab=16384)
    state, held = memory.state_bytes(spec), activations(spec, tokens)
    assert state == pytest.approx(0.54e9, rel=0.01)
    assert held(3) == pytest.approx({768: 0.60e9, 1536: 1.14e9}[tokens], rel=0.01)
    budget = microbatches.budget_of(state, None)
    assert microbatches.fewest(held, rows=rows, parts=32, budget=budget) == 4


LONG = np.ones(600, np.int32)
RECORDS = [Record(i, LONG, (LONG[:300],) * 2, ((0, 1),)) for i in range(40)]


def loaders(**changed):
    """Plans 32 pairs of 1,200 tokens a step on one device; 8 pairs are held out."""
    config = schema.base()
    config.batch.pairs = 32
    config.data.layout = "packed"
    config.update_from_flattened_dict(changed)
    spec = inputs.spec(layers=8, width=512, vocab=16384)
    alone = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1])
    data = data_wiring.Data(None, RECORDS, RECORDS, {}, "")
    return data_wiring.make_loaders(
        reading.request_of(config),
        data,
        spec,
        alone,
        steps=1,
        model=config.model,
        microbatches=config.batch.microbatches,
    )


def test_0_is_chosen_from_the_plan_and_a_number_stays():
    """Packed, a step is 32 rows of two documents of 900 tokens each.

    A row of 1,920 holds 0.47 GB, so that a part is one row. With the layers' inputs
    alone it holds 0.144 GB: eight parts of four rows keep to 0.805.
    """
    train, _ = loaders()
    assert (train.buckets, train.row_tokens) == ((1,), 1920)
    assert train.microbatches == 32
    assert loaders(**{"model.remat": "block"})[0].microbatches == 8
    assert loaders(**{"batch.microbatches": 2})[0].microbatches == 2


def test_rows_of_padding_are_refused():
    """A microbatch of one pair has 1,800 tokens: 2¹⁶ may be wasted on it, no more."""
    most = data_wiring.USUAL_ROW
    assert loaders(**{"data.row_tokens": most})[0].row_tokens == most
    said = f"data.row_tokens={most + 1}, but a microbatch has .* use {most} at most"
    with pytest.raises(ConfigError, match=said):
        loaders(**{"data.row_tokens": most + 1, "batch.microbatches": 32})


@pytest.mark.parametrize(
    "more, limit, number", [(1.05, None, 4), (1.06, None, 2), (1.06, 2.2e9, 4)]
)
def test_parts_that_fill_their_rows_badly_are_not_cut(more, limit, number, monkeypatch):
    """4 parts of 3 rows of 768 keep to 0.805 GB; with 6 % more places 2 parts do.

    A device that says what memory it has gets what fits it.
    """
    monkeypatch.setattr(microbatches, "memory_of", lambda mesh: limit)
    alone = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1])
    places = {1: 100, 2: 100, 4: round(100 * more)}
    chosen = microbatches.choose(
        inputs.spec(layers=8, width=512, vocab=16384),
        lambda n: SimpleNamespace(
            number=n, row_tokens=768, buckets=(10,), places=places[n]
        ),
        alone,
        pairs=32,
        remat="elementwise",
        dtype="float32",
        chunk=128,
    )
    assert chosen.number == number


@pytest.mark.parametrize(("number", "expected"), [(1, [32, 8]), (4, [8] * 5)])
def test_evaluation_takes_no_more_records_than_a_microbatch(number, expected):
    """40 records: by 32 and 8, or five times the 8 of a microbatch of 32 / 4."""
    train, held_out = loaders(**{"batch.microbatches": number})
    assert [len(held_out.ids_at(step)) for step in range(len(held_out))] == expected
    assert held_out.batch_at(0).tokens.shape[0] == 1
    most = train.batch_at(0).tokens.shape[1] * train.row_tokens
    assert held_out.batch_at(0).tokens.size <= most


def test_a_relaunch_keeps_what_was_chosen(tmp_path):
    config = schema.base()
    assert restoring.relaunched(config, tmp_path, fork=False) == (config, False)
    chosen = schema.base()
    chosen.batch.microbatches = 4
    (tmp_path / "config.json").write_text(to_json(chosen))
    relaunch = lambda **more: restoring.relaunched(config, tmp_path, **more)[0]  # noqa: E731
    assert relaunch(fork=False).batch.microbatches == 4
    assert config.batch.microbatches == 0
    assert relaunch(fork=True).batch.microbatches == 0  # chosen anew
    config.batch.microbatches = 2
    assert relaunch(fork=False).batch.microbatches == 2
    config.loss.beta = 0.7
    with pytest.raises(RunFolderError, match="loss.beta: 0.1 → 0.7"):
        relaunch(fork=False)
    assert json.loads((tmp_path / "config.json").read_text())["loss"]["beta"] == 0.1
