"""Mutated surroundings: variables, addresses, files of configurations and rewards."""

import os
from pathlib import Path
from random import Random

import fuzz_mutate as mutate
from fuzz_cases import WRITTEN, Base, Case, flags, showing, training
from fuzz_runs import ENDLESS, plausible

from dpo_jax import schema

ALGORITHMS = ("ppo", "rloo", "awr", "online")
SECTIONS = ("rollout.", "reward.", "online.", *(f"{name}." for name in ALGORITHMS))

PLACES = (
    *("auto", "localhost:1,2,5", "localhost:0,1,0", "localhost:99999,1,0", "h:1,0,0"),
    *(":1,1,0", "localhost:9,1", "localhost,1,0", "localhost:9,1,-1", "a b:9,1,0"),
    *("localhost:" + "9" * 5000 + ",1,0", "localhost:9,1,0,0", "\u0663:9,1,0", ","),
    *("[::1]:x,1,0", "localhost:9:1,1,0", "é:70000,1,0", "localhost:9,999999,999999"),
)
NUMBERS = ("0", "-1", "1.5", "x", "\u0663", "\u00b2", "1e3", "9" * 5000, "10" * 9)
FOLDERS = ("/dev/null", "/dev/null/x", "x" * 300, "gs://nope/x", "a\nb", "~nobody/x")
FOLDERS += ("http://x", "{case}/file", "{case}/new", "", " ", "/proc/x", "\udcff")
VARIABLES = {
    "DPO_JAX_DISTRIBUTED": PLACES[1:],  # of `auto`, jax asks the network
    "DPO_JAX_CPU_DEVICES": (*NUMBERS, "1000000", "2147483648"),
    "DPO_JAX_COMPILE_CACHE": FOLDERS,
    "TMPDIR": FOLDERS,
    "HOME": FOLDERS,
    "LANG": ("C", "xx_YY", ""),
    "TZ": ("Nowhere/Else", "x" * 300, ""),
    "COLUMNS": ("0", "-5", "x"),
    "HF_TOKEN": ("a\nb", "é", "x" * 5000),
}


def environment(random: Random, base: Base, folder: Path) -> Case:
    """A variable that this program, or a library of it, asks for when it runs."""
    (folder / "file").write_text("x")
    name = random.choice((*VARIABLES, *list(VARIABLES)[:3]))
    value = random.choice(VARIABLES[name]).replace("{case}", str(folder))
    os.environ[name] = value
    verb = showing if random.random() < 0.3 else training
    what = f"{name}={mutate.shown(value)}"
    return Case(verb(base), what, (2, 5, 7))


ADDRESSES = (
    *("gs://nope/x", "s3://nope/x", "hf://nope/x", "http://localhost:9/x", "gs://"),
    *("https://me:secret@localhost:9/x", "file:///nope/x", "ftp://localhost/x", "s3:"),
    *("memory://x", "://", "x://y", "gs:/nope/x", "gs:///x", "hf://", "abfs://a/b"),
    *("gs://no pe/x", "gs://" + "x" * 5000, "gs://nope/x.jsonl", "s3://nope/x.parquet"),
    *("http://localhost:9/x.jsonl.gz", "hf://datasets/a/b/x.jsonl", "gs://a/../b"),
    *("file://{case}/../../pairs.jsonl", "zip://x::y", "data:,x", "gs://nope/*.jsonl"),
    *("github://a:b@c/x.csv", "a/b", "a/b/c", "-/x", "a/b@main", "../a", "hf:a/b"),
)
KEYS = ("data.train", "data.eval", "model.path", "ref.path", "tokenizer.path")
KEYS += ("data.cache_dir", "ref.cache_dir", "data.chat_template", "data.path")


