"""Mutated run folders, checkpoints, overrides and files of losses."""

import json
import shutil
from pathlib import Path
from random import Random

import fuzz_mutate as mutate
from fuzz_cases import WRITTEN, Base, Case, training

from dpo_jax import schema
from dpo_jax.losses import LOSSES as LOSS_TABLE
from dpo_jax.losses import Loss
from dpo_jax.objectives import OBJECTIVES

FOLDER = (2, 3, 4, 7, 8)


def of_run(random: Random) -> list[str]:
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
    more = ("timing.json", "report.html", ".lock", "samples.json", "rollouts.json")
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
    return Case(of_run(random), what, FOLDER)


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
    return Case(of_run(random), what, FOLDER)


def _file_for(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def plausible(random: Random, key: str) -> object:
    """Draws a value that a key might well have."""
    row = schema.KEYS[key]
    if row.choices:
        return random.choice(row.choices)
    pools = {
        bool: (True, False),
        int: (0, 1, 2, 3, 5, 7, 8, 16, 33, -1),
        float: (0.0, 1e-6, 0.1, 0.5, 0.9, 1.0, 2.0, 100.0),
        tuple: ((), (1.0,), (1.0, 0.5), ("x",)),
        str: ("", "adamw", "lion", "cosine", "linear", "highest:loss", "sentiment"),
    }
    return random.choice(pools[type(row.default)])


def _judges(objective: str, row: object) -> bool:
    return isinstance(row, Loss) and OBJECTIVES[objective].judges(row)


LEFT_ALONE = ("train.steps", "train.epochs", "model.path", "data.train", "data.path")
LEFT_ALONE += ("data.columns", "train.watchdog_seconds")  # which ends with 124


def combination(random: Random, base: Base, folder: Path) -> Case:
    """Several keys at values that each might have."""
    del folder
    objective = random.choice([*OBJECTIVES, "preference"])
    fitting = [n for n, row in LOSS_TABLE.items() if _judges(objective, row)]
    names = [key for key in schema.KEYS if not key.startswith(LEFT_ALONE)]
    if random.random() < 0.7:
        names = [k for k in names if not k.startswith(("loss.", "ref.", "optimizer."))]
    values: dict[str, object] = {"objective": objective}
    values["loss.name"] = "+".join(
        random.sample(fitting, min(len(fitting), random.choice((1, 1, 2))))
    )
    modes = ("live", "live", "none", "cached")
    needs = OBJECTIVES[objective].reference
    values["ref.mode"] = random.choice(modes) if needs else "none"
    drawn = random.sample(names, random.choice((1, 1, 2)))
    values |= {key: plausible(random, key) for key in drawn}
    changed = {key.replace(".", "__"): value for key, value in values.items()}
    argv = training(base, **changed)
    if random.random() < 0.3:
        argv.append(f"--config.data.eval={base.pairs}")
    what = " ".join(f"{key}={value}" for key, value in values.items())
    return Case(argv, what, (2, 3, 4, 5, 6))


def flag(random: Random, base: Base, folder: Path) -> Case:
    """Flags of the verbs that read a run."""
    run = folder / "run"
    shutil.copytree(base.run, run)
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "model.safetensors").write_text("x")
    places = ("{case}/no/x", "{case}/file", "{case}/file/x", "{case}/full")
    places += (
        "{case}/run",
        "{case}",
        "/dev/full",
        "",
        "x" * 300,
        "{case}/new/deep/x",
        "a\nb",
        "~",
    )
    place, text = random.choice(places), random.choice(WRITTEN)
    at = "--workdir={case}/run"
    ways = (
        ["export", at, f"--out={place}"],
        ["export", at, "--out={case}/out", f"--dtype={text}"],
        ["export", f"--workdir={place}", "--out={case}/out"],
        ["evaluate", at, f"--out={place}"],
        ["evaluate", f"--workdir={place}"],
        ["report", "{case}/run", f"--out={place}"],
        ["report", "{case}/run", place, "--out={case}/report.html"],
        ["show", at, f"--index={text}"],
        ["show", f"--workdir={place}", "--explain"],
        ["sample", at, "--limit=1", "--max_new_tokens=2", f"--out={place}"],
        ["sample", f"--model={place}", at, "--limit=1", "--max_new_tokens=2"],
        ["train", f"--workdir={place}"],
        [random.choice(("train", "show", "evaluate")), f"--config={place}", at],
        [random.choice(("train", "show", "evaluate")), f"--config=dpo:{text}", at],
    )
    argv = random.choice(ways)
    what = " ".join(map(mutate.shown, argv))
    return Case(argv, what, (2, 3, 4, 7, 8))


def override(random: Random, base: Base, folder: Path) -> Case:
    """A key or two of the configuration, or a flag."""
    names = [k for k in schema.KEYS if k != "data.path" and "cache_dir" not in k]
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
