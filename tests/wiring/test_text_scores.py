"""A reward model as a judge of texts: by its own tokenizer, whoever was sampled."""

import json

import numpy as np
import pytest

from dpo_jax.errors import ConfigError, DataError
from dpo_jax.evals.judges import Answer, Comparison
from dpo_jax.rewards import REWARDS
from dpo_jax.sharding.mesh import make_mesh
from dpo_jax.wiring import benches, text_scores
from tests.wiring.test_scoring import SPEC, TOKENIZER, alone, saved
from tests.wiring.test_turns import configured

pytestmark = pytest.mark.losses
MESH = make_mesh(data=-1, fsdp=1, tensor=1)
PROMPTS = ["the movie was", "i loved", "the plot was"]
TEXTS = [" superb", " not great", " dull ."]


def scores_of(folder, **given):
    config = configured("ppo", **{"reward.path": folder, **given})
    return text_scores.of_reward(config, "model", REWARDS, MESH)


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("reward"))


def answers(ended=True):
    return [
        Answer(prompt, text, ended) for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]


def by_hand(folder, ended):
    """Each text alone in a row, read at its last token."""
    from dpo_jax.models import hf

    params = hf.load_params(folder, SPEC)
    rows = [
        TOKENIZER(prompt)["input_ids"]
        + TOKENIZER(text, add_special_tokens=False)["input_ids"]
        + [TOKENIZER.eos_token_id] * ended
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    return [alone(params, ids) for ids in rows]


@pytest.mark.parametrize("ended", [True, False])
def test_scores_are_the_models_own_of_its_own_tokens(ended, reward):
    """One BOS, EOS behind what ended; alone = together, whatever the order."""
    scores = scores_of(reward)
    want = by_hand(reward, ended)
    np.testing.assert_allclose(scores(answers(ended)), want, atol=1e-5)
    again = scores_of(reward)(answers(ended)[::-1])
    np.testing.assert_allclose(again, want[::-1], atol=1e-5)


def test_a_judge_of_scores_prefers_the_higher_and_asks_once(reward):
    calls = []

    def counted(found):
        calls.append(len(found))
        return scores(found)

    scores = scores_of(reward)
    values = scores(answers())
    judge = text_scores.judge_of(text_scores.once(counted), "model")
    one, other, third = answers()
    said = judge.ask([Comparison(one, other), Comparison(other, one)])
    want = float(values[0] > values[1])
    np.testing.assert_array_equal(said.votes, [[want] * 2, [1 - want] * 2])
    judge.ask([Comparison(one, third)])
    assert calls == [2, 1]


def test_an_answer_without_a_token_has_no_score(reward):
    values = scores_of(reward)([Answer("i loved", "", ended=False), answers()[0]])
    assert np.isnan(values[0]) and np.isfinite(values[1])
    votes = text_scores.judge_of(lambda found: np.full(len(found), np.nan), "x").ask(
        [Comparison(*answers()[:2])]
    )
    assert votes.absent == {"no score": 2} and np.isnan(votes.votes).all()


def test_tokens_are_counted_where_a_reward_names_them():
    config = configured("ppo", **{"reward.name": "length"})
    scores = text_scores.of_reward(config, "length", REWARDS, MESH)
    np.testing.assert_array_equal(scores(answers()), [2, 3, 3])  # with EOS


def test_a_model_judge_needs_a_model():
    config = configured("ppo", **{"reward.path": ""})
    with pytest.raises(ConfigError, match="reward.path; set it"):
        text_scores.of_reward(config, "model", REWARDS, MESH)


def test_rewardbench_of_a_reward_model(reward):
    """Each score is the model's own; where the right answer stands changes nothing."""
    rows = [
        ("row 0", {"id": "1", "subset": "Math", "prompt": PROMPTS[0]}),
        ("row 1", {"id": "2", "subset": "Math", "prompt": PROMPTS[1]}),
    ]
    scores = scores_of(reward)
    wants = []
    for at, (_, fields) in enumerate(rows):
        order = [TEXTS[at], *(text for text in TEXTS if text != TEXTS[at])]
        fields |= {"chosen": order[:1], "rejected": order[1:]}
        own = scores([Answer(fields["prompt"], text) for text in order])
        wants.append(float(own[0] == own.max()))
    told = benches.rewardbench2(rows, scores, as_chats=False)
    assert told["subsets"]["Math"]["value"] == np.mean(wants)
    assert told["mean_of_subsets"] == np.mean(wants)
    flat = benches.rewardbench2(rows, lambda a: np.zeros(len(a)), as_chats=False)
    assert flat["mean_of_subsets"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="row 0: an answer has no score"):
        benches.rewardbench2(rows, lambda a: np.full(len(a), np.nan), as_chats=False)


def test_rewardbench_asks_chat_models_in_chats():
    seen = []

    def scores(answers):
        seen.extend(answers)
        return np.arange(len(answers), 0.0, -1)

    row = {"id": "1", "subset": "Math", "prompt": "p", "chosen": ["x"], "rejected": "y"}
    with pytest.raises(DataError, match="'rejected' is str; list is due"):
        benches.rewardbench2([("row 0", row)], scores, as_chats=True)
    row["rejected"] = ["y", "z"]
    told = benches.rewardbench2([("row 0", row)], scores, as_chats=True)
    assert told["mean_of_subsets"] == 1.0
    assert {str(each.prompt) for each in seen} == {"[{'role': 'user', 'content': 'p'}]"}


def test_bench_writes_what_it_found(reward, tmp_path, capsys):
    from dpo_jax import cli

    row = {"id": "1", "subset": "Math", "prompt": PROMPTS[0], "chosen": TEXTS[:1]}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({**row, "rejected": TEXTS[1:]}) + "\n")
    flags = ["--name=rewardbench2", f"--data={data}", f"--out={tmp_path}/out"]
    flags += [f"--config.reward.path={reward}"]
    assert cli.main(["dpo_jax", "bench", *flags]) == 0, capsys.readouterr().err
    told = json.loads((tmp_path / "out/rewardbench2.json").read_text())
    assert told["model"] == reward and told["as_chats"] is False
    assert told["subsets"]["Math"]["prompts"] == 1
    assert "mean of subsets" in capsys.readouterr().out
