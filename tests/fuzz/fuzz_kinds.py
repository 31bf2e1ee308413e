"""The kinds of inputs: each function mutates one, writes it and says what is due.

A kind takes (random, base, folder of the case) and returns a `Case`; the table at the
foot names them all.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz_mutate as mutate
import numpy as np
import pyarrow
import pyarrow.parquet
from fuzz_base import FAMILIES, ROPES
from fuzz_cases import Base, Case, showing, training
from safetensors.numpy import load_file, save_file

from dpo_jax import schema

ROWS = (2, 3, 4)  # codes that blame rows, what reads them, and their template
MODEL = (2, 4)
FOLDER = (2, 3, 4, 8)

Kind = Callable[[Random, Base, Path], Case]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _reading(random: Random, base: Base, path: Path, at: int = 0) -> list[str]:
    """Shows the row, or trains on all."""
    if random.random() < 0.7:
        return showing(base, at, data__train=path)
    return training(base, data__train=path)


def jsonl(random: Random, base: Base, folder: Path) -> Case:
    """Rows of strings or chats, one of them changed."""
    source = random.choice((base.pairs, base.chats))
    rows, at = _rows(source), random.randrange(4)
    tree: Any = rows[at]
    what = mutate.change(random, tree)
    lines = [mutate.text_of(row) for row in rows]
    how = random.random()
    if how < 0.1:
        lines[at], what = mutate.nested(random), "the row nests deeply"
    elif how < 0.2:
        lines[at], what = mutate.doubled(random, rows[0]), "a key stands twice"
    elif how < 0.25:
        lines[at] = mutate.text_of(mutate.value(random))
        what = "the row is no object"
    path = folder / f"rows.jsonl{random.choice(('', '', '.gz'))}"
    data = "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")
    if how > 0.8:
        data, what = mutate.tampered(random, data)
    packed = gzip.compress(data) if path.suffix == ".gz" else data
    if how > 0.9 and path.suffix == ".gz":
        packed, what = mutate.tampered(random, packed)
    path.write_bytes(packed)
    return Case(_reading(random, base, path, at), f"{source.name}: {what}", ROWS)


def rows_alike(random: Random, base: Base, folder: Path) -> Case:
    """Rows written in another way that says the same."""
    source = random.choice((base.pairs, base.chats))
    rows = _rows(source)
    ways = ("blank lines", "CRLF", "escapes", "spaces", "key order", "gzip", "members")
    what = random.choice((*ways, "parquet", "a column nobody reads", "no last newline"))
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
    table = pyarrow.Table.from_pylist(_rows(source))
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
    table = pyarrow.Table.from_pylist(_rows(source))
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


def config(random: Random, base: Base, folder: Path) -> Case:
    """The `config.json` of a model of some family."""
    name = random.choice((*FAMILIES, *ROPES))
    shutil.copytree(base.folder / "models" / name, folder / "model")
    path = folder / "model" / "config.json"
    if random.random() < 0.15:
        tree = json.loads(path.read_bytes())
        added = mutate.value(random)
        key = random.choice(
            ("rope_scaling", "rope_parameters", "sliding_window", "head_dim", "scale")
            + ("layer_types", "auto_map", "quantization_config", "num_labels", "_x")
        )
        path.write_text(mutate.text_of(tree | {key: added}))
        what = f"{key} = {mutate.shown(added)}"
    else:
        what = mutate.rewrite(random, path)
    argv = training(base, model__path=folder / "model")
    if random.random() < 0.2:
        argv = training(
            base,
            ref__path=folder / "model",
            ref__mode="live",
            objective="preference",
            loss__name="dpo",
        )
    return Case(argv, f"{name}: {what}", MODEL)


def config_alike(random: Random, base: Base, folder: Path) -> Case:
    """A `config.json` with what no forward pass reads, or written in another way."""
    shutil.copytree(base.model, folder / "model")
    path = folder / "model" / "config.json"
    tree = json.loads(path.read_bytes())
    plain = {"use_cache": False, "initializer_range": 0.5, "torch_dtype": "float16"}
    plain |= {"architectures": ["Other"], "eos_token_id": [2, 3], "pad_token_id": 7}
    key = random.choice((*plain, "_note", "transformers.js_config"))
    added = plain[key] if key in plain else mutate.value(random)
    ways = {
        "key order": dict(reversed(tree.items())),
        f"{key} = {mutate.shown(added)}": tree | {key: added},
        "an attribute that is off": tree | {"unheard_of": None},
    }
    what = random.choice(list(ways))
    path.write_text(mutate.text_of(ways[what]))
    argv = training(base, model__path=folder / "model")
    return Case(argv, what, (), "same", "train pairs")


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def weights(random: Random, base: Base, folder: Path) -> Case:
    """Weights: their values, header, index or bytes."""
    name = random.choice(FAMILIES)
    model = folder / "model"
    shutil.copytree(base.folder / "models" / name, model)
    path = random.choice(sorted(model.glob("*.safetensors")))
    how, must = random.random(), "refuse"
    if how < 0.3:
        what = _poison(random, path)
    elif how < 0.6:
        header, body = _header(path)
        what = mutate.change(random, header)
        text = mutate.text_of(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        must = "any"
    elif how < 0.7:
        header, body = _header(path)
        tree = random.choice((None, [], 1, "x", {}, mutate.doubled(random, header)))
        text = (tree if isinstance(tree, str) else mutate.text_of(tree)).encode()
        size = random.choice((len(text), len(text), 2**63, 10**8, 0))
        path.write_bytes(size.to_bytes(8, "little") + text + body)
        what = f"header {mutate.shown(tree)} of {size}"
    elif how < 0.8:
        index = model / "model.safetensors.index.json"
        what, must = mutate.rewrite(random, index), "any"
    else:
        what, must = mutate.damage(random, path), "any"
    changed: dict[str, object] = {"model__path": model}
    argv = training(base, **changed)
    return Case(argv, f"{name}/{path.name}: {what}", (4,), must)


def _poison(random: Random, path: Path) -> str:
    """Puts one number that is none, or absurd, into a tensor."""
    tensors = load_file(path)
    name = random.choice(sorted(tensors))
    tensor = tensors[name].copy()
    number = random.choice((np.nan, np.inf, -np.inf))
    tensor.reshape(-1)[random.randrange(tensor.size)] = number
    save_file(tensors | {name: tensor}, path, metadata={"format": "pt"})
    return f"{name} holds {number}"


def tokenizer(random: Random, base: Base, folder: Path) -> Case:
    """Files of a tokenizer."""
    model = folder / "model"
    shutil.copytree(base.model, model)
    names = ["tokenizer.json", "tokenizer_config.json"]
    extra = random.choice(("special_tokens_map.json", "added_tokens.json", ""))
    if extra:
        (model / extra).write_text('{"eos_token": "</s>"}')
        names.append(extra)
    what = mutate.rewrite(random, model / random.choice(names))
    chats = {"data__train": random.choice((base.pairs, base.chats))}
    verb = showing if random.random() < 0.7 else training
    return Case(verb(base, model__path=model, **chats), what, (3, 4))


def _of_run(random: Random) -> list[str]:
    """Draws a verb that reads a run folder."""
    run = "--workdir={case}/run"
    verbs = (
        ["train", run],
        ["report", "{case}/run", "--out={case}/report.html"],
        ["export", run, "--out={case}/out"],
        ["evaluate", run],
        ["sample", run, "--limit=1", "--max_new_tokens=2"],
        ["show", run, "--explain"],
        ["train", run, "--config.train.steps=4"],
    )
    return list(random.choice(verbs))


def _entries(run: Path) -> list[Path]:
    names = ("config.json", "metrics.jsonl", "data.json", "results.json", "log.txt")
    more = ("timing.json", "report.html", ".lock", "samples.json")
    kept = sorted(run.glob("attempts/*")) + sorted(run.glob("metrics/*"))
    return [run / name for name in (*names, *more)] + kept


def run_folder(random: Random, base: Base, folder: Path) -> Case:
    """A file of a run folder."""
    run = folder / "run"
    shutil.copytree(base.run, run)
    path = random.choice(_entries(run))
    if not path.exists():
        path.write_text("[]")
    if path.name == "metrics.jsonl" and random.random() < 0.7:
        lines = path.read_text().splitlines()
        at = random.randrange(len(lines))
        tree = json.loads(lines[at])
        what = f"metrics.jsonl: {mutate.change(random, tree)}"
        lines[at] = mutate.text_of(tree)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".json" and random.random() < 0.8:
        what = mutate.rewrite(random, path)
    else:
        what = mutate.damage(random, path)
    return Case(_of_run(random), what, FOLDER)


def checkpoint(random: Random, base: Base, folder: Path) -> Case:
    """A file of the newest checkpoint, or its folder."""
    run = folder / "run"
    shutil.copytree(base.run, run)
    steps = run / "checkpoints"
    how = random.random()
    if how < 0.15:
        ways = {
            "an empty step 99": lambda: (steps / "99").mkdir(),
            "a step of a huge number": lambda: (steps / str(10**30)).mkdir(),
            "a step named in other digits": lambda: (steps / "٣").mkdir(),
            "step 4 is renamed 5": lambda: (steps / "4").rename(steps / "5"),
            "step 9 is a link": lambda: (steps / "9").symlink_to("4"),
            "a file named 7": lambda: (steps / "7").write_text(""),
            "no checkpoints": lambda: shutil.rmtree(steps),
            "checkpoints is a file": lambda: _file_for(steps),
        }
        what = random.choice(list(ways))
        ways[what]()
    elif how < 0.5:
        what = mutate.rewrite(random, steps / "4" / "MANIFEST.json")
    else:
        found = sorted(p for p in (steps / "4").rglob("*") if p.is_file())
        what = mutate.damage(random, random.choice(found))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    return Case(_of_run(random), what, FOLDER)


def _file_for(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


WRITTEN = (  # values as a command line has them
    *("0", "-1", "1", "2", "3", "1e9", "1e23", "1e400", "-1e400", "nan", "inf", "-inf"),
    *("1000000000", str(10**12), str(10**23), "9" * 5000, "0x10", "1_0", "True"),
    *("", " ", "()", "(1,)", "('a','b')", "((1,),(2,))", "[]", "{}", "None", "a,b"),
    *("x" * 300, "y" * 10_000, "../../x", "/dev/zero", "\0", "a\nb", "\u202e", "é"),
    *("(" * 200, "[" * 5000, "-" * 3000 + "1", "1+1j", "b'x'", "1e-400", "~", "/"),
)


def override(random: Random, base: Base, folder: Path) -> Case:
    """A key or two of the configuration, or a flag."""
    names = [k for k in schema.KEYS if k not in ("data.path",)]
    wide = {"objective": "preference", "loss__name": "dpo", "ref__mode": "live"}
    argv = training(base, **random.choice(({}, wide)))
    given = []
    for _ in range(random.choice((1, 1, 2))):
        key, text = random.choice(names), random.choice(WRITTEN)
        if random.random() < 0.15:
            key += random.choice(("x", ".y", "\0", " "))
        argv = [a for a in argv if not a.startswith(f"--config.{key}=")]
        given.append(f"--config.{key}={text}")
    if random.random() < 0.1:
        given.append(random.choice(("--flagfile=/nope", "--fork=x", "--index=1", "--")))
    argv += given
    what = " ".join(map(mutate.shown, given))
    return Case(argv, what, (2, 3, 4, 5, 6, 7))


def prompts(random: Random, base: Base, folder: Path) -> Case:
    """Prompts and flags of `sample`."""
    path = folder / f"prompts.jsonl{random.choice(('', '', '.gz'))}"
    rows = [
        {"prompt": row["prompt"]}
        for row in _rows(random.choice((base.pairs, base.chats)))
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


LOSSES = (
    "",
    "x = 1",
    "def",
    "1/0",
    "import nowhere",
    "raise SystemExit(3)",
    "def own(pairs, *, beta):\n  return -beta * (pairs.chosen - pairs.rejected)",
    "def own(pairs):\n  return pairs.rejected - pairs.chosen",
    "def own(delta):\n  return -delta",
    "def own(nobody, *, beta):\n  return nobody",
    "def own(delta, *, beta):\n  return 1/0",
    "def own(delta, *, beta):\n  return None",
    "def own(delta, *, beta):\n  return 'x'",
    "def own(delta, *, beta):\n  return delta.sum()",
    "def own(delta, *, beta):\n  return float(delta)",
    "def own(delta, *, beta, strength=float('nan')):\n  return delta * strength",
    "def own(delta, *, beta, strength='x'):\n  return delta * strength",
    "def own(delta, *, beta, strength):\n  return delta * strength",
    "def own(*args, **kwargs):\n  return 0.0",
    "def own(delta, *, beta):\n  import jax\n  return delta + jax.numpy.nan",
    "own = lambda delta, *, beta: delta",
    "class own:\n  pass",
    "import sys\nsys.exit(9)",
    "\0",
    "def own(delta, *, beta):\n  while True: pass",
    "x = 'y' * 10**11",
)
ENDLESS = ("while True", "10**11")  # of a user's own code: nothing here can bound it


def losses(random: Random, base: Base, folder: Path) -> Case:
    """A file of a user's own losses."""
    text = random.choice([t for t in LOSSES if not any(w in t for w in ENDLESS)])
    if random.random() < 0.2:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(("\0", "(", "é", "\t", "'")) + text[at:]
    path = folder / "own.py"
    path.write_text(text)
    what = f"own losses {mutate.shown(text)}"
    if random.random() < 0.15:
        what = mutate.damage(random, path)
    wide = {"objective": "preference", "loss__name": "own", "ref__mode": "live"}
    argv = [*training(base, **wide), f"--losses={path}"]
    return Case(argv, what, (2, 6))


KINDS: dict[str, Kind] = {
    "jsonl": jsonl,
    "rows alike": rows_alike,
    "parquet": parquet,
    "parquet alike": parquet_alike,
    "template": template,
    "config.json": config,
    "config.json alike": config_alike,
    "weights": weights,
    "tokenizer": tokenizer,
    "checkpoint": checkpoint,
    "run folder": run_folder,
    "override": override,
    "prompts": prompts,
    "losses": losses,
}
