"""Texts that begin alike: what they share is encoded once, to the same ids."""

import random

import pytest

from dpo_jax.data import encode

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CORPUS = ["a bc  abc cab", "ab ab\n\nb a c", "ca bb  a", "<u> a <e>b"]
PIECES = [*"abcu<>▁ \n", "  ", "ab", "<u>", "<e>", "<ua>"]


def byte_level(add_prefix_space):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS * 3, trainer)
    return made


def metaspace(scheme):
    """As Llama's and T5's: spaces become ▁, and one is put before the text."""
    trained = tokenizers.Tokenizer(tokenizers.models.Unigram())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=40,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS * 3, trainer)
    return trained


def prepended():
    """As Llama 2's: a normalizer puts ▁ before each piece."""
    made = byte_level(False)
    normalizers = tokenizers.normalizers
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.NFC()]
    )
    return made


MADE = {
    "byte level": lambda: byte_level(False),
    "byte level, spaced": lambda: byte_level(True),
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
    "prepended": prepended,
}
TOKENS = {
    "plain": {},
    "stripping": {"lstrip": True, "rstrip": True},
    "right": {"rstrip": True},
    "normalized": {"normalized": True},
    "words": {"single_word": True},
}


def tokenizer(kind, flags, extra=()):
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=MADE[kind]())
    special = [
        tokenizers.AddedToken(text, special=True, **{"normalized": False} | flags)
        for text in ("<u>", "<e>", *extra)
    ]
    made.add_special_tokens({"additional_special_tokens": special})
    return made


def groups(seed, number=60):
    draw = random.Random(seed)
    text = lambda n: "".join(draw.choices(PIECES, k=n))  # noqa: E731
    made = []
    for _ in range(number):
        start = text(draw.randint(0, 9))
        made.append([start + text(draw.randint(0, 5)) for _ in range(3)])
    return made


@pytest.mark.parametrize("flags", TOKENS)
@pytest.mark.parametrize("kind", MADE)
def test_ids_are_those_of_the_whole_texts(kind, flags):
    """Random texts full of tokens, halves of tokens and spaces beside them."""
    made = tokenizer(kind, TOKENS[flags], extra=["<ua>"] if flags == "right" else [])
    texts = groups(len(kind) + len(flags))
    found = encode.encode_alike(texts, made)
    for group, ids in zip(texts, found, strict=True):
        assert ids == made(group, add_special_tokens=False)["input_ids"], group


def test_what_texts_share_is_encoded_once():
    made = tokenizer("byte level", {})
    seen = []

    class Counting:
        is_fast, added_tokens_decoder = True, made.added_tokens_decoder

        def __call__(self, texts, **options):
            seen.extend(texts)
            return made(texts, **options)

    group = ["<u>abc ab<e><u>", "<u>abc ab<e><u> a", "<u>abc ab<e><u>b<e>"]
    (found,) = encode.encode_alike([group], Counting())
    assert found == made(group, add_special_tokens=False)["input_ids"]
    assert seen == ["<u>abc ab<e><u>", "<u>", "<u> a", "<u>b<e>"]


def test_a_token_within_another_is_no_place_to_cut():
    """<u> is part of <u><e>, which a text could have before the cut."""
    made = tokenizer("byte level", {}, extra=["<u><e>"])
    assert "<u>" not in encode._marks(made) and "<u><e>" in encode._marks(made)
    group = ["a<u>", "a<u><e>", "a<u>b"]
    (found,) = encode.encode_alike([group], made)
    assert found == made(group, add_special_tokens=False)["input_ids"]
