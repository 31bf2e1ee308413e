"""Figure 2's quick tier from end to end: what a run of it must show."""

import pytest

from experiments.fig2_imdb_frontier import claims, run
from experiments.fig2_imdb_frontier import points as points_lib

pytestmark = pytest.mark.nightly


def test_the_quick_tier_shows_what_it_must(tmp_path):
    command = ["--tier=quick", f"--out={tmp_path}"]
    assert run.main(command) == 0
    held = claims.check(points_lib.read(tmp_path))
    assert len(held) >= 8
    assert not [claim for claim in held if not claim.holds]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/export/*")}
    assert run.main(command) == 0  # all is done: nothing is trained again
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/export/*")}
