"""The README's table is the table, and its promises name things that exist."""

import re
from pathlib import Path

from dpo_jax.cli import VERBS
from dpo_jax.data.sources import published
from dpo_jax.losses import LOSSES, as_markdown

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_loss_table_is_the_one_in_the_code():
    assert as_markdown(LOSSES) in TEXT


def test_table_of_data_sets_is_the_one_in_the_code():
    assert published.as_markdown() in TEXT


def test_every_verb_and_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", TEXT)) - {"are"}:
        assert f"\n{target}:" in makefile, target
    for verb in VERBS:
        assert f"`{verb} " in TEXT, verb


def test_every_room_of_the_tree_exists():
    for room in re.findall(r"^  (\w+(?:\.py|/))  ", TEXT, re.MULTILINE):
        assert (ROOT / "dpo_jax" / room).exists(), room
