"""What is installed has all that a run needs: it starts in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENDINGS = {".py", ".html", ".css", ".toml"}


def test_an_installed_package_has_every_file_and_the_shipped_configurations(tmp_path):
    """Built as a wheel is; the checkout is out of reach of what runs there."""
    built, empty = tmp_path / "built", tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={built}"]
    subprocess.run(command, cwd=ROOT, check=True)
    there = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    files = (ROOT / "dpo_jax").rglob("*")
    assert there == {p.relative_to(ROOT) for p in files if p.suffix in ENDINGS}
    code = (
        "import dpo_jax; from dpo_jax.cli import common;"
        "from dpo_jax.configs import dpo;"
        f"assert dpo_jax.__file__.startswith({str(built)!r});"
        "config = common.load_config('quickstart:stage=sft,steps=7');"
        "assert (config.objective, config.train.steps) == ('sft', 7)"
    )
    apart = {**os.environ, "PYTHONPATH": str(built)}
    subprocess.run([sys.executable, "-c", code], cwd=empty, env=apart, check=True)
