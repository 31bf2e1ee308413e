"""A user's loss under `sft`, KTO's evaluation, and partners that are not clear."""

import jax
import numpy as np
import pytest

from dpo_jax.configs import dpo, sft
from dpo_jax.data.loader import Loader
from dpo_jax.errors import ConfigError, DataError
from dpo_jax.losses import LOSSES, Loss
from dpo_jax.models.spec import preset
from dpo_jax.objectives import OBJECTIVES
from dpo_jax.sharding import mesh
from dpo_jax.types import Columns, Record
from dpo_jax.wiring import checks, loss_checks, objective
from dpo_jax.wiring.data import Data, make_loaders
from dpo_jax.wiring.reading import request_of

COLUMNS = Columns(
    lengths=np.float32([[2, 0], [3, 0]]),
    pairs=np.full((2, 1, 2), -1),
    response={
        "logps": np.float32([[-2, 0], [-4, 0]]),
        "entropy": np.float32([[1, 0], [1, 0]]),
        "correct": np.float32([[1, 0], [2, 0]]),
    },
)


def configured(module, **changed):
    config = module.get_config()
    config.model.preset, config.data.train = "tiny", "sentiment"
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changed.items()}
    )
    return config


@pytest.mark.parametrize("name", ["mine", "sft"])
def test_a_loss_of_ones_own_is_what_sft_minimises(name):
    """2·(2 + 4) nats over 5 tokens, and half of it: not the 6/5 of the built-in."""

    def mine(logps):
        return -2 * logps.chosen

    table = {**LOSSES, name: Loss(mine, per="chosen_tokens", reference=False)}
    config = configured(sft, loss__name=name)
    losses = checks.check(config, table)
    kind = OBJECTIVES[config.objective]
    made = objective.make_objective(kind, losses, config.loss, None, chunk=0)
    hyper, counts = objective.hyper(losses, config.loss), {"chosen_tokens": 5.0}
    loss, sums = made.loss(COLUMNS, {}, {}, hyper, counts)
    np.testing.assert_allclose(loss, 12 / 5, rtol=1e-6)
    assert float(sums["lengths/chosen"][0]) == 5.0


def test_a_loss_of_pairs_is_refused_by_sft():
    config = configured(sft, loss__name="mine")
    with pytest.raises(ConfigError, match="'mine' needs objective='preference'"):
        checks.check(config, {**LOSSES, "mine": lambda logps: logps.chosen})


def test_a_loss_far_from_its_usual_setting_is_told():
    """SimPO under another loss's β: 200 times below its own; within 10 × nothing."""
    far = configured(dpo, loss__name="simpo", loss__beta=0.01)
    (said,) = loss_checks.unusual(checks.check(far, LOSSES))
    assert said == (
        "loss.name='simpo' is usually run with loss.beta=2; this run has 0.01"
    )
    near = configured(dpo, loss__name="simpo", loss__beta=1.0)
    assert loss_checks.unusual(checks.check(near, LOSSES)) == []


def singles(count):
    return [
        Record(
            i, np.array([1, i + 5]), (np.array([i + 50]),), response={"labels": (1,)}
        )
        for i in range(count)
    ]


def test_the_responses_borrowed_for_evaluation_do_not_depend_on_batch_pairs():
    records, borrowed = singles(7), []
    spec = preset("tiny", vocab=64, max_positions=64)
    alone = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1])
    for pairs in (2, 3):
        config = configured(dpo, objective="unpaired", loss__name="kto")
        config.batch.pairs, config.data.shuffle = pairs, False
        losses = checks.check(config, LOSSES)
        data = Data(None, records, records, {}, "")
        join = objective.join_of(losses, config.data.max_tokens)
        with jax.set_mesh(alone):
            how = {"model": config.model, "microbatches": config.batch.microbatches}
            asked = request_of(config)
            held_out = make_loaders(asked, data, spec, alone, 2, join, **how)[1]
        assert isinstance(held_out, Loader)
        laid = [r for step in range(len(held_out)) for r in held_out.records_at(step)]
        borrowed.append([r.responses[1:][0].tolist() for r in laid])
    assert borrowed[0] == borrowed[1] == [[50 + (i + 1) % 7] for i in range(7)]


@pytest.mark.parametrize("changed", [{"loss__name": "sampo"}, {"loss__ld_alpha": 0.5}])
def test_a_response_in_two_comparisons_is_refused_where_it_needs_one_partner(changed):
    ids = tuple(np.array([i]) for i in (5, 6, 7))
    once = Record(3, np.array([1]), ids, comparisons=((0, 1),))
    twice = once._replace(index=4, comparisons=((0, 1), (0, 2)))
    config = configured(dpo, **changed)
    losses = checks.check(config, LOSSES)
    loss_checks.check_data(losses, config.loss, Data(None, [once], [], {}, ""))
    with pytest.raises(DataError, match="data.train: row 4 has a response in two"):
        loss_checks.check_data(
            losses, config.loss, Data(None, [once, twice], [], {}, "")
        )
    plain = configured(dpo)
    losses = checks.check(plain, LOSSES)
    loss_checks.check_data(losses, plain.loss, Data(None, [twice], [], {}, ""))
