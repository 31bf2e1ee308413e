"""No arrow runs upward, and what must start in a blink imports no jax."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    "trl types errors precision files gcs folders lines heads logps columns exact"
    " markdown schema config config_files models roles sharding report",
    "losses data sampling train evals configs",
    "objectives rewards launch gallery experiments",
    "wiring build inspection booking hours",
    "cli __main__",
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms.split()}
# import no jax themselves
BLINK = (
    "config config_files schema files gcs folders lines data rewards report configs"
    " launch"
).split()


def imports(path):
    """Yields the rooms of this project that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dpo_jax" and len(parts) > 1 and parts[1] in FLOOR:
                yield parts[1]
            elif parts[0] == "experiments":
                yield parts[0]


def room_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "dpo_jax" else parts[0]


def test_no_arrow_runs_upward():
    files = list((ROOT / "dpo_jax").rglob("*.py"))
    wrong = []
    for path in files:
        here = room_of(path)
        if here == "__init__":
            continue
        assert here in FLOOR, f"{path}: give {here!r} a floor"
        for there in imports(path):
            peers = FLOOR[there] == FLOOR[here] == 1 and here != there
            if FLOOR[there] > FLOOR[here] or peers:
                wrong.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not wrong, wrong


def test_login_node_rooms_do_not_import_jax():
    """Neither themselves nor through a library, though some functions may."""
    files = [p for p in (ROOT / "dpo_jax").rglob("*.py") if room_of(p) in BLINK]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]
    assert "dpo_jax.data.loader" in names and "dpo_jax.configs.dpo" in names
    code = f"import sys, {', '.join(names)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_build_stays_small():
    """build.py wants to become main; it is cut when it grows."""
    lines = (ROOT / "dpo_jax" / "build.py").read_text().count("\n")
    assert lines <= 300


LONG = {  # functions beyond the wall; take out what was cut
    "dpo_jax/data/tokenize.py: tokenize",
    "dpo_jax/evals/served.py: openai_complete",
    "dpo_jax/models/hf.py: save_params",
    "dpo_jax/train/loop.py: run",
}


def functions(*places):
    """Yields (`path: name`, node) of the functions in files and folders of dpo_jax."""
    for place in places:
        whole = ROOT / "dpo_jax" / place
        for path in whole.rglob("*.py") if whole.is_dir() else [whole]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield f"{path.relative_to(ROOT).as_posix()}: {node.name}", node


def test_functions_are_short():
    """A function has 60 lines at most, but for those that have had more."""
    found = functions(".")
    assert {name for name, node in found if node.end_lineno - node.lineno >= 60} <= LONG


def test_few_functions_take_a_whole_configuration():
    """Values show what a function depends upon; a configuration hides it."""
    found = [
        name
        for name, node in functions("wiring", "build.py", "inspection.py", "booking.py")
        for each in (*node.args.args, *node.args.kwonlyargs)
        if each.annotation is not None and ast.unparse(each.annotation) == "Config"
    ]
    assert len(found) <= 22, found
