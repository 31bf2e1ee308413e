"""Mixtures from the configuration to batches; which seeds order what."""

import importlib
import json

import jax
import numpy as np
import pytest

from dpo_jax import inspection
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError
from dpo_jax.losses import LOSSES
from dpo_jax.models.spec import preset
from dpo_jax.sharding import mesh as mesh_lib
from dpo_jax.wiring import checks, evaluation, feeds, reading
from dpo_jax.wiring import data as data_wiring

SPEC = preset("tiny", vocab=64, max_positions=64)


def pairs(word, count):
    """Rows told apart by the number of words in the prompt."""
    for n in range(count):
        prompt = " ".join([word] * (n + 1))
        yield {"prompt": prompt, "chosen": " was good .", "rejected": " was bad ."}


@pytest.fixture
def configured(tmp_path):
    """Two files, of 6 and 4 rows, one bad; makes the configuration of a run."""
    rows = {"one": list(pairs("the", 6)), "other": list(pairs("i", 4))}
    rows["one"][2]["rejected"] = " "
    for name, lines in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    sentiment.tokenizer().save_pretrained(tmp_path / "tokenizer")

    def make(**changed):
        config = importlib.import_module("dpo_jax.configs.quickstart").get_config()
        named = {key.replace("__", "."): value for key, value in changed.items()}
        config.update_from_flattened_dict(
            {
                "tokenizer.path": str(tmp_path / "tokenizer"),
                "data.on_bad_row": "drop",
                "data.limit": 0,
                "data.eval": "",
                "eval.rollouts": 0,
                "batch.pairs": 4,
                "batch.microbatches": 1,
                **named,
            }
        )
        for split in ("train", "eval"):
            text = config.data[split]
            config.data[split] = text.format(*(tmp_path / n for n in files))
        return config

    files = ("one.jsonl", "other.jsonl")
    return make


def loaded(config, steps=5, workdir=None):
    """Returns the data, and the loaders of a run on one device."""
    tokenizer = data_wiring.load_tokenizer(
        config.tokenizer.path, config.model, config.data.train
    )
    request = reading.request_of(config)
    data = data_wiring.load_data(request, tokenizer, workdir)
    alone = mesh_lib.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(alone):
        return data, *data_wiring.make_loaders(
            request,
            data,
            SPEC,
            alone,
            steps,
            model=config.model,
            microbatches=config.batch.microbatches,
        )


def ids(loads):
    return [loads.ids_at(step) for step in range(len(loads))]


def test_a_mixture_is_trained_on_in_its_shares(configured, tmp_path):
    """3 : 1, four pairs a step; ids are numbered through, the bad row's is missing."""
    config = configured(data__train="{0}:0.75+{1}:0.25")
    data, train, _ = loaded(config, 10, tmp_path / "run")
    assert data.sources_of("train").names == ("one", "other")
    assert [r.index for r in data.train] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    facts = feeds.make_facts(train, SPEC, None, 1.0, data.sources_of("train"))
    for number, step in enumerate(ids(train), start=1):
        assert sum(i < 6 for i in step) == 3
        told = facts(number, {})
        assert (told["one/share"], told["other/share"]) == (0.75, 0.25)
    account = data.report["train"]
    assert (account["read"], account["kept"]) == (10, 9)
    assert account["sources"]["one"]["dropped"] == {"empty": 1}
    assert account["sources"]["other"]["weight"] == 0.25
    assert account["summary"].startswith("one 5 of 6 rows; dropped 1 (1 empty)")
    # a part is kept once, whatever it is mixed with
    kept = sorted((tmp_path / "token_cache").glob("*.safetensors"))
    other, *_ = loaded(configured(data__train="{1}:2+{0}:1"), 10, tmp_path / "run")
    assert sorted((tmp_path / "token_cache").glob("*.safetensors")) == kept
    assert len(kept) == 2 and other.fingerprint != data.fingerprint


def test_a_list_without_weights_is_one_file_of_both(configured):
    """An epoch has every row once; so has an evaluation, a source at a time."""
    config = configured(data__train="{0}+{1}", data__eval="{1}+{0}")
    data, train, held_out = loaded(config, 2)
    assert len({i for step in ids(train) for i in step}) == 8
    assert ids(held_out) == [[0, 1, 2, 3], [4, 5, 7, 8], [9]]
    owners = evaluation.owners_of(held_out, data.sources_of("eval"))
    assert owners == ["other", "one", "one"]
    single = configured(data__train="{0}", data__eval="{1}")
    data, _, held_out = loaded(single, 1)
    assert evaluation.owners_of(held_out, data.sources_of("eval")) == []
    facts = feeds.make_facts(held_out, SPEC, None, 1.0, data.sources_of("eval"))
    assert not any("share" in name for name in facts(1, {}))


