"""Tables of Markdown."""

from dpo_jax import markdown


def test_a_table_has_a_line_for_each_row_and_ends_one():
    rows = iter([("`dpo`", "DPO"), ("`ipo`", "")])
    expected = "| name | source |\n|---|---|\n| `dpo` | DPO |\n| `ipo` |  |\n"
    assert markdown.table(("name", "source"), rows) == expected
