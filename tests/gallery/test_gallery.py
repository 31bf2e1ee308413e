"""The page about the losses: its numbers are the losses', and its words are escaped."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from pages import EVIL, Page

from dpo_jax import cli, gallery
from dpo_jax.cli.own_functions import losses_of
from dpo_jax.gallery import curves, figures
from dpo_jax.gallery import page as explorer
from dpo_jax.losses import LOSSES, find, options

STOPPED = {"beta_dpo", "alpha_dpo"}  # what follows the batch there has no gradient
CORNERS = {  # Δ where the slope jumps or bends within a step; how many steps to leave
    "hinge": (20.0, 1.5),
    "slic_hf": (1.0, 1.5),
    "dpop": (0.0, 8.0),
    "discopop": (0.0, 8.0),
    "arpo": (0.0, 1.5),
}
JUMPS = {"aot", "aot_unpaired"}  # wherever the moving pair overtakes another
MARGIN = (  # −log σ and kin of Δ alone
    {"dpo", "ipo", "hinge", "exo_pair", "robust", "discopop", "aot", "r_dpo", "tdpo1"}
    | {"tdpo2", "beta_dpo", "odpo", "mmpo", "d2po", "alpha_dpo", "dr_dpo", "simpo"}
    | {"rpo", "rebel"}
)


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in gallery.loss_entries(LOSSES)}


@pytest.fixture(scope="module")
def page(entries):
    text = explorer.render(list(entries.values()))
    return text, Page(text)


def test_every_loss_has_finite_numbers_and_its_own_options(entries):
    assert list(entries) == list(LOSSES)
    for name, entry in entries.items():
        arrays = [v for v in entry.curve if isinstance(v, np.ndarray)]
        assert len(arrays) == 10
        assert all(np.isfinite(v).all() for v in arrays), name
        assert tuple(entry.curve.setting) == options(find(name, LOSSES))
    assert entries["simpo"].curve.setting["beta"] == 2.0  # usual, not the default
    assert entries["hinge"].curve.setting["beta"] == 0.05


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in STOPPED])
def test_pull_is_the_slope_of_the_curve(entries, name):
    """Along Δ, where dL/dΔ = (∂L/∂a − ∂L/∂b)/2.

    A central difference is the mean slope over two steps; Simpson's rule takes it from
    the pulls (1, 4, 1)/6, to h⁴ away from corners, and to what float32 can tell.
    """
    curve = entries[name].curve
    step = curve.delta[1] - curve.delta[0]
    pull = (curve.to_chosen - curve.to_rejected) / 2
    numeric = (curve.loss[2:] - curve.loss[:-2]) / (2 * step)
    mean = (pull[:-2] + 4 * pull[1:-1] + pull[2:]) / 6
    apart = np.abs(numeric - mean) / np.abs(pull).max()
    if name in JUMPS:
        assert np.quantile(apart, 0.8) < 1e-4
        return
    at, steps = CORNERS.get(name, (math.inf, 0))
    smooth = np.abs(curve.delta[1:-1] - at) > steps * step
    assert smooth.sum() > 130
    assert apart[smooth].max() < 1e-4


@pytest.mark.parametrize(
    "name", ["kto", "nca_pair", "cal_dpo", "plackett_luce", "orpo"]
)
def test_pulls_on_either_response_are_slopes_of_the_map(entries, name):
    curve = entries[name].curve
    up, right = np.gradient(curve.map, curve.side, curve.side)
    inner = (slice(2, -2), slice(2, -2))
    for numeric, exact in ((right, curve.map_to_chosen), (up, curve.map_to_rejected)):
        size = max(np.abs(curve.map_to_chosen).max(), np.abs(exact).max())
        assert np.abs(numeric - exact)[inner].max() < 0.01 * size


def test_values_by_hand(entries):
    """At a = b = 0: ln 2 and β/2; (1/(2β))² = 25; 80 nats on 40 tokens of 2 nats."""
    middle = curves.POINTS // 2
    dpo, ipo, sft = (entries[name].curve for name in ("dpo", "ipo", "sft"))
    assert dpo.loss[middle] == pytest.approx(math.log(2), rel=1e-6)
    assert dpo.to_chosen[middle] == pytest.approx(-0.05, rel=1e-6)
    assert dpo.loss[0] == pytest.approx(math.log1p(math.exp(4)), rel=1e-6)
    assert ipo.loss[middle] == pytest.approx(25, rel=1e-6)
    assert sft.loss[middle] == pytest.approx(80, rel=1e-6)
    np.testing.assert_allclose(dpo.dpo_loss, dpo.loss, rtol=1e-6)
    simpo = entries["simpo"].curve  # the yardstick's β is 2/40
    want = np.log1p(np.exp(-0.05 * simpo.delta))
    np.testing.assert_allclose(simpo.dpo_loss, want, rtol=1e-5)
    slope = -0.05 / (1 + np.exp(0.05 * simpo.delta))
    np.testing.assert_allclose(simpo.dpo_slope, slope, rtol=1e-5)


def test_what_is_said_of_a_loss_follows_from_its_numbers(entries):
    found = {n for n, e in entries.items() if figures.is_of_margin(e.curve)}
    assert found == MARGIN
    assert {n for n, e in entries.items() if explorer.is_stopped(e.curve)} == STOPPED
    said = " ".join(explorer.facts(entries["dpo"].curve))
    assert (
        "loss is 0.693; it pulls the chosen response by +0.05 and the rejected" in said
    )
    down = " ".join(explorer.facts(entries["apo_down"].curve))
    assert "chosen response less likely on" in down and "Only Δ" not in down
    assert "narrows the margin again" in " ".join(explorer.facts(entries["ipo"].curve))


def test_dpo_in_grey_touches_each_loss(entries):
    middle = curves.POINTS // 2
    for entry in entries.values():
        curve = entry.curve
        grey = figures.touching(curve)
        own = abs(curve.to_chosen - curve.to_rejected)[middle] / 2
        assert grey[middle] == curve.loss[middle]
        slope = figures.yardstick(curve) * curve.dpo_slope[middle]
        assert -slope == pytest.approx(own)


def test_page_has_every_loss_and_fetches_nothing(page):
    text, parsed = page
    anchors = {attrs.get("id") for tag, attrs in parsed.tags if tag == "article"}
    assert anchors == set(LOSSES)
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4 * len(LOSSES)
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "script", "img", "iframe", "object")
        for key in ("src", "href", "xlink:href"):
            link = attrs.get(key, "#")
            assert link.startswith(("#", "https://arxiv.org/abs/")), (tag, attrs)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "url(http" not in text and "@import" not in text
    assert 'href="https://arxiv.org/abs/2305.18290"' in text
    for group in set(gallery.GROUPS.values()):
        assert f"<h2>{group}</h2>" in text


def test_all_words_are_escaped(entries):
    evil = explorer.Entry(
        "x", EVIL, EVIL, f"{EVIL} arXiv:2305.18290", entries["dpo"].curve
    )
    text = explorer.render([evil._replace(curve=evil.curve._replace(notes=(EVIL,)))])
    assert not {"script"} & {tag for tag, _ in Page(text).tags}
    assert "\x1b" not in text and "\u202e" not in text
    assert Page(text).text.count("<script>") == 5  # two headings and three texts


@pytest.mark.parametrize(
    ("formula", "html"),
    [
        ("s_w − s_l", "s<sub>w</sub> − s<sub>l</sub>"),
        ("Σ_{j≥k} e^(βr_j)", "Σ<sub>j≥k</sub> e<sup>βr<sub>j</sub></sup>"),
        ("γ^t on `dpo` < 1", "γ<sup>t</sup> on <code>dpo</code> &lt; 1"),
        ("reward_model", "reward_model"),
    ],
)
def test_formulas_are_set(formula, html):
    assert explorer.typeset(formula) == html


def test_pictures_are_whole_and_alike_each_time(entries):
    curve = entries["nca_pair"].curve
    for draw in (figures.loss_figure, figures.pull_figure, figures.map_figure):
        svg = draw(curve, "salt")
        assert not {"width", "height"} & set(ET.fromstring(svg).attrib)
        assert figures.INK not in svg and "currentColor" in svg
        assert draw(curve, "salt") == svg
    pull = figures.pull_figure(curve, "salt")
    assert figures.CHOSEN in pull and figures.REJECTED in pull
    assert figures.CHOSEN not in figures.pull_figure(entries["dpo"].curve, "salt")
    assert [figures.tick(v) for v in (-1600.0, 0.05, 12e6)] == ["−1.6k", "0.05", "12M"]


def test_report_draws_the_losses(entries, monkeypatch, tmp_path, capsys):
    """`--losses=` draws the table, a path draws those of the file as well."""
    drawn = lambda table: [entries[n] for n in table if n in {"dpo", "mine"}]  # noqa: E731
    monkeypatch.setattr(gallery, "loss_entries", drawn)
    monkeypatch.setitem(entries, "mine", entries["dpo"]._replace(name="mine"))
    (tmp_path / "own.py").write_text("def mine(logps): return logps.chosen\n")
    out = tmp_path / "deep" / "losses.html"
    assert cli.main(["dpo_jax", "report", "--losses=", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "1 losses" in out.read_text()
    assert (
        cli.main(
            ["dpo_jax", "report", f"--losses={tmp_path / 'own.py'}", f"--out={out}"]
        )
        == 0
    )
    assert "2 losses" in out.read_text()


def test_report_refuses_runs_beside_losses_and_files_it_cannot_write(
    entries, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(gallery, "loss_entries", lambda table: [entries["dpo"]])
    assert cli.main(["dpo_jax", "report", "runs/a", "--losses="]) == 2
    assert "report draws runs or --losses, not both" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.html"
    assert cli.main(["dpo_jax", "report", "--losses=", f"--out={out}"]) == 7
    assert "cannot write" in capsys.readouterr().err


def test_a_loss_of_a_file_is_drawn_with_its_own_option(tmp_path):
    """−log σ(βΔ) · σ(−βΔ)²: ln 2 / 4 at Δ = 0."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax\n"
        "def focal(logps, *, beta, focal_gamma=2.0):\n"
        "    x = beta * (logps.chosen - logps.rejected)\n"
        "    x -= beta * (logps.ref_chosen - logps.ref_rejected)\n"
        "    return -jax.nn.log_sigmoid(x) * jax.nn.sigmoid(-x) ** focal_gamma\n"
    )
    drawn = curves.curve("focal", losses_of(str(file)))
    assert drawn.setting["focal_gamma"] == 2.0
    np.testing.assert_allclose(drawn.loss[len(drawn.loss) // 2], np.log(2) / 4, 1e-5)
