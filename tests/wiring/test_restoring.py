"""What a run folder holds counts where a launch leaves it open."""

import importlib
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dpo_jax.config import stated, to_json
from dpo_jax.errors import RunFolderError
from dpo_jax.wiring import data, restoring

DATED = "{{ strftime_now('%H:%M') }}"


class Tokenizer:
    """A tokenizer with a chat template."""

    def __init__(self, template):
        self.chat_template = template


@pytest.fixture
def config():
    return importlib.import_module("dpo_jax.configs.quickstart").get_config()


def test_the_clock_is_stated_only_where_a_template_asks(config):
    assert data.launch_time(config.data, Tokenizer("{{ messages }}"), seconds=1) == ""
    now = data.launch_time(config.data, Tokenizer(DATED), seconds=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", now)
    set_by_hand = stated(config, {"data.now": "2026-07-26"})
    kept = data.launch_time(set_by_hand.data, Tokenizer(DATED), seconds=1)
    assert kept == "2026-07-26"


def test_a_relaunch_keeps_the_clock_of_the_first_launch(config, tmp_path):
    """Else the tokens of a dated template are others, and the run could not go on."""
    first = stated(config, {"data.now": "2026-07-26T23:59:00"})
    (tmp_path / "config.json").write_text(to_json(first))
    for fork in (False, True):
        again, forks = restoring.relaunched(config, tmp_path, fork=fork)
        assert again.data.now == first.data.now and not forks
    assert restoring.measured_config(config, tmp_path).data.now == first.data.now
    other = stated(config, {"data.now": "2026-07-27"})
    with pytest.raises(RunFolderError, match="data.now: '2026-07-26T23:59:00' → '20"):
        restoring.relaunched(other, tmp_path, fork=False)


def test_only_a_relaunch_warns_that_it_starts_over(tmp_path, monkeypatch):
    """A first launch has nothing to lose; a second one had."""
    said = []
    monkeypatch.setattr(restoring.logging, "warning", said.append)
    empty = cast(Any, SimpleNamespace(newest_verified=lambda: None))
    assert restoring.first_step(empty, 9, tmp_path, 1, forks=False) == 0 and not said
    assert restoring.first_step(empty, 9, tmp_path, 2, forks=False) == 0
    assert said == ["no checkpoint was committed here: starting from step 0"]