def remote(random: Random, base: Base, folder: Path) -> Case:
    """An address of another machine where a path is due."""
    del folder
    given = random.choice(ADDRESSES)
    run = f"--workdir={base.run}"
    ways = {
        "--workdir": [*training(base), f"--workdir={given}"],
        "--config": ["train", f"--config={given}", "--workdir={case}/run"],
        "--losses": [*training(base), f"--losses={given}"],
        "report": ["report", given, "--out={case}/report.html"],
        "report --out": ["report", str(base.run), f"--out={given}"],
        "export": ["export", f"--workdir={given}", "--out={case}/out"],
        "export --out": ["export", run, f"--out={given}"],
        "evaluate": ["evaluate", f"--workdir={given}"],
        "sample --prompts": ["sample", run, f"--prompts={given}"],
    }
    key = random.choice((*KEYS, *KEYS[:5], *ways))
    if key in ways:
        return Case(ways[key], f"{key} {mutate.shown(given)}", (2, 3, 4, 7, 8))
    changed: dict[str, object] = {key.replace(".", "__"): given}
    if key.startswith("ref."):
        mode = "live" if key == "ref.path" else "cached"
        changed |= {"objective": "preference", "loss__name": "dpo", "ref__mode": mode}
    if key == "data.chat_template":
        changed["data__train"] = base.chats
    verb = showing if random.random() < 0.3 else training
    what = f"{key}={mutate.shown(given)}"
    return Case(verb(base, **changed), what, (2, 3, 4, 7, 8))


def sampling(base: Base, algorithm: str, changed: dict[str, object]) -> list[str]:
    """Returns a `train` of one turn of an algorithm that samples."""
    values: dict[str, object] = {
        "model.path": base.model,
        "data.train": base.pairs,
        "data.max_tokens": 48,
        "data.max_prompt_tokens": 24,
        "train.steps": 1,
        "train.watchdog_seconds": 0,
        "checkpoint.every_steps": 0,
        "reward.name": "length",
        "rollout.prompts": 2,
        "rollout.samples": 2,
        "rollout.max_new_tokens": 3,
        f"{algorithm}.epochs": 1,
    }
    values |= {"batch.pairs": 2} if algorithm == "online" else {}
    config = f"--config=ppo:algorithm={algorithm}"
    return ["train", config, "--workdir={case}/run", *flags(values | changed)]


def on_policy(random: Random, base: Base, folder: Path) -> Case:
    """Keys of a run that samples."""
    del folder
    algorithm = random.choice(ALGORITHMS)
    also = ("ref.mode", "ref.sync_every_steps", "loss.name", "batch.pairs", "data.")
    also += ("eval.rollouts", "eval.best_of", "checkpoint.keep_best", "train.steps")
    own = [k for k in schema.KEYS if k.startswith((*SECTIONS[:2], f"{algorithm}."))]
    others = [k for k in schema.KEYS if k.startswith((*SECTIONS, *also))]
    drawn = {}
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice(own if random.random() < 0.7 else others)
        wild = random.random() < 0.5 or key in ("data.path", "data.train")
        drawn[key] = random.choice(WRITTEN) if wild else plausible(random, key)
    argv = sampling(base, algorithm, drawn)
    what = f"{algorithm}: " + " ".join(
        f"{k}={mutate.shown(v)}" for k, v in drawn.items()
    )
    return Case(argv, what, (2, 3, 4, 5, 6, 7))


BODIES = (
    *("1/0", "raise SystemExit(3)", "return None", "pass"),
    *("return 7", "return {}", "return []", "return config.to_dict()", "return base"),
    *("return ConfigDict()", "return ConfigDict({'train': 1})", "del config.train"),
    *("config.train = 7", "config.data.train = None", "config.data.train = 7"),
    *("config.loss.beta = 'x'", "config.loss.weights = None", "config.loss = None"),
    *("config.loss.beta = float('nan')", "config.loss.beta = 10**400", "config.x = 1"),
    *(
        "config.loss.weights = ['a']",
        "config.loss.weights = ((1,),)",
        "config.seed = {}",
    ),
    *("config.loss.weights = {1, 2}", "config.train.steps = 1.5", "config.seed = True"),
    *("config.data.train = b'x'", "config.data.train = config", "config.mesh = config"),
    *("config.seed = lambda: 1", "config.model.path = ConfigDict()", "import nowhere"),
    *("config.data.train = __import__('pathlib').Path('x')", "config.seed = base"),
    *("config.seed = __import__('numpy').int64(3)", "config.loss.beta = 1"),
    *(
        "config.seed = __import__('numpy').zeros(3)",
        "config['a.b'] = 1",
        "return config",
    ),
    *("config.train.steps = 'x' * 10**8", "config.optimizer.lr = 1j", "f()", "exit(4)"),
    *("import os; os.abort", "print('x' * 10**6)", "class E(BaseException): pass"),
    *("raise type('E', (BaseException,), {})('no')", "raise RecursionError", "yield 1"),
    *("raise MemoryError", "f = lambda: f(); f()", "raise Exception('a\\nb' * 999)"),
    *("config.loss.name = ''", "config.loss.name = '\\0'", "config.objective = None"),
    *("config.data.columns = 'x'", "config.data.columns.prompt = ['a']"),
)
HEADS = ("def get_config(arg=None):", "def get_config():", "def get_config(a, b):")
WHOLES = (
    "",
    "x = 1",
    "get_config = 7",
    "def get_config(arg=None):",
    "\0",
    "import",
    "1/0",
)
WHOLES += ("raise SystemExit", "class get_config: pass", "async def get_config(): pass")


