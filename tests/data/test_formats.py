"""What one file format says, every format says: rows, faults, and where they are."""

import csv
import gzip
import io
import json
import os
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from row_cases import located, validate

from dpo_jax.data.sources import files, formats, json_rows, tables
from dpo_jax.data.sources.files import BadRow
from dpo_jax.errors import ConfigError, DataError

ROWS = [
    {"prompt": "p", "chosen": ' a\n"b"', "rejected": " ü", "score_chosen": 2.5}
    | {"score_rejected": 1},
    {"prompt": "q, r", "chosen": " c", "rejected": "\td", "score_chosen": -1.0}
    | {"score_rejected": 0},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def as_cells(rows, delimiter):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def in_format(rows, ending):
    made = {
        ".jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
        ".json": lambda: json.dumps(rows, indent=1),
        ".csv": lambda: as_cells(rows, ","),
        ".tsv": lambda: as_cells(rows, "\t"),
    }
    return made[ending]().encode()


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        half = len(data) // 2  # of two frames, as parallel compressors write
        parts = [pyarrow.compress(p, "zstd", asbytes=True) for p in _halves(data, half)]
        data = b"".join(parts)
    path.write_bytes(data)
    return str(path)


def _halves(data, half):
    return data[:half], data[half:]


def rows_of(name, **options):
    return [row for _, row in located(name, **options)]


def checked(name, on_bad_row="error"):
    return validate(located(name), kind="pairs", format="", on_bad_row=on_bad_row)


@pytest.mark.parametrize("packed", formats.PACKED)
@pytest.mark.parametrize("ending", formats.TEXTS)
def test_every_format_gives_the_same_checked_rows(tmp_path, ending, packed):
    path = save(tmp_path / f"a{ending}{packed}", in_format(ROWS, ending))
    rows, counts = checked(path)
    assert counts.kept == 2 and [row.prompt for row in rows] == ["p", "q, r"]
    assert [row.ratings for row in rows] == [(2.5, 1.0), (-1.0, 0.0)]
    assert rows[0].responses == (' a\n"b"', " ü") and rows[1].responses[1] == "\td"
    assert {type(text) for row in rows for text in row.responses} == {str}


def test_places_say_where_a_row_begins(tmp_path):
    """The first row of CSV has a line break in a cell, so the second is on line 4."""
    lines = {
        "a.jsonl": [":1", ":2"],
        "a.json": ["[0]", "[1]"],
        "a.csv": [":2", ":4"],
    }
    for name, places in lines.items():
        path = save(tmp_path / name, in_format(ROWS, "." + name.partition(".")[2]))
        assert [where for where, _ in located(path)] == [path + at for at in places]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_names_the_same_fault_in_the_same_words(tmp_path, ending):
    bad = ROWS[0] | {"chosen": "", "prompt": "z"}
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*ROWS, bad]), path)
    else:
        save(path, in_format([*ROWS, bad], ending))
    with pytest.raises(DataError, match=r"bad rows: 1 of 3 \(1 empty\)") as error:
        checked(str(path))
    assert "column 'chosen' is empty" in str(error.value)
    renamed = [{k.replace("chosen", "choosen"): v for k, v in r.items()} for r in ROWS]
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(renamed), path)
    else:
        save(path, in_format(renamed, ending))
    with pytest.raises(DataError, match="'chosen' is missing; did you mean 'choosen'"):
        checked(str(path))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_text_that_is_not_utf8_is_a_fault_of_its_row(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        cells = pyarrow.array([b"p", b"a\xff"]).view(pyarrow.string())
        pyarrow.parquet.write_table(pyarrow.table({"prompt": cells}), path)
    else:
        rows = [{"prompt": "p"}, {"prompt": "a~"}]
        save(path, in_format(rows, ending).replace(b"~", b"\xff"))
    first, second = rows_of(str(path))
    assert first["prompt"] == "p" and isinstance(second, BadRow)
    assert second.reason == "invalid UTF-8" and "invalid UTF-8 at byte" in second.detail


@pytest.mark.parametrize(
    "text, said",
    [
        ('[{"a": 1},\n {"a": }]', r"a.json:2: malformed JSON in row \[1\]: Expecting"),
        ('[{"a": 1},\n {"a": 2', r"a.json:2: malformed JSON in row \[1\]"),
        ('[{"a": 1}\n {"a": 2}]', r"a.json:2: .*',' or ']' is due behind row \[0\]"),
        ('[{"a": 1}', r"a.json:1: .*',' or ']' is due behind row \[0\]"),
        ('[{"a": 1}]\n{', "a.json:2: malformed JSON: text behind the array"),
        ("[\n]", "a.json:1: the array is empty"),
        ("", "a.json:1: the file is empty"),
        (
            '{\n"train": []}',
            "a.json:1: malformed .* an array of objects, or one object",
        ),
        ("[" * 100_000, r"a.json:1: malformed JSON in row \[0\]"),
    ],
)
def test_a_broken_array_says_where(tmp_path, text, said):
    path = save(tmp_path / "a.json", text.encode())
    with pytest.raises(DataError, match=said):
        list(located(path))


def test_rows_of_an_array_have_the_faults_of_lines(tmp_path):
    text = '[1, {"a": 1, "a": 2}, {"b": {"c": 1, "c": 2}}, {"a": "\ufeff"}]'
    path = save(tmp_path / "a.json", b"\xef\xbb\xbf" + text.encode())
    one, two, three, good = rows_of(path)
    assert one.detail == "malformed row: a JSON object is due, not int"
    assert [two.detail, three.detail] == ["duplicate key 'a'", "duplicate key 'c'"]
    assert good == {"a": "\ufeff"}


def test_an_array_is_read_in_pieces(tmp_path, monkeypatch):
    """Pieces of 7 characters cut keys, escapes and numbers anywhere."""
    monkeypatch.setattr(json_rows, "PIECE", 7)
    rows = [{"a": "ü" * n + "\\\n", "b": [n, 1.5e10]} for n in range(20)]
    path = save(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False).encode())
    assert rows_of(path) == rows
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 30)
    with pytest.raises(DataError, match=r"row \[[1-9]\]"):
        rows_of(path)


