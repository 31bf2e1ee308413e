"""What data.train and data.eval say is split by hand-written rules."""

import pytest

from dpo_jax.data.sources.parts import Part, Slice, parts_of
from dpo_jax.errors import ConfigError


def parts(text, *files):
    return parts_of(text, "data.train", files.__contains__)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.jsonl", Part("a.jsonl")),
        ("hh:test", Part("hh", "test")),
        ("hh:0.7", Part("hh", weight=0.7)),
        ("hh:.5", Part("hh", weight=0.5)),
        ("hh:2", Part("hh", weight=2.0)),
        ("hh:test:1e-1", Part("hh", "test", weight=0.1)),
        ("owner/name:train_prefs", Part("owner/name", "train_prefs")),
        ("gs://b/a.jsonl", Part("gs://b/a.jsonl")),
        ("gs://b/a.jsonl:0.3", Part("gs://b/a.jsonl", weight=0.3)),
        ("https://h:8080/a.jsonl", Part("https://h:8080/a.jsonl")),
        ("a.jsonl[:200]", Part("a.jsonl", slice=Slice("", "200"))),
        ("a.jsonl[100:300]", Part("a.jsonl", slice=Slice("100", "300"))),
        ("a.jsonl[:10%]", Part("a.jsonl", slice=Slice("", "10%"))),
        ("a.jsonl[-50:]", Part("a.jsonl", slice=Slice("-50", ""))),
        ("hh:test:0.5[:9]", Part("hh", "test", Slice("", "9"), 0.5)),
        ("hh:test[:9]:0.5", Part("hh", "test", Slice("", "9"), 0.5)),
        ("data/[ab]*.parquet", Part("data/[ab]*.parquet")),
        ("a[:1234567890123456]", Part("a[:1234567890123456]")),
        ("data/*.parquet[:9]", Part("data/*.parquet", slice=Slice("", "9"))),
    ],
)
def test_a_part_is_source_split_slice_weight(text, expected):
    assert parts(text) == [expected]


def test_plus_joins_parts():
    assert parts("hh:0.7+a.jsonl[:20]+shp:test:0.3") == [
        Part("hh", weight=0.7),
        Part("a.jsonl", slice=Slice("", "20")),
        Part("shp", "test", weight=0.3),
    ]


@pytest.mark.parametrize(
    "name", ["a+b.jsonl", "a:0.5", "a.jsonl[:200]", "a:train[:2]", "x+y:test"]
)
def test_an_existing_file_of_that_very_name_wins(name):
    assert parts(name, name) == [Part(name)]
    assert parts(f"hh+{name}:0.5[:7]+shp", name) == [
        Part("hh"),
        Part(name, slice=Slice("", "7"), weight=0.5),
        Part("shp"),
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has an empty part"),
        ("a.jsonl+", "has an empty part"),
        ("hh++shp", "has an empty part"),
        ("hh:0", "the weight of 'hh' is no number > 0"),
        ("hh:-1", "the weight of 'hh' is no number > 0"),
        ("hh[:0]", r"the slice \[:0\] holds no row"),
        ("hh[3:3]", r"the slice \[3:3\] holds no row"),
        ("hh[50%:10%]", r"the slice \[50%:10%\] holds no row"),
        ("hh[-10:-20]", r"the slice \[-10:-20\] holds no row"),
    ],
)
def test_what_means_nothing_is_refused(text, said):
    with pytest.raises(ConfigError, match=f"data.train='.*{said}"):
        parts(text)


@pytest.mark.parametrize(
    "bounds, places",
    [
        (("", "200"), (0, 200)),
        (("100", "300"), (100, 300)),
        (("", "10%"), (0, 2)),  # 10 % of 29 is 2.9, rounded down
        (("10%", ""), (2, None)),
        (("-5", ""), (24, None)),
        (("-50", "-1"), (0, 28)),
        (("-10%", ""), (27, None)),
    ],
)
def test_a_slice_of_29_rows(bounds, places):
    found = Slice(*bounds)
    assert found.of(29) == places
    assert found.counts or found.of(None) == places


def test_a_part_is_written_as_it_is_read():
    for text in ("hh:test[:10%]", "a.jsonl[5:]", "hh"):
        assert str(parts(text)[0]) == text
