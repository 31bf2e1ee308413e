"""Fills the pages with what the code says: tables of keys, losses, metrics, presets.

A line `{{ NAME }}` of a page becomes what `TABLES[NAME]` returns, so that no page says
of the code what the code does not. The pages of the experiments are their own READMEs.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dpo_jax import losses, schema, trl
from dpo_jax.configs import papers
from dpo_jax.data.sources import published
from dpo_jax.markdown import table
from dpo_jax.models.families import FAMILIES
from dpo_jax.report import glossary

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
SHOWN = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)
LINK = re.compile(r"\]\(([\w./-]+)\)")


def value(given: Any) -> str:
    """Shows a value as it is typed; a pipe would end a table's cell."""
    return f"`{given!r}`".replace("|", "\\|")


def keys() -> str:
    """Lists every key by section: default, choices or range, meaning."""
    sections: dict[str, list[Sequence[str]]] = {}
    for name, key in schema.KEYS.items():
        section = name.partition(".")[0] if "." in name else "the run"
        allowed = ", ".join(f"`{choice}`" for choice in key.choices)
        row = f"`{name}`", value(key.default), key.meaning.replace("|", "\\|"), allowed
        sections.setdefault(section, []).append(row)
    header = "key", "default", "meaning", "choices"
    return "\n".join(
        f"## {section}\n\n{table(header, rows)}" for section, rows in sections.items()
    )


def from_trl() -> str:
    """Lists TRL's options with ours, and their values where they differ."""
    rows = []
    for theirs, ours in sorted(trl.KEYS.items()):
        named = trl.VALUES.get(ours, {}).items()
        values = ", ".join(f"`{their}` → `{our}`" for their, our in named)
        rows.append((f"`{theirs}`", f"`{ours}`", values))
    return table(("TRL", "here", "values"), rows)


def metrics() -> str:
    """Lists every metric."""
    return table(
        ("name", "meaning", "unit", "a run that goes well"),
        (
            (f"`{name}`", row.meaning, row.unit or "–", row.healthy or "–")
            for name, row in glossary.METRICS.items()
        ),
    )


def presets() -> str:
    """Shows the exact settings of every preset, with what its source leaves open."""
    parts = []
    for name, preset in papers.PRESETS.items():
        rows = [
            (f"`{key}`", value(it), "ours" if key in preset.ours else "source")
            for key, it in preset.keys.items()
        ]
        rows += [
            (f"`{key}`", value(papers.CHOSEN[key]), "ours")
            for key in papers.open_keys(name)
            if key not in preset.keys
        ]
        told = f'??? note "`{name}`: {preset.source}"'
        lines = table(("key", "value", "from"), rows).splitlines()
        parts.append("\n".join([told, "", *(f"    {line}" for line in lines)]))
    return "\n\n".join(parts)


def usual() -> str:
    """Lists what each loss is usually run at, where that differs from the default."""
    return table(
        ("loss", "usual setting"),
        (
            (
                f"`{name}`",
                ", ".join(f"`loss.{key}={it}`" for key, it in loss.usual.items()),
            )
            for name, loss in losses.LOSSES.items()
            if loss.usual
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "data_sets": published.as_markdown,
    "families": lambda: ", ".join(f"`{name}`" for name in FAMILIES),
    "from_trl": from_trl,
    "keys": keys,
    "losses": lambda: losses.as_markdown(losses.LOSSES),
    "metrics": metrics,
    "presets": presets,
    "usual": usual,
}


def experiment_pages() -> dict[Path, str]:
    """Names the page of each Markdown file of an experiment."""
    found = sorted(EXPERIMENTS.rglob("*.md"))
    return {
        path: f"experiments/{'_'.join(path.relative_to(EXPERIMENTS).parts[:-1])}"
        f"{'' if path.name == 'README.md' else '_' + path.stem}.md"
        for path in found
        if path.name == "README.md" or path.stem.startswith("what_")
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes in the pages of the experiments, and the figures that they show."""
    pages = experiment_pages()
    for path, page in pages.items():
        figures: set[Path] = set()

        def relinked(found: re.Match[str], path=path, figures=figures) -> str:
            there = (path.parent / found[1]).resolve()
            if there in pages:
                return f"]({Path(pages[there]).name})"
            if there.suffix == ".png" and there.exists():
                figures.add(there)
                return f"]({there.parent.name}_{there.name})"
            return found[0]

        text = LINK.sub(relinked, path.read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
        for figure in figures:
            name = f"experiments/{figure.parent.name}_{figure.name}"
            files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills the places of tables."""
    return SHOWN.sub(lambda found: TABLES[found[1]](), markdown)