def test_json_may_hold_lines_in_truth(tmp_path):
    path = save(tmp_path / "a.json", LINES.encode())
    assert list(located(path)) == [
        (f"{path}:{n + 1}", row) for n, row in enumerate(ROWS)
    ]


def test_cells_are_numbers_where_numbers_are_due(tmp_path):
    text = "prompt,completion,label\n1,2,True\ntrue,[3],0\n"
    path = save(tmp_path / "a.csv", text.encode())
    rows, _ = validate(located(path), kind="singles", format="", on_bad_row="error")
    assert [(row.prompt, row.responses, row.labels) for row in rows] == [
        ("1", ("2",), (1,)),
        ("true", ("[3]",), (-1,)),
    ]
    save(tmp_path / "a.csv", b"prompt,completion,label\np,c,\np,c,maybe\n")
    with pytest.raises(DataError, match="'label' is null.*'label' is str"):
        validate(located(path), kind="singles", format="", on_bad_row="error")


@pytest.mark.parametrize(
    "text, said",
    [
        ("a,b\n1,2,3\n4,5\n", "malformed row: 3 cells, but the header names 2 columns"),
        ('a,b\n"x"y,2\n4,5\n', "malformed: "),
    ],
)
def test_a_broken_row_of_cells_is_one_bad_row(tmp_path, text, said):
    path = save(tmp_path / "a.csv", text.encode())
    (where, bad), (_, good) = located(path)
    assert where == f"{path}:2" and bad.reason == "malformed"
    assert bad.detail.startswith(said) and good == {"a": "4", "b": "5"}


@pytest.mark.parametrize(
    "text, said",
    [("", "a.csv:1: the file is empty"), ("a,b,a\n", "a.csv has columns twice: a")],
)
def test_a_csv_file_that_cannot_be_read_is_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        rows_of(save(tmp_path / "a.csv", text.encode()))


def test_a_broken_zst_stream_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pyarrow.compress(LINES.encode(), "zstd", asbytes=True)[:-5])
    with pytest.raises(DataError, match="a.jsonl.zst:.*reading failed"):
        rows_of(str(path))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.zst", ".csv.gz"])
def test_a_file_that_unpacks_without_end_is_refused(tmp_path, ending, monkeypatch):
    """Of what is small nobody minds: 256 KiB of blanks are a file without rows."""
    monkeypatch.setattr(files, "LITTLE", 2**18)
    path = save(tmp_path / f"a{ending}", b"\n" * 2**24)
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        rows_of(path)
    path = save(tmp_path / f"b{ending}", b"\n" * 2**18)
    with pytest.raises(DataError, match="b.*: the file is empty|malformed|empty"):
        rows_of(path)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_good_rows_without_end_are_refused_before_the_first(
    tmp_path, ending, monkeypatch
):
    """Rows take far longer than bytes: what is refused is refused at once."""
    monkeypatch.setattr(files, "LITTLE", 2**22)
    row = json.dumps({**ROWS[0], "prompt": "p" * 4000}) + "\n"
    path = save(tmp_path / f"a{ending}", row.encode() * 2000)
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        next(formats.reader_of(path)(path, "data.train"))


