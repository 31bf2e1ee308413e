"""Files in odd places and odd bytes: what stands beside a model, or where a path leads.

A kind takes (random, base, folder of the case), writes an input and returns a `Case`.
"""

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate as mutate
import numpy as np
import pyarrow
import pyarrow.parquet
from fuzz_cases import WRITTEN, Base, Case, showing, training
from fuzz_rows import ROWS, rows_of
from fuzz_runs import FOLDER, plausible
from fuzz_runs import of_run as reading_verb

from dpo_jax import schema

GENERATION: tuple[Any, ...] = (
    {"eos_token_id": [2, 10**12]},
    {"eos_token_id": "x"},
    {"eos_token_id": [[2]]},
    {"eos_token_id": -1},
    {"eos_token_id": 2.5},
    {"eos_token_id": {}},
    {"eos_token_id": True},
    {"eos_token_id": list(range(10**5))},
    {"max_length": 10**30, "temperature": float("nan")},
    {"pad_token_id": float("inf")},
    [],
    None,
    "x",
)
BESIDE: dict[str, tuple[Any, ...]] = {  # name of a file -> what stands in it
    "generation_config.json": GENERATION,
    "special_tokens_map.json": (
        {"eos_token": {"content": 7}},
        {"eos_token": "<none>"},
        {"additional_special_tokens": [None]},
        {"nope_token": []},
        [],
    ),
    "added_tokens.json": (
        {"<x>": 10**9},
        {"<x>": -1},
        {"<x>": 2, "<y>": 2},
        {"": 5},
        {"e": 1.5},
        {"\ud800": 300},
        [],
    ),
    "vocab.json": ({}, [], {"a": 10**9}, None),
    "chat_template.json": ({"chat_template": 7}, {"chat_template": "{{ 1/0 }}"}, []),
    "processor_config.json": ({"processor_class": 7}, []),
    "adapter_config.json": ({}, [], {"base_model_name_or_path": ["x"]}),
    "dpo_jax.json": ({}, [], {"scored": 7}, {"version": "9" * 9}),
    "config_sentence_transformers.json": ([],),
    "tokenizer_config.json": ({}, [], {"tokenizer_class": "GPT2Tokenizer"}),
}
RAW = ("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "x.tiktoken")
RAW += ("chat_template.jinja", "additional_chat_templates/x.jinja", "vocab.bpe")
RAW += ("tokenizer.model.v3", "tekken.json", "sentencepiece.bpe.model")


def beside(random: Random, base: Base, folder: Path) -> Case:
    """A file that stands beside a model's, or in the place of one."""
    model = folder / "model"
    shutil.copytree(base.model, model)
    if random.random() < 0.6:
        name = random.choice(list(BESIDE))
        found = random.choice(BESIDE[name])
        (model / name).write_text(mutate.text_of(found))
        what = f"{name} is {mutate.shown(found)}"
    else:
        path = model / random.choice(RAW)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a b\n")
        what = mutate.damage(random, path)
    verb = showing if random.random() < 0.4 else training
    data = {"data__train": random.choice((base.pairs, base.chats))}
    return Case(verb(base, model__path=model, **data), what, (3, 4, 7))


def _encoded(random: Random, data: bytes) -> tuple[bytes, str]:
    """Writes text in another way: mostly one that no reader of JSON should take."""
    at = random.randrange(max(len(data), 1))
    lines = data.splitlines(keepends=True) or [b""]
    n = random.randrange(len(lines))
    ways = {
        "a BOM": b"\xef\xbb\xbf" + data,
        "two BOMs": b"\xef\xbb\xbf" * 2 + data,
        "CRLF": data.replace(b"\n", b"\r\n"),
        "CR": data.replace(b"\n", b"\r"),
        "NEL and LS": data.replace(b"\n", "\u2028\x85".encode()),
        "NUL bytes at the end": data + b"\0" * 512,
        "NUL bytes at the start": b"\0" * 512 + data,
        "a line twice": b"".join([*lines[: n + 1], *lines[n:]]),
        "a line gone": b"".join([*lines[:n], *lines[n + 1 :]]),
        "lines backwards": b"".join(reversed(lines)),
        "the last line cut": data[: -max(len(lines[-1]) // 2, 1)],
        "a comment": b"// note\n" + data,
        "trailing commas": data.replace(b"}", b",}"),
        "single quotes": data.replace(b'"', b"'"),
        "UTF-16 without BOM": data.decode(errors="replace").encode("utf-16-le"),
        "UTF-32": data.decode(errors="replace").encode("utf-32"),
        "Latin-1": data.replace(b"a", b"\xe4"),
        "an unpaired surrogate": data.replace(b"e", b"\\ud800", 1),
        "surrogates as bytes": data.replace(b"e", b"\xed\xa0\x80", 3),
        "an overlong zero": data[:at] + b"\xc0\x80" + data[at:],
        "numbers of many digits": _digits(data, b"9" * 5000),
        "numbers of 1e999": _digits(data, b"1e999"),
        "numbers of -0": _digits(data, b"-0"),
        "numbers with a plus": _digits(data, b"+1"),
        "numbers of NaN": _digits(data, b"NaN"),
        "booleans": _digits(data, b"true"),
        "a gigabyte of zeros behind": data,
        "empty": b"",
    }
    what = random.choice(list(ways))
    return ways[what], what


def _digits(data: bytes, number: bytes) -> bytes:
    """Puts a number in the place of the value behind the first colons."""
    pieces = data.split(b": ")
    return b": ".join(
        number + p.lstrip(b"-0123456789.e+") if p[:1] in b"-0123456789" and p else p
        for p in pieces
    )


def encoding(random: Random, base: Base, folder: Path) -> Case:
    """A text file in other bytes: BOMs, ends of lines, NUL, lines in another order."""
    shutil.copytree(base.model, folder / "model")
    shutil.copy(base.pairs, folder / "rows.jsonl")
    ours = ("config.json", "metrics.jsonl", "data.json", "results.json", "timing.json")
    ours += ("attempts/0001.json", "checkpoints/4/MANIFEST.json")
    theirs = ("config.json", "tokenizer.json", "tokenizer_config.json")
    theirs += ("model.safetensors.index.json", "chat_template.jinja")
    which = random.choice(("run", "model", "rows"))
    if which == "run":
        shutil.copytree(base.run, folder / "run")
    name = random.choice(ours if which == "run" else theirs)
    path = folder / which / name if which != "rows" else folder / "rows.jsonl"
    data, what = _encoded(random, path.read_bytes())
    path.write_bytes(data)
    if "gigabyte" in what:
        os.truncate(path, 2**30)
    what = f"{which} {path.name}: {what}"
    if which == "run":
        return Case(reading_verb(random), what, FOLDER)
    data_of = {"data__train": folder / "rows.jsonl", "model__path": folder / "model"}
    if name == "chat_template.jinja":
        data_of["data__train"] = base.chats
    verb = showing if random.random() < 0.5 else training
    return Case(verb(base, **data_of), what, (3, 4))


def every_key(random: Random, base: Base, folder: Path) -> Case:
    """A JSON file all of whose values, or many, are of a wrong type."""
    in_run = random.random() < 0.6
    source = base.run if in_run else base.model
    shutil.copytree(source, folder / ("run" if in_run else "model"))
    ours = ("config.json", "data.json", "results.json", "timing.json")
    ours += ("attempts/0001.json", "export/config.json", "export/dpo_jax.json")
    theirs = ("config.json", "tokenizer.json", "tokenizer_config.json")
    name = random.choice(ours if in_run else theirs)
    path = folder / ("run" if in_run else "model") / name
    tree = json.loads(path.read_bytes())
    found = mutate.value(random)
    kind = random.choice((str, int, float, bool, list, dict, type(None)))
    for place in mutate.places(tree):
        parent = mutate.at(tree, place[:-1]) if place else tree
        old = parent[place[-1]] if place else None
        if type(old) is kind and not (isinstance(old, dict | list) and old):
            parent[place[-1]] = found
    path.write_text(mutate.text_of(tree))
    what = f"{name}: every {kind.__name__} is {mutate.shown(found)}"
    if in_run and "export" in name:
        export = folder / "run" / "export"
        verb = random.choice((showing, training))
        argv = [a for a in verb(base, model__path=export)]
        argv = [a.replace("{case}/run", "{case}/new") for a in argv]
        return Case(argv, what, (2, 3, 4, 8))
    if in_run:
        return Case(reading_verb(random), what, FOLDER)
    verb = showing if random.random() < 0.4 else training
    return Case(verb(base, model__path=folder / "model"), what, (2, 3, 4))


def edited(random: Random, base: Base, folder: Path) -> Case:
    """The `config.json` of a run, edited by hand: a value that another run may have."""
    shutil.copytree(base.run, folder / "run")
    path = folder / "run" / "config.json"
    tree = json.loads(path.read_bytes())
    said = []
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice([k for k in schema.KEYS if "watchdog" not in k])
        wild = random.random() < 0.4
        value = random.choice(WRITTEN) if wild else plausible(random, key)
        at, *steps = (tree.get("config", tree), *key.split("."))
        for step in steps[:-1]:
            at = at.setdefault(step, {})
        at[steps[-1]] = list(value) if isinstance(value, tuple) else value
        said.append(f"{key} = {mutate.shown(value)}")
    path.write_text(mutate.text_of(tree))
    if random.random() < 0.5:
        (folder / "run" / "results.json").unlink()
    return Case(reading_verb(random), ", ".join(said), (2, 3, 4, 5, 6, 7, 8))


def place(random: Random, base: Base, folder: Path) -> Case:
    """A path that leads to a folder, a loop, a device, or into something else."""
    (folder / "loop").symlink_to("loop")
    (folder / "a").mkdir()
    (folder / "a" / "b").symlink_to("..")
    shutil.copy(base.pairs, folder / "a" / "train.jsonl")
    (folder / "empty").mkdir()
    (folder / "dir.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "linked.jsonl").symlink_to(base.pairs)
    (folder / "dangling.jsonl").symlink_to("nowhere")
    (folder / "mixed").mkdir()
    os.mkfifo(folder / "mixed" / "train.jsonl")
    (folder / "file").write_text("x")
    shutil.copytree(base.run, folder / "run0")
    places = [folder / p for p in ("loop", "loop/x", "a", "a/b", "empty", "dir.jsonl")]
    places += [folder / p for p in ("pipe.jsonl", "linked.jsonl", "dangling.jsonl")]
    places += [folder / p for p in ("mixed", "file", "file/x", "run0", "run0/export")]
    places += [folder / "run0/checkpoints", folder / "run0/metrics.jsonl", folder]
    places += [Path("/dev/null"), Path("/dev/full"), Path("/proc/self/mem")]
    places += [Path("/dev/stdin"), Path("/proc/self"), Path("/"), base.pairs, base.run]
    keys = ("data.train", "data.train", "data.eval", "model.path", "tokenizer.path")
    keys += ("data.cache_dir", "ref.cache_dir", "data.chat_template", "workdir")
    key = random.choice((*keys, "resume", "ref.path", "config", "prompts", "report"))
    writes = key == "workdir" or key.endswith("cache_dir")
    below = [p for p in places if folder in [p, *p.parents] or "/dev" in str(p)]
    given = random.choice(below if writes else places)
    what = f"{key}={str(given).replace(str(folder), '…')}"
    codes = (2, 3, 4, 7, 8)
    if key == "workdir":
        argv = [a for a in training(base) if not a.startswith("--workdir")]
        return Case([*argv, f"--workdir={given}"], what, codes)
    if key == "resume":
        verb = random.choice(("export", "evaluate", "show", "sample"))
        return Case([verb, f"--workdir={given}"], what, codes)
    if key == "config":
        return Case(["train", f"--config={given}", "--workdir={case}/x"], what, codes)
    if key == "prompts":
        run = f"--workdir={base.run}"
        argv = ["sample", run, f"--prompts={given}", "--max_new_tokens=2", "--limit=2"]
        return Case(argv, what, codes)
    if key == "report":
        return Case(["report", str(given), "--out={case}/r.html"], what, codes)
    if given == Path("/") and key in ("data.train", "data.eval"):
        given = folder / "empty"  # all files of a machine: nobody means that
    changed: dict[str, object] = {key.replace(".", "__"): given}
    if key.startswith("ref."):
        mode = "live" if key == "ref.path" else "cached"
        changed |= {"objective": "preference", "loss__name": "dpo", "ref__mode": mode}
    verb = showing if random.random() < 0.4 else training
    return Case(verb(base, **changed), what, codes)


def _nested_column(random: Random, count: int) -> Any:
    """Draws a column that nests, repeats or says nothing."""
    kinds = (
        pyarrow.array([[["x"]]] * count),
        pyarrow.array([[]] * count, pyarrow.list_(pyarrow.null())),
        pyarrow.array([None] * count, pyarrow.list_(pyarrow.string())),
        pyarrow.array([{"a": {"b": [None]}}] * count),
        pyarrow.array([b"ok"] * count).dictionary_encode(),
        pyarrow.array([1] * count).dictionary_encode(),
        pyarrow.array(["x", None] * (count // 2)).dictionary_encode(),
        pyarrow.array([{}] * count, pyarrow.struct([])),
        pyarrow.array([[{"role": "user", "content": None}]] * count),
        pyarrow.array([[{"role": 1, "content": ["x"]}]] * count),
        pyarrow.array([[("user", "hello")]] * count, pyarrow.map_("string", "string")),
        pyarrow.array([np.zeros(9)] * count),
        pyarrow.array(["x" * 10**6] * count),
    )
    return random.choice(kinds)


def tables(random: Random, base: Base, folder: Path) -> Case:
    """A table that nests, is of no rows, has odd names or odd notes; or is a bomb."""
    rows = rows_of(random.choice((base.pairs, base.chats)))
    table, path = pyarrow.Table.from_pylist(rows), folder / "rows.parquet"
    name, how = random.choice(table.column_names), random.randrange(9)
    what = ""
    if how < 4:
        column = _nested_column(random, len(table))
        at = table.column_names.index(name)
        table, what = table.set_column(at, name, column), f"{name} of {column.type}"
    elif how == 4:
        odd = random.choice(("", "\0", " prompt", "Prompt", "x" * 10**5, "a.b[0]", "é"))
        table = table.append_column(odd, table.column(name))
        what = f"a column {mutate.shown(odd)}"
    elif how == 5:
        notes = {b"pandas": b"{", b"huggingface": b'{"info": 7}', b"ARROW:schema": b"x"}
        table, what = table.replace_schema_metadata(notes), "odd notes"
    elif how == 6:
        table = pyarrow.concat_tables([table] * 5).combine_chunks()
        size, count = random.choice(((10**6, 4000), (10**7, 300), (10**5, 40_000)))
        text = pyarrow.array(["x" * size])
        ids = pyarrow.array(np.zeros(count, np.int32))
        column = pyarrow.DictionaryArray.from_arrays(ids, text)
        short = pyarrow.DictionaryArray.from_arrays(ids, pyarrow.array(["abc"]))
        names = ["prompt", "chosen", "rejected"]
        random.shuffle(names)
        table = pyarrow.table([column, short, short], names=names)
        what = f"{names[0]} of {size} characters, {count} times"
    elif how == 7:
        table, what = table.select([name]), f"{name} alone"
    else:
        nulls = [pyarrow.nulls(len(table)) for _ in table.column_names]
        table, what = pyarrow.table(nulls, names=table.column_names), "all null"
    try:
        pyarrow.parquet.write_table(table, path, compression="zstd")
    except (pyarrow.ArrowException, ValueError):  # Parquet has no such column
        path = folder / "rows.arrow"
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    verb = showing if random.random() < 0.7 else training
    return Case(verb(base, data__train=path), f"{path.name}: {what}", ROWS)