def config_file(random: Random, base: Base, folder: Path) -> Case:
    """A file of a configuration that raises, or returns nonsense."""
    assert not any(word in body for word in ENDLESS for body in BODIES)
    head = random.choice((*HEADS, *HEADS[:1] * 8))
    body = random.choice(BODIES)
    text = (
        "from ml_collections import ConfigDict\n"
        "from dpo_jax.configs import dpo as base\n\n"
        f"{head}\n  config = base.get_config().unlock()\n  {body}\n  return config\n"
    )
    what = f"{head} {body}"
    if random.random() < 0.15:
        text = what = random.choice(WHOLES)
    path = folder / random.choice(("own.py", "own.py", "own.py", "a b.py", "own.txt"))
    path.write_text(text)
    if random.random() < 0.1:
        what = mutate.damage(random, path)
    argument = random.choice(("", "", "", ":", ":x=1", ":x", "::", ":" + "y" * 300))
    verb = showing if random.random() < 0.3 else training
    argv = [a for a in verb(base) if not a.startswith("--config=")]
    kept = [a for a in argv if not a.startswith(("--config.loss", "--config.seed"))]
    argv = [argv[0], f"--config={path}{argument}", *random.choice((kept, argv))[1:]]
    return Case(argv, f"{mutate.shown(what)}{argument[:9]}", (2, 3, 4, 5, 6))


REWARDS = (
    "return [1.0] * len(completions)",
    "return []",
    "return [1.0]",
    "return None",
    "return 1.0",
    "return 'x' * len(completions)",
    "return [None] * len(completions)",
    "return ['a'] * len(completions)",
    "return [float('nan')] * len(completions)",
    "return [float('inf')] * len(completions)",
    "return [1e308] * len(completions)",
    "return [-1e38] * len(completions)",
    "return [10**400] * len(completions)",
    "return [True] * len(completions)",
    "return [[1.0]] * len(completions)",
    "return [1j] * len(completions)",
    "return {c: 1.0 for c in completions}",
    "return (1.0 for c in completions)",
    "return __import__('numpy').arange(len(completions))",
    "return __import__('numpy').ones((len(completions), 2))",
    "return __import__('jax').numpy.arange(len(completions))",
    "return [__import__('numpy').float16(1)] * len(completions)",
    "return [1.0, None] * (len(completions) // 2)",
    "1/0",
    "raise SystemExit(3)",
    "raise type('E', (BaseException,), {})('no')",
    "f = lambda: f(); f()",
    "raise Exception('a\\nb' * 999)",
    "completions.clear(); return []",
    "prompts.append(1); return [0.0] * len(completions)",
    "import time; time.sleep(99)",
    "yield 1.0",
)
SIGNATURES = (
    "prompts, completions, **columns",
    "completions, **columns",
    "completions",
)
SIGNATURES += ("prompts, completions, nobody", "completions, *, strength=1.0")
SIGNATURES += ("*everything", "", "completions, completion_ids, **c", "prompts, /")


def rewards(random: Random, base: Base, folder: Path) -> Case:
    """A file of a user's own rewards."""
    body = random.choice(REWARDS)
    signature = random.choice((SIGNATURES[0],) * 6 + SIGNATURES)
    word = random.choice(("def", "def", "def", "async def"))
    text = f"{word} own({signature}):\n  {body}\n"
    path = folder / "own.py"
    path.write_text(text)
    algorithm = random.choice(ALGORITHMS)
    name = random.choice(("own", "own", "own+length"))
    asked = {"reward.name": name, "reward.timeout_seconds": 2}
    argv = sampling(base, algorithm, asked)
    what = f"{algorithm}, {word} own({signature}): {body}"
    return Case([*argv, f"--rewards={path}"], what, (2, 3, 6))