@pytest.mark.parametrize(
    "metric, held_out, said",
    [
        ("ones/loss", "{0}+{1}", "keep_best='ones'.*did you mean 'one'"),
        ("one/loss", "{0}", "data.eval is one source; write 'loss'"),
        ("one/scores/brier", "{0}+{1}", "metric of objective='reward'"),
    ],
)
def test_the_best_step_is_that_of_a_source_there_is(metric, held_out, said, configured):
    config = configured(data__train="{0}", data__eval=held_out)
    config.checkpoint.keep_best = metric
    config.checkpoint.every_steps = config.eval.every_steps = 5
    with pytest.raises(ConfigError, match=said):
        checks.check(config, LOSSES)
    config.data.eval = configured(data__eval="{0}+{1}").data.eval
    config.checkpoint.keep_best = "other/rewards/margins"
    checks.check(config, LOSSES)


@pytest.mark.parametrize(
    "changed, said",
    [
        (
            {"data__train": "{0}:0.7+{1}"},
            "gives '{0}' the weight 0.7 and '{1}' none; give all of them one, or none",
        ),
        ({"data__train": "{0}:0.7"}, "the weight 0.7, but there is no other source"),
        (
            {"data__train": "{0}", "data__eval": "{0}:1+{1}:2"},
            "the weight 1, but an evaluation takes each row once",
        ),
    ],
)
def test_weights_that_say_nothing_are_refused(changed, said, configured):
    config = configured(**changed)
    whole = configured(data__train="{0}+{1}").data.train.split("+")
    with pytest.raises(ConfigError) as error:
        checks.check(config, LOSSES)
    assert said.format(*whole) in str(error.value)


def test_a_row_of_a_mixture_is_shown_by_its_number(configured):
    config = configured(data__train="{0}+{1}")
    shown = inspection.tokenized(config, 7).record
    assert (shown.index, len(shown.prompt)) == (7, 3)  # <bos> i i
    assert inspection.tokenized(config, 2).record.index == 3


def test_names_of_sources_are_short_and_differ():
    parts = reading.sources.parts_of("a/x.jsonl+b/x.jsonl.gz+own/set:train", "f")
    assert reading.mixture.names_of(parts) == ["x", "x_2", "set"]


@pytest.mark.parametrize(
    "records, given",
    [
        (1000, {"steps": 2**22 + 1, "pairs": 1}),
        (1000, {"steps": 2**20, "pairs": 65}),
        (2, {"steps": 100_001, "pairs": 2}),
        (1000, {"epochs": 1e9, "pairs": 8}),
    ],
)
def test_no_more_is_planned_than_memory_and_time_hold(records, given):
    given = {"steps": 0, "epochs": 1.0} | given
    with pytest.raises(ConfigError, match="are planned: lower one"):
        data_wiring.total_steps(records, **given)


def test_one_row_may_be_passed_over_without_end():
    """It has one order, whatever the epoch."""
    steps = data_wiring.total_steps(1, steps=1_000_000, epochs=1.0, pairs=1)
    assert steps == 1_000_000


METHODS = [{}, {"loss__name": "ipo", "loss__beta": 0.7, "optimizer__lr": 1e-3}]


@pytest.mark.parametrize("train", ["{0}", "{0}:0.5+{1}:0.5", "sentiment"])
def test_runs_of_one_data_seed_see_the_same_pairs(configured, train):
    """Whatever the method and the run's own seed; another data.seed, others."""
    seen = []
    for seed, data_seed in ((1, 7), (2, 7), (7, -1), (1, 8), (1, -1)):
        for method in METHODS:
            changed = {"seed": seed, "data__seed": data_seed, "data__train": train}
            changed |= {"data__limit": 40} if train == "sentiment" else {}
            _, loads, _ = loaded(configured(**changed, **method))
            batches = [loads.batch_at(step).tokens for step in range(len(loads))]
            seen.append((ids(loads), np.concatenate(batches, axis=None).tolist()))
    assert all(each == seen[0] for each in seen[:6])
    for first, second in (seen[6:8], seen[8:]):
        assert first == second and first != seen[0]
    assert seen[6] != seen[8]


@pytest.mark.parametrize("held_out", ["{1}", "{1}+{0}", "sentiment"])
def test_an_evaluation_depends_on_no_seed(configured, held_out):
    seen = []
    for seed, data_seed in ((0, -1), (1, 7), (2, 8)):
        changed = {"seed": seed, "data__seed": data_seed}
        config = configured(data__train="{0}", data__eval=held_out, **changed)
        config.eval.limit = 20
        _, _, loads = loaded(config, 1)
        batches = [loads.batch_at(step) for step in range(len(loads))]
        seen.append([(b.tokens.tolist(), b.pairs.tolist()) for b in batches])
    assert seen[0] == seen[1] == seen[2]
