"""Mutated rows, templates, mappings and prompts.

A kind takes (random, base, folder of the case), writes an input and returns a `Case`.
"""

import csv
import gzip
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate as mutate
import numpy as np
import pyarrow
import pyarrow.parquet
from fuzz_cases import WRITTEN, Base, Case, showing, training

ROWS = (2, 3, 4)  # codes that blame rows, what reads them, and their template
TEXTS = (".jsonl", ".json", ".csv", ".tsv")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Reads rows."""
    return [json.loads(line) for line in path.read_text().splitlines()]


PAIRED = {"objective": "preference", "loss__name": "dpo", "ref__mode": "live"}
OBJECTIVES: dict[str, dict[str, object]] = {  # of each kind of rows
    "pairs": PAIRED,
    "chats": PAIRED,
    "singles": PAIRED | {"objective": "unpaired", "loss__name": "kto"},
    "rankings": PAIRED | {"objective": "ranking", "loss__name": "plackett_luce"},
    "messages": {"objective": "sft", "loss__name": "sft", "ref__mode": "none"},
}


def _reading(
    random: Random, base: Base, path: Path, at: int = 0, **changed: object
) -> list[str]:
    """Shows the row, or trains on all."""
    if random.random() < 0.7:
        return showing(base, at, data__train=path, **changed)
    return training(base, data__train=path, **changed)


def written(rows: list[dict[str, Any]], ending: str) -> bytes:
    """Writes rows in a format; values of tables are JSON where they are no strings."""
    if ending == ".jsonl":
        text = "".join(mutate.text_of(row) + "\n" for row in rows)
    elif ending == ".json":
        text = mutate.text_of(rows)
    else:
        stream = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = csv.DictWriter(
            stream, names, delimiter="," if ending == ".csv" else "\t"
        )
        table.writeheader()
        plain = lambda v: v if isinstance(v, str) else mutate.text_of(v)  # noqa: E731
        for row in rows:
            table.writerow({name: plain(value) for name, value in row.items()})
        text = stream.getvalue()
    return text.encode(errors="surrogatepass")


def packed(data: bytes, packing: str) -> bytes:
    """Packs a file."""
    if packing == ".gz":
        return gzip.compress(data)
    return pyarrow.compress(data, "zstd", asbytes=True) if packing == ".zst" else data


def texts(random: Random, base: Base, folder: Path) -> Case:
    """Rows of some kind in some format, one of them changed."""
    name = random.choice(list(OBJECTIVES))
    source = base.folder / f"{name}.jsonl"
    rows, at = rows_of(source), random.randrange(4)
    ending = random.choice((".jsonl", *TEXTS))
    packing = random.choice(("", "", ".gz", ".zst"))
    what = mutate.change(random, rows[at])
    data = written(rows, ending)
    how = random.random()
    if how < 0.25 and ending in (".jsonl", ".json"):
        odd = mutate.text_of(mutate.value(random))
        ways = (mutate.nested(random), mutate.doubled(random, rows[at + 1]), odd)
        line = random.choice(ways)
        lines = [mutate.text_of(row) for row in rows]
        lines[at], what = line, f"row {mutate.shown(line)}"
        joined = "[" + ",".join(lines) + "]" if ending == ".json" else "\n".join(lines)
        data = joined.encode(errors="surrogatepass")
    elif how < 0.5:
        data, what = mutate.tampered(random, data)
    data = packed(data, packing)
    if how > 0.9 and packing:
        data, what = mutate.tampered(random, data)
    path = folder / f"rows{ending}{packing}"
    path.write_bytes(data)
    if how > 0.96:
        what = f"{path.name} is {mutate.replace(random, path)}"
    argv = _reading(random, base, path, at, **OBJECTIVES[name])
    return Case(argv, f"{name}, {path.name}: {what}", ROWS)


BOMBS = {
    "blank lines": b"\n" * 2**20,
    "one line": b"x" * 2**20,
    "rows": (
        json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"
    ).encode()
    * 20_000,
    "spaces": b" " * 2**20,
    "brackets": b"[" * 2**20,
    "quotes": b'"' * 2**20,
}


def bomb(random: Random, base: Base, folder: Path) -> Case:
    """A small file that unpacks to gigabytes."""
    what = random.choice(list(BOMBS))
    packing, ending = random.choice((".gz", ".zst")), random.choice(TEXTS)
    path = folder / f"rows{ending}{packing}"
    path.write_bytes(packed(BOMBS[what], packing) * 4000)
    verb = showing if random.random() < 0.5 else training
    argv = verb(base, data__train=path)
    return Case(argv, f"{path.name}: 4 GB of {what}", ROWS)


SPECS = (
    *("prompt", "chosen", "rejected", "question", "info.post", "chosen[0].content"),
    *("messages[].content", "{prompt}", "Q: {prompt}", "{", "}", "{}", "{0}", "{{}}"),
    *("{prompt!r:>10000000000}", "{prompt.__class__}", "nope || prompt", "||", "a||"),
    *("prompt:spaced", "prompt:nope", "prompt:ids", "chosen:max", "[", "]", "[]", "."),
    *("[99999999999999999999999]", "implicit", "..", "prompt.a.b", "chosen[]", ":"),
    *("{prompt}" * 2000, "x" * 10_000, "[]" * 500, "prompt[" * 500, "\0", "\u202e"),
    *(
        "prompt,chosen",
        "chosen,rejected",
        ",",
        "prompt[-1]",
        "prompt[" + "9" * 5000 + "]",
    ),
)
PAIRS = (
    "sign:x",
    "index:y",
    "rank:z",
    "each",
    "sign:",
    "nope",
    "index:prompt",
    ":",
    "=",
)
KEPT = (
    *("status!=tie", "score>=8", "a>=2*b", "a", "==", ">", "a>b>c", "score>=1e400"),
    *("prompt==the", "prompt>1", ",", "a>=" + "9" * 5000, "!=", "prompt!=x,chosen!=y"),
)
DROPPED = ("tie", "nope", "tie,,identical", ",", "identical", "null,empty")
PARTS = (
    *(
        "[:3]",
        "[:-1]",
        "[5%:]",
        "[:0]",
        "[:10000000000000]",
        "[::2]",
        ":train",
        ":nope",
    ),
    *(
        ":0.7",
        ":-1",
        ":1e400",
        ":nan",
        "+",
        "[999:]",
        "[",
        "]",
        "[a:b]",
        ":0",
        "::",
        ":",
    ),
    *("[" + "9" * 5000 + ":]", "[:50%]", "[:150%]", "[-3:]", "[3:2]", "[:3]:0.5", "*"),
    *("+" + "sentiment", ":0.5+sentiment:0.5", ":1e-300+sentiment:1", "**/*", "?", "~"),
)


def columns(random: Random, base: Base, folder: Path) -> Case:
    """What `data.columns` and `data.train` say in words."""
    source = random.choice((base.pairs, base.chats))
    name, given = str(source), []
    if random.random() < 0.4:
        part = random.choice(PARTS)
        name += part
        given.append(f"data.train=…{part}")
    keys = ("prompt", "chosen", "rejected", "completion", "messages", "text", "margin")
    keys += (
        "responses",
        "ranking",
        "scores",
        "score_chosen",
        "system",
        "tools",
        "label",
    )
    changed: dict[str, object] = {}
    for _ in range(random.choice((1, 1, 2, 3)) if not given else 1):
        which = random.random()
        special = {"pair": PAIRS, "keep": KEPT, "drop": DROPPED, "chat": ("wrap", "no")}
        key = random.choice(list(special) if which < 0.4 else keys)
        spec = random.choice(special.get(key, SPECS))
        changed[f"data__columns__{key}"] = spec
        given.append(f"data.columns.{key}={mutate.shown(spec)}")
    verb = showing if random.random() < 0.6 else training
    argv = verb(base, data__train=name, **changed)
    return Case(argv, " ".join(given), ROWS)


def rows_alike(random: Random, base: Base, folder: Path) -> Case:
    """Rows written in another way that says the same."""
    source = random.choice((base.pairs, base.chats))
    rows = rows_of(source)
    ways = ("blank lines", "CRLF", "escapes", "spaces", "key order", "gzip", "members")
    ways += ("parquet", "a column nobody reads", "no last newline", ".json", "zstd")
    what = random.choice(ways + ((".csv", ".tsv") if source == base.pairs else ()))
    if what == "key order":
        rows = [dict(reversed(row.items())) for row in rows]
    if what == "a column nobody reads":
        rows = [row | {"note": mutate.value(Random(n))} for n, row in enumerate(rows)]
    path = folder / "rows.jsonl"
    space = (", ", ": ") if what != "spaces" else (" ,\t", " :  ")
    escaped = what != "escapes"
    lines = [json.dumps(r, separators=space, ensure_ascii=escaped) for r in rows]
    end = {"CRLF": "\r\n", "blank lines": "\n \n\n"}.get(what, "\n")
    data = end.join([*lines, ""] if what != "no last newline" else lines).encode()
    if what == "gzip":
        path, data = folder / "rows.jsonl.gz", gzip.compress(data)
    elif what == "members":
        half = data.index(b"\n") + 1
        data = gzip.compress(data[:half]) + gzip.compress(data[half:])
        path = folder / "rows.jsonl.gz"
    elif what == "zstd":
        path, data = folder / "rows.jsonl.zst", packed(data, ".zst")
    elif what in TEXTS:
        path, data = folder / f"rows{what}", written(rows, what)
    path.write_bytes(data)
    if what == "parquet":
        path = folder / "rows.parquet"
        table = pyarrow.Table.from_pylist(rows)
        size, packing = random.randrange(1, 9), random.choice(("zstd", "gzip", "none"))
        pyarrow.parquet.write_table(
            table, path, row_group_size=size, compression=packing
        )
    name = source.stem
    argv, like = random.choice(
        (
            (showing(base, data__train=path), f"show {name}"),
            (training(base, data__train=path), f"train {name}"),
        )
    )
    return Case(argv, f"{source.name}: {what}", (), "same", like)


DATES = (-(2**52), 2**52, -(10**12), 10**12, 0)  # far beyond Python's years, or not


def _odd_column(random: Random, count: int) -> Any:
    """Draws a column of a type that tables may have and rows do not."""
    drawn = random.choice(DATES)
    kinds = {
        "timestamp[ns, tz]": pyarrow.timestamp("ns", "Europe/Vienna"),
        "timestamp[us]": pyarrow.timestamp("us"),
        "timestamp[s]": pyarrow.timestamp("s"),
        "date64": pyarrow.date64(),
        "duration[s]": pyarrow.duration("s"),
        "date32": pyarrow.date32(),
        "time64": pyarrow.time64("us"),
    }
    kind = kinds[random.choice(list(kinds))]
    width = 32 if kind == pyarrow.date32() else 64
    values = np.full(count, drawn if width == 64 else drawn % 2**31, f"int{width}")
    column = pyarrow.array(values).view(kind)
    others = (
        pyarrow.array([b"\xff\x00"] * count),
        pyarrow.array([None] * count, pyarrow.null()),
        pyarrow.array([[("k", 1), ("k", 2)]] * count, pyarrow.map_("string", "int64")),
        pyarrow.array(np.full(count, np.nan)),
        pyarrow.array(["x"] * count).dictionary_encode(),
        pyarrow.array([1.5] * count, pyarrow.float16()),
        pyarrow.array([10**30] * count, pyarrow.decimal128(38)),
    )
    return random.choice((column, column, *others))


def parquet_alike(random: Random, base: Base, folder: Path) -> Case:
    """A parquet file with a strange column that nobody reads."""
    source = random.choice((base.pairs, base.chats))
    table = pyarrow.Table.from_pylist(rows_of(source))
    column = _odd_column(random, len(table))
    name = random.choice(("created", "id", "meta", "time stamp"))
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(table.append_column(name, column), path)
    argv, like = random.choice(
        (
            (showing(base, data__train=path), f"show {source.stem}"),
            (training(base, data__train=path), f"train {source.stem}"),
        )
    )
    return Case(argv, f"column {name} of {column.type}", (), "same", like)


def parquet(random: Random, base: Base, folder: Path) -> Case:
    """A parquet file with a strange column in the place of one that is read, or cut."""
    source = random.choice((base.pairs, base.chats))
    table = pyarrow.Table.from_pylist(rows_of(source))
    at = random.randrange(table.num_columns)
    name, what = table.column_names[at], "damaged"
    if random.random() < 0.6:
        column = _odd_column(random, len(table))
        table = table.set_column(at, name, column)
        what = f"column {name} of {column.type}"
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    if what == "damaged":
        what = mutate.damage(random, path)
    return Case(_reading(random, base, path), what, ROWS)


TEMPLATES = (
    "{{ 1/0 }}",
    "{{ messages[99]['content'] }}",
    "{{ 'a' * 10**9 }}",
    "{{ 'a' * 10**6 * 10**6 }}",
    "{% for i in range(10**10) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ 10.0**400 }}",
    "{{ 10**(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>2000000000}'.format(1) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ [0] * 10**10 }}",
    "{{ ([0] * 10**8) | length }}",
    "{{ 'ab' | replace('', 'x' * 10**9) }}",
    "{{ ('a' * 10**5) | replace('a', 'b' * 10**5) }}",
    "{{ messages | map(attribute='content') | join('x' * 10**9) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ undefined_name }}",
    "{{ undefined_name.attribute }}",
    "{{ raise_exception('no') }}",
    "{% if %}",
    "{{",
    "",
    " ",
    "constant",
    "\0",
    "{{ messages }}",
    "{{ messages | tojson(indent=10**8) }}",
    "{{ messages | batch(10**10, 0) | list }}",
    "{{ range(5) | slice(10**9) | list | length }}",
    "{{ strftime_now('%Y' * 10**7) }}",
    "{{ strftime_now(7) }}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(n=3) %}{% for i in range(60) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "{{ messages[0]['content'] | wordwrap(1) | indent(10**9) }}",
    "{{ lipsum(10**7) }}",
    "{{ dict(a=1).pop('b') }}",
    "{{ (1).__add__(1) }}",
    "{{ [1,2,3] | sum(start='x') }}",
    "{{ 'x'.encode('idna') }}",
    "{{ '9' * 5000 | int }}",
    "{{ ('9' * 10**6) | int }}",
    "{{ bos_token }}{{ messages[0].content }}{{ 'z' * 10**7 }}",
    "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!' | urlize }}",
)


def template(random: Random, base: Base, folder: Path) -> Case:
    """A chat template that fails, never ends or grows, as a file or in the folder."""
    text = random.choice(TEMPLATES)
    if random.random() < 0.3:
        whole = (base.model / "chat_template.jinja").read_text()
        at = random.randrange(len(whole))
        text = whole[:at] + random.choice((text, whole[at + 1 :], "{%")) + whole[at:]
    changed: dict[str, object] = {"data__train": base.chats}
    if random.random() < 0.5:
        (folder / "chat.jinja").write_text(text)
        changed["data__chat_template"] = folder / "chat.jinja"
    else:
        shutil.copytree(base.model, folder / "model")
        (folder / "model" / "chat_template.jinja").write_text(text)
        changed["model__path"] = folder / "model"
    verb = showing if random.random() < 0.8 else training
    return Case(verb(base, **changed), f"template {mutate.shown(text)}", ROWS)


def prompts(random: Random, base: Base, folder: Path) -> Case:
    """Prompts and flags of `sample`."""
    path = folder / f"prompts.jsonl{random.choice(('', '', '.gz'))}"
    rows = [
        {"prompt": row["prompt"]}
        for row in rows_of(random.choice((base.pairs, base.chats)))
    ]
    tree: Any = rows[0]
    what = mutate.change(random, tree)
    data = "".join(mutate.text_of(r) + "\n" for r in rows[:2])
    raw = data.encode(errors="surrogatepass")
    if random.random() < 0.3:
        raw, what = mutate.tampered(random, raw)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    flag, text = "limit", "2"
    if random.random() < 0.5:
        numbers = ("n", "max_new_tokens", "temperature", "top_k", "top_p", "min_p")
        flag = random.choice((*numbers, "seed", "batch", "limit", "stop", "out"))
        text = random.choice(WRITTEN)
        what += f" --{flag}={mutate.shown(text)}"
    argv = ["sample", f"--workdir={base.run}", f"--prompts={path}"]
    argv += ["--max_new_tokens=2", f"--{flag}={text}"]
    return Case(argv, what, (2, 3, 4, 7))
