"""Makes `lesson.ipynb` of `lesson.py`, and runs it.

    python experiments/from_bradley_terry_to_dpo/make_notebook.py --execute

The script is in percent format: `# %%` starts a cell of code, `# %% [markdown]` one of
text in comments. Without `--execute` the notebook has no outputs.
"""

import argparse
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
MARK, TEXT = "# %%", "# %% [markdown]"


def cells(script: str) -> list[tuple[str, str]]:
    """Splits a percent script into (`code` or `markdown`, source) of each cell.

    Raises:
      ValueError: if something stands before the first cell, or in a cell of text.
    """
    found: list[tuple[str, list[str]]] = []
    for line in script.splitlines():
        if line in (MARK, TEXT):
            found.append(("markdown" if line == TEXT else "code", []))
        elif not found:
            raise ValueError(f"{line!r} stands before the first cell")
        else:
            found[-1][1].append(line)
    return [(kind, _source(kind, lines)) for kind, lines in found]


def _source(kind: str, lines: list[str]) -> str:
    if kind == "markdown":
        strange = [line for line in lines if line and not line.startswith("#")]
        if strange:
            raise ValueError(f"{strange[0]!r} stands in a cell of text")
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return "\n".join(lines).strip("\n")


def notebook(script: str) -> nbformat.NotebookNode:
    """Makes a notebook without outputs; the same script gives the same bytes."""
    make = {
        "code": nbformat.v4.new_code_cell,
        "markdown": nbformat.v4.new_markdown_cell,
    }
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    book.cells = [
        make[kind](source, id=f"cell-{number:02}")
        for number, (kind, source) in enumerate(cells(script))
    ]
    return book


def execute(book: nbformat.NotebookNode, *, timeout: int) -> None:
    """Runs a notebook in place, in this folder.

    Args:
      book: gets the outputs.
      timeout: seconds that one cell may take.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(
        book, timeout=timeout, resources=resources, record_timing=False
    )
    client.execute()
    book.metadata.pop("language_info", None)  # names the Python that ran it


def main() -> None:
    """Writes the notebook beside the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--execute", action="store_true", help="run it, keep outputs")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a cell")
    parser.add_argument("--out", type=Path, default=HERE / "lesson.ipynb")
    arguments = parser.parse_args()
    book = notebook((HERE / "lesson.py").read_text("utf-8"))
    if arguments.execute:
        execute(book, timeout=arguments.timeout)
    nbformat.validate(book)
    nbformat.write(book, arguments.out)


if __name__ == "__main__":
    main()
