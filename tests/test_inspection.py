"""What `show` prints is what training sees."""

import importlib
import json

import numpy as np
import pytest

from dpo_jax import inspection
from dpo_jax.data.sources import sentiment
from dpo_jax.errors import DataError


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
    config = importlib.import_module("configs.quickstart").get_config()
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


def test_truncation_is_counted(config):
    """38 prompt and 41 response tokens: 12 are kept of the prompt, then 20."""
    row = inspection.tokenized(config, 1)
    assert len(row.record.prompt) == 12 and row.prompt_cut == 26
    assert len(row.record.responses[0]) == 20 and row.responses_cut == 21


def test_a_bad_or_missing_row_says_so(config):
    with pytest.raises(DataError, match="--index=2.*no such good row.*empty.*1"):
        inspection.tokenized(config, 2)
    with pytest.raises(DataError, match="--index=9"):
        inspection.tokenized(config, 9)


def test_scores_are_of_every_response_token_and_add_up(config):
    """A policy that starts as its reference scores every token alike."""
    row = inspection.tokenized(config, 0)
    scores = inspection.explain(config, row, None)
    for which in (0, 1):
        own = [score for score in scores if score.response == which]
        assert [score.target for score in own] == list(row.record.responses[which])
    for score in scores:
        assert score.policy == pytest.approx(score.reference, abs=1e-6)
        assert score.policy < 0 < score.entropy
    total = sum(score.policy for score in scores if score.response == 0)
    text = inspection.scores_as_text(row, scores)
    assert f"{'chosen':<10}{'sum':>8}  {total:>10.4f}" in text
    assert "'good'" in text and "rejected" in text
