"""The README and the pages name things that exist."""

import ast
import re
from pathlib import Path

from dpo_jax.cli import VERBS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
README = (ROOT / "README.md").read_text()


def page(name):
    return (PAGES / f"{name}.md").read_text()


def test_every_verb_is_a_command():
    for verb in VERBS:
        assert f"| `{verb} " in page("commands"), verb


def test_every_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"make (\w+)", README + page("contributing") + page("index"))
    for target in set(named) - {"are"}:
        assert f"\n{target}:" in makefile, target


def test_every_room_of_the_tree_exists():
    rooms = re.findall(r"^  (\w+(?:\.py|/))  ", page("contributing"), re.MULTILINE)
    assert len(rooms) > 15
    for room in rooms:
        assert (ROOT / "dpo_jax" / room).exists(), room


def test_every_link_of_the_readme_leads_somewhere():
    for there in re.findall(r"\]\(([^)#]+)\)", README):
        assert there.startswith("https://") or (ROOT / there).exists(), there


def test_every_table_of_the_pages_is_made():
    """`{{ NAME }}` is filled by docs/generate.py, read here without its libraries."""
    tree = ast.parse((ROOT / "docs" / "generate.py").read_text())
    (tables,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TABLES"
    ]
    made = {ast.literal_eval(key) for key in tables.keys}
    asked = {
        name
        for path in PAGES.glob("*.md")
        for name in re.findall(r"\{\{ (\w+) \}\}", path.read_text())
    }
    assert asked == made
