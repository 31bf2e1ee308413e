"""Tables of Markdown: of the documentation, of sweeps and of experiments."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Renders a table, with a line break at its end; cells are Markdown themselves."""
    lines = (f"| {' | '.join(row)} |\n" for row in rows)
    return f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n" + "".join(lines)
