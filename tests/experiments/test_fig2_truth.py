"""The truths of figure 2's tiers: VADER's absence, and RoBERTa against transformers."""

import sys
import types

import numpy as np
import pytest

from dpo_jax.cli.own_functions import rewards_of
from dpo_jax.errors import ConfigError
from experiments.fig2_imdb_frontier import roberta, siebert
from experiments.fig2_imdb_frontier.tiers import REAL


def test_without_its_package_vader_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ConfigError, match="pip install vaderSentiment"):
        rewards_of(REAL.rewards)


def test_vader_is_half_of_one_more_than_the_compound(monkeypatch):
    class Analyzer:
        def polarity_scores(self, text):
            return {"compound": {"bad": -0.5, "": 0.0, "fine": 0.6}[text]}

    package = types.SimpleNamespace(SentimentIntensityAnalyzer=Analyzer)
    monkeypatch.setitem(sys.modules, "vaderSentiment", types.ModuleType("v"))
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", package)
    vader = rewards_of(REAL.rewards)["vader"]
    said = vader(prompts=["great"] * 3, completions=["bad", "", "fine"])
    np.testing.assert_allclose(said, [0.25, 0.5, 0.8])


class Words:
    """A tokenizer of digits: ids 4 to 13 between <s> = 0 and </s> = 2, pad = 1."""

    def __call__(self, texts, **options):
        assert options["padding"] and options["truncation"]
        ids = [[0, *(4 + int(char) for char in text), 2] for text in texts]
        wide = -(-max(map(len, ids)) // options["pad_to_multiple_of"])
        wide *= options["pad_to_multiple_of"]
        mask = [[1] * len(row) + [0] * (wide - len(row)) for row in ids]
        ids = [row + [1] * (wide - len(row)) for row in ids]
        return {"input_ids": np.array(ids), "attention_mask": np.array(mask)}


@pytest.mark.parity
def test_roberta_agrees_with_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=20,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=70,
        type_vocab_size=1,
        initializer_range=0.5,
    )
    model = transformers.RobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    weights, shape = roberta.read(tmp_path)
    texts = ["1", "31415926535", "", "27"] + ["7" * 40] * 70
    read = Words()(texts, padding=True, pad_to_multiple_of=8, truncation=True)
    with torch.no_grad():
        given = {name: torch.tensor(rows) for name, rows in read.items()}
        want = model(**given).logits.numpy()
    ids, mask = read["input_ids"], read["attention_mask"].astype(bool)
    np.testing.assert_allclose(
        roberta.logits(weights, ids, mask, shape=shape), want, atol=1e-4
    )
    odds = np.exp(want[:, 1]) / np.exp(want).sum(1)
    said = siebert._scores(weights, shape, Words(), texts)
    np.testing.assert_allclose(said, odds, atol=1e-5)  # in two parts, one padded


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="not a RoBERTa"):
        roberta.read(tmp_path)
