"""Every metric that a run writes is explained."""

import pytest

from dpo_jax.report import glossary
from dpo_jax.report.tables import FINAL


@pytest.mark.parametrize("name", [*FINAL, *glossary.METRICS])
def test_names_are_found(name):
    meaning, _ = glossary.captions(name)
    assert meaning and not meaning.endswith(".")


def test_a_name_of_one_source_is_explained_as_that_of_all():
    assert glossary.find("hh/rewards/margins") is glossary.METRICS["rewards/margins"]
    assert glossary.find("rewards/length/mean") is glossary.METRICS["rewards/*/mean"]
    assert glossary.find("rollouts/best_of_4") is glossary.METRICS["rollouts/best_of_*"]
    assert glossary.find("hh/share") is glossary.METRICS["*/share"]


def test_what_is_not_known_has_no_caption():
    assert glossary.captions("nosuch") == ("", "")
