"""What `show` prints is what training sees."""

import importlib
import json

import numpy as np
import pytest

from dpo_jax import inspection
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path):
    """Three rows: a plain one, one that must be cut, and a bad one."""
    long = " " + " ".join(["the"] * 40)
    rows = [
        {"prompt": "the movie", "chosen": " was good .", "rejected": " was bad ."},
        {"prompt": "i" + " loved the plot ." * 9, "chosen": long, "rejected": " ."},
        {"prompt": "the plot", "chosen": " was dull .", "rejected": " "},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentiment.tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = importlib.import_module("dpo_jax.configs.quickstart").get_config()
    config.data.train = str(path)
    config.data.eval = ""
    config.eval.rollouts = 0
    config.tokenizer.path = str(tmp_path / "tokenizer")
    return config


def test_ids_text_and_mask_of_a_row(config):
    row = inspection.tokenized(config, 0)
    text = inspection.as_text(row)
    words = sentiment.VOCABULARY
    prompt = [words.index(w) for w in ("<bos>", "the", "movie")]
    np.testing.assert_array_equal(row.record.prompt, prompt)
    assert "row 0: prompt 3 tokens (cut 0), chosen 4, rejected 4 (cut 0)" in text
    assert "'was good . <eos>'" in text
    assert "chosen mask  0001111  (boundary at 3)" in text


def test_the_mask_shows_whose_turns_count(config, tmp_path):
    """Of `. i loved . was good . and this . was bad`, the second and fourth turn.

    The dots are written by the template: before a turn, and to end an answer `very`.
    """
    tokenizer = sentiment.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}. {{ m.content }} {% if m.role == 'assistant' %}very "
        "{% endif %}{% endfor %}{% if add_generation_prompt %}. {% endif %}"
    )
    tokenizer.save_pretrained(config.tokenizer.path)
    roles = ("user", "assistant") * 2
    texts = ("i loved", "was good", "and this", "was bad")
    both = zip(roles, texts, strict=True)
    chat = [{"role": role, "content": text} for role, text in both]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}))
    config.objective, config.loss.name, config.ref.mode = "sft", "sft", "none"
    config.loss.beta = 0.1
    text = inspection.as_text(inspection.tokenized(config, 0))
    assert "completion mask  0000" + "111" + "0000" + "111  (boundary at 4)" in text
    config.data.scored = "completion"
    text = inspection.as_text(inspection.tokenized(config, 0))
    assert "completion mask  00000000000111  (boundary at 11)" in text
    config.data.scored = "all"
    text = inspection.as_text(inspection.tokenized(config, 0))
    assert "completion mask  01111111111111  (boundary at 1)" in text


def test_truncation_is_counted(config):
    """38 prompt and 41 response tokens: 12 are kept of the prompt, then 20."""
    row = inspection.tokenized(config, 1)
    assert len(row.record.prompt) == 12 and row.prompt_cut == 26
    assert len(row.record.responses[0]) == 20 and row.responses_cut == 21


def test_a_bad_or_missing_row_says_so(config):
    with pytest.raises(DataError, match="--index=2: .*1 empty.*:3: column .rejected."):
        inspection.tokenized(config, 2)
    with pytest.raises(DataError, match="--index=9: data.train has no such row"):
        inspection.tokenized(config, 9)


def test_where_bad_rows_are_dropped_the_next_good_one_is_shown(config, caplog):
    bad = {"prompt": "i", "chosen": " ", "rejected": " ."}
    rows = [json.dumps(bad), open(config.data.train).read()]
    open(config.data.train, "w").write("\n".join(rows))
    config.data.on_bad_row = "drop"
    with caplog.at_level("WARNING"):
        assert inspection.tokenized(config, 0).record.index == 1
    assert "row 0 is dropped, and the next is shown" in caplog.text
    with pytest.raises(DataError, match="--index=3: data.train has no such row"):
        inspection.tokenized(config, 3)


def test_scores_are_of_every_response_token_and_add_up(config):
    """A policy that starts as its reference scores every token alike: Δ = 0, ln 2."""
    row = inspection.tokenized(config, 0)
    found = inspection.explain(config, row.record, row.tokenizer, None)
    for which in (0, 1):
        own = [score for score in found.scores if score.response == which]
        assert [score.target for score in own] == list(row.record.responses[which])
    for score in found.scores:
        assert score.policy == pytest.approx(score.reference, abs=1e-6)
        assert score.policy < 0 < score.entropy
    assert found.loss == pytest.approx(np.log(2), abs=1e-6)
    total = sum(score.policy for score in found.scores if score.response == 0)
    text = told(config, row, found)
    assert f"{'chosen':<12}{'sum':>8}{total:>12.4f}{total:>12.4f}" in text
    assert "'good'" in text and "rejected" in text
    assert "loss dpo = 0.693147" in text


def told(config, row, found):
    return inspection.explained_as_text(
        row, found, objective=config.objective, loss=config.loss
    )


def test_the_verdict_of_a_pair_by_hand(config):
    """a = −1 + 3 = 2, b = −2 + 1 = −1, Δ = 3; σ(−0.5·3) = 0.1824; loss −log σ(1.5)."""
    config.loss.beta = 0.5
    row = inspection.tokenized(config, 0)
    loss = float(np.log1p(np.exp(-1.5)))
    scores = [
        inspection.Score(0, 5, -1.0, -3.0, 0.5),
        inspection.Score(1, 6, -2.0, -1.0, 0.5),
    ]
    text = told(config, row, inspection.Explained(scores, loss))
    assert (
        "chosen             5     -1.0000     -3.0000      2.0000      0.5000" in text
    )
    assert "Δ = 2.0000 − -1.0000 = 3.0000 nats" in text
    assert "gradient weight σ(−βΔ) = 0.1824 at β = 0.5" in text
    assert "loss dpo = 0.201413" in text


def test_a_reward_model_has_no_log_probs(config):
    config.objective, config.loss.name = "reward", "bradley_terry"
    config.loss.beta, config.ref.mode = 0.1, "none"
    row = inspection.tokenized(config, 0)
    with pytest.raises(ConfigError, match="--explain.*objective='reward' has none"):
        inspection.explain(config, row.record, row.tokenizer, None)