@pytest.mark.parametrize("ending", [".jsonl", ".csv.gz", ".parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / f"a{ending}")
    with pytest.raises(DataError, match="is a pipe, not a file; give a file"):
        rows_of(str(tmp_path / f"a{ending}"))


def test_a_date_beyond_pythons_spoils_its_column_alone(tmp_path):
    """Year 300000, in microseconds; `to_pylist` raises on it."""
    when = pyarrow.array([2**62, 0], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    table = pyarrow.table({"prompt": ["p", "q"], "when": when})
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(table, path)
    with pytest.raises((OverflowError, ValueError)):
        table.to_pylist()
    assert [row["prompt"] for row in rows_of(path)] == ["p", "q"]
    batch = table.to_batches()[0]
    assert isinstance(tables._fields_at(batch, 0)["when"], pyarrow.DataType)


@pytest.mark.parametrize("place", [4, 30, 200, -20])
def test_a_damaged_parquet_file_is_one_error_or_other_rows(tmp_path, place):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    try:
        assert len(rows_of(str(path))) == 2
    except DataError as error:
        assert "a.parquet" in str(error)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        rows = [{"prompt": f"{number}{n}"} for n in range(4)]
        save(tmp_path / "data" / f"part-{number}.jsonl", in_format(rows, ".jsonl"))
    return tmp_path / "data"


def prompts(name, **options):
    return [row["prompt"] for row in rows_of(str(name), **options)]


@pytest.mark.parametrize("size, count", [(10**6, 4000), (10**7, 300)])
def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path, size, count):
    """A value that all rows share is stored once: the file has a few kilobytes."""
    same = np.zeros(count, np.int32)
    long = pyarrow.DictionaryArray.from_arrays(same, pyarrow.array(["x" * size]))
    table = pyarrow.table({"prompt": long})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    with pytest.raises(DataError, match="unpacks to more than 1000 times its size"):
        rows_of(str(path))


def test_one_value_of_a_table_may_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "AT_ONCE", 2**20)
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["x" * (2**20 + 1)]})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    with pytest.raises(DataError, match="prompt has 1048576 bytes for each row"):
        rows_of(str(path))


def test_rows_of_a_large_column_are_read_a_few_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "AT_ONCE", 4000)
    path = tmp_path / "a.parquet"
    rows = [{"prompt": f"{n:01000}"} for n in range(50)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), path, row_group_size=7, compression="zstd"
    )
    assert [row["prompt"] for row in rows_of(str(path))] == [r["prompt"] for r in rows]


def test_globs_and_folders_of_shards_are_one_source(folder):
    every = [f"{number}{n}" for number in range(3) for n in range(4)]
    assert prompts(folder) == prompts(folder, split="eval") == every
    assert prompts(f"{folder}/part-*.jsonl") == every
    assert prompts(f"{folder}/part-[01].jsonl") == every[:8]
    assert prompts(f"file://{folder}/part-[01].jsonl") == every[:8]
    with pytest.raises(DataError, match="no data file has such a name"):
        prompts(f"{folder}/*.parquet")
    with pytest.raises(DataError, match="no data file has such a name"):
        prompts(f"{folder}/a.jsonl[{'9' * 5000}]")  # longer than any name may be


@pytest.mark.parametrize(
    "pattern, said",
    [
        ("gs://b/*.jsonl", "install the extra `gcs`"),
        ("odd://b/*.csv", "cannot be list"),
    ],
)
def test_remote_globs_that_cannot_be_listed_are_one_error(pattern, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(DataError, match=said):
        rows_of(pattern)


def test_folders_are_read_by_splits_and_one_format(folder):
    save(folder / "dataset_infos.json", b"{}")  # about the data, and no data
    assert len(prompts(folder)) == 12
    save(folder / "my-test-1.jsonl", b'{"prompt": "t"}')
    assert prompts(folder, split="eval") == ["t"]
    assert prompts(f"{folder}:test") == ["t"]
    with pytest.raises(DataError, match="no data file with train in its name"):
        prompts(folder)
    save(folder / "more.csv", b"prompt\nx\n")
    with pytest.raises(DataError, match="several formats: .csv, .jsonl; name one"):
        prompts(folder)


@pytest.mark.parametrize(
    "text, places",
    [
        ("[:3]", range(3)),
        ("[5:7]", range(5, 7)),
        ("[-2:]", range(10, 12)),
        ("[:10%]", range(1)),
        ("[10%:]", range(1, 12)),
        ("[50%:-1]", range(6, 11)),
    ],
)
def test_slices_count_all_rows_of_the_source(folder, text, places):
    every = prompts(folder)
    assert prompts(f"{folder}{text}") == [every[place] for place in places]
    assert prompts(f"{folder}{text}", rows=1) == [every[places[0]]]


def test_a_slice_behind_the_last_row_is_refused(folder):
    with pytest.raises(DataError, match=r"the slice \[12:20\] holds no row"):
        prompts(f"{folder}[12:20]")


def test_a_file_of_that_very_name_wins(tmp_path):
    path = save(tmp_path / "a.jsonl[:1]", LINES.encode())
    with pytest.raises(DataError, match="the ending is not known"):
        rows_of(path)
    odd = save(tmp_path / "a[:1].jsonl", LINES.encode())
    assert rows_of(odd) == ROWS


def test_a_file_has_no_splits(tmp_path):
    path = save(tmp_path / "a.jsonl", LINES.encode())
    with pytest.raises(DataError, match="is no folder, and has no split to name"):
        rows_of(path + ":test")
    with pytest.raises(ConfigError, match="'sentiment:test' is generated"):
        rows_of("sentiment:test")
