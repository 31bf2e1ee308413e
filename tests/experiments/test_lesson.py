"""The lesson runs to its end, draws every figure, and its notebook is its script.

The script is run in a process of its own, because it turns float64 on for good. Every
equation is asserted in the script itself; that those asserts can fail is tested here by
breaking a line of it.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "from_bradley_terry_to_dpo"
SCRIPT = (FOLDER / "lesson.py").read_text("utf-8")
FIGURES = re.findall(r'"(\d\d_\w+)", OUT\)', SCRIPT)
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}


def make_notebook():
    """Imports the module; skips where nbformat is not installed."""
    pytest.importorskip("nbformat")
    path = FOLDER / "make_notebook.py"
    spec = importlib.util.spec_from_file_location("make_notebook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, *arguments):
    """Runs a script with the lesson's folder on its path."""
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=FOLDER,
        env={**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.nightly  # `make lesson` runs it too
def test_lesson_holds_and_draws_every_figure(tmp_path):
    result = run(FOLDER / "lesson.py", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr[-2000:]
    assert [name[:2] for name in FIGURES] == [f"{n:02}" for n in range(1, 19)]
    drawn = {path.stem: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert sorted(drawn) == FIGURES
    assert min(drawn.values()) > 5000  # an empty figure has about 2000 bytes


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        pytest.param(
            "BETA * (BEST - REF)",
            "2 * BETA * (BEST - REF)",
            marks=pytest.mark.nightly,  # walks to step 7
        ),
        ("powers[FIRST] / (", "powers[SECOND] / ("),
    ],
)
def test_a_wrong_equation_stops_the_lesson(tmp_path, line, broken):
    """The closed form read backwards with 2β, and Bradley-Terry upside down."""
    assert line in SCRIPT
    end = SCRIPT.index("# %% [markdown]\n# ## 8.")
    script = tmp_path / "lesson.py"
    script.write_text(SCRIPT[:end].replace(line, broken), "utf-8")
    result = run(script, f"--out={tmp_path}")
    assert result.returncode != 0
    assert "AssertionError" in result.stderr


def test_notebook_is_the_script():
    """Same cells in the same order, all code run without an error."""
    module = make_notebook()
    made = module.notebook(SCRIPT)
    kept = module.nbformat.read(FOLDER / "lesson.ipynb", as_version=4)
    assert [(c.cell_type, c.source) for c in kept.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ], "run make_notebook.py --execute"
    outputs = [out for c in kept.cells if c.cell_type == "code" for out in c.outputs]
    assert all(out.output_type != "error" for out in outputs)
    images = sum("image/png" in out.get("data", {}) for out in outputs)
    assert images == len(FIGURES)


def test_cells_are_split_at_their_marks():
    module = make_notebook()
    script = "# %% [markdown]\n# # Title\n#\n# Text\n\n# %%\nx = 1\n\n\n# %%\ny = 2\n"
    assert module.cells(script) == [
        ("markdown", "# Title\n\nText"),
        ("code", "x = 1"),
        ("code", "y = 2"),
    ]
    with pytest.raises(ValueError, match="before the first cell"):
        module.cells("x = 1\n")
    with pytest.raises(ValueError, match="in a cell of text"):
        module.cells("# %% [markdown]\nx = 1\n")


@pytest.mark.nightly
def test_notebook_runs():
    pytest.importorskip("nbclient")
    module = make_notebook()
    book = module.notebook(SCRIPT)
    os.environ["PYTHONPATH"] = str(ROOT)  # the kernel inherits it
    module.execute(book, timeout=600)
    images = [
        out
        for cell in book.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    assert len(images) == len(FIGURES)
