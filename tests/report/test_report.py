"""Reports: what is read, what is shown, and that nothing from a run is trusted."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from pages import EVIL, Page

from dpo_jax.errors import DataError, WriteError
from dpo_jax.report import figures, frontier, html, runs, tables

SHOWN = "<script>alert('x')</script>␛[31mred & \ufffdback\ufffd"
CONFIG = {
    "seed": 1,
    "loss": {"name": "dpo", "beta": 0.1},
    "data": {"train": "sentiment", "eval": ""},
}
DATA = {"read": 1000, "dropped": {"empty": 3, "identical": 2}, "cut": 41}
SVG = "{http://www.w3.org/2000/svg}"


def line(step, split="train", **values):
    return json.dumps({"step": step, "split": split, **values})


def write_run(folder, lines=None, **files):
    """Writes a small run; `files` are JSON values by the stem of their name."""
    folder.mkdir(parents=True)
    if lines is None:
        lines = [
            *(line(s, loss=0.7 - s / 100, lr=1e-6 * s) for s in range(1, 6)),
            line(5, "eval", loss=0.5, **{"rewards/accuracies": 0.75}),
        ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for stem, value in {"config": CONFIG, "data": DATA, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(value))
    return folder


def test_load_reads_all_files_and_leaves_out_a_half_line(tmp_path):
    folder = write_run(tmp_path / "a")
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "split": "tr')
    run = runs.load(folder)
    assert run.name == "a"
    assert (run.config, run.data) == (CONFIG, DATA)
    assert (run.samples, run.results) == ([], {})
    steps, values = runs.series(run, "train", "loss")
    assert steps == [1, 2, 3, 4, 5]
    assert values == pytest.approx([0.69, 0.68, 0.67, 0.66, 0.65])
    assert runs.series(run, "eval", "loss") == ([5], [0.5])
    assert runs.names([run]) == ["loss", "lr", "rewards/accuracies"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    folder = write_run(tmp_path / "a", [line(1, loss=1.0), "{", line(3, loss=1.0)])
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not a metrics line"):
        runs.load(folder)


def test_missing_and_empty_metrics_of_several_runs_are_told_together(tmp_path):
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(DataError) as caught:
        runs.load_all([empty, tmp_path / "missing", write_run(tmp_path / "good")])
    told = str(caught.value)
    assert f"{empty}: metrics.jsonl is empty; name the --workdir of" in told
    assert f"{tmp_path / 'missing'}: metrics.jsonl is missing" in told
    with pytest.raises(DataError, match="name at least one"):
        runs.load_all([])


@pytest.mark.parametrize(
    ("stem", "value", "told"),
    [
        ("config", [], "must hold a JSON dict, found list"),
        ("samples", [{"prompt": "x"}], "sample 0 must hold the strings"),
        ("samples", ["x"], "sample 0 must hold the strings"),
        (
            "samples",
            [{"prompt": "", "before": "", "after": "", "reward_after": "high"}],
            "numbers as rewards",
        ),
        ("results", {"rows": [{"name": "a", "values": {"x": [1]}}]}, "row 0 must hold"),
        ("results", {"rows": [{"values": {}}]}, "row 0 must hold a name"),
        ("frontier", [], "must hold a JSON dict"),
        ("frontier", {"measure": "r", "frontier": 3, "best_of": []}, "finite numbers"),
        (
            "frontier",
            {"measure": "r", "frontier": [{"kl": 1}], "best_of": []},
            "finite",
        ),
        (
            "frontier",
            {"measure": 1, "frontier": [], "best_of": []},
            "a text as measure",
        ),
        (
            "frontier",
            {
                "measure": "r",
                "frontier": [],
                "best_of": [{"m": 10**400, "kl_bound": 0, "reward": float("nan")}],
            },
            "finite numbers",
        ),
    ],
)
def test_malformed_files_are_data_errors(tmp_path, stem, value, told):
    with pytest.raises(DataError, match=told):
        runs.load(write_run(tmp_path / "a", **{stem: value}))


def test_config_that_is_not_json(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: not JSON"):
        runs.load(folder)


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    one, two = write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")
    assert [r.name for r in runs.load_all([one, two])] == [str(one), str(two)]


def test_final_takes_the_last_value_and_prefers_eval(tmp_path):
    run = runs.load(write_run(tmp_path / "a"))
    assert tables.final([run]) == tables.ReportTable(
        "At the end of training",
        ("run", "step", "eval/loss", "eval/rewards/accuracies"),
        (("a", 5, 0.5, 0.75),),
    )
    named = tables.final([run], ["train/loss", "loss", "eval/lr"])
    assert named.rows[0][1:] == (5, pytest.approx(0.65), pytest.approx(0.65), None)
    only_train = runs.load(write_run(tmp_path / "b", [line(1, loss=0.5)]))
    assert tables.final([only_train]).columns == ("run", "step", "train/loss")


def test_text_table_aligns_names_left_and_figures_right():
    table = tables.ReportTable(
        "T", ("run", "x"), (("a", 1.5), ("long", -12.25), ("b", None))
    )
    assert tables.as_text(table) == (
        "T\n\nrun        x\n----  ------\na      1.500\nlong  −12.25\nb          –\n"
    )


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (1000000, "1000000"),
        (0.5, "0.5000"),
        (-3e-7, "−3.000e-07"),
        (float("nan"), "nan"),
        ((0.5, 0.012), "0.500 ± 0.012"),
        ((-12.34, 1.5), "−12.3 ± 1.5"),
        ((1234.0, 56.0), "1234 ± 56"),
        ((1.0, 0.0), "1.000 ± 0.000"),
        ("two\nlines\x1b", "two lines␛"),
    ],
)
def test_cells(cell, text):
    assert tables.cell_text(cell) == text


def test_results_keep_the_order_of_columns_and_rows(tmp_path):
    rows = [
        {"name": "before", "values": {"reward": [-0.4, 0.03], "kl": 0}},
        {"name": "after", "values": {"reward": [1.8, 0.02], "win": 0.8}},
    ]
    run = runs.load(write_run(tmp_path / "a", results={"title": "R", "rows": rows}))
    assert tables.results(run) == tables.ReportTable(
        "R",
        ("", "reward", "kl", "win"),
        (("before", (-0.4, 0.03), 0, None), ("after", (1.8, 0.02), None, 0.8)),
    )
    assert tables.results(run._replace(results={})) is None


def test_summary_shows_main_keys_and_every_difference(tmp_path):
    other = {**CONFIG, "mesh": {"fsdp": 4}, "loss": {"name": "dpo", "beta": 0.5}}
    pair = runs.load_all(
        [write_run(tmp_path / "a"), write_run(tmp_path / "b", config=other)]
    )
    rows = {row[0]: row[1:] for row in tables.summary(pair).rows}
    assert rows == {
        "data.train": ("sentiment", "sentiment"),
        "loss.name": ("dpo", "dpo"),
        "loss.beta": ("0.1", "0.5"),
        "seed": (1, 1),
        "mesh.fsdp": (None, 4),
    }
    assert tables.counts(pair).rows[1] == ("dropped.empty", 3, 3)


def drawn_lines(svg):
    """The attributes of the drawn curves: paths in one of our colours."""
    paths = ET.fromstring(svg).iter(f"{SVG}path")
    return [path.attrib for path in paths if path.get("stroke") in figures.COLORS]


def test_curves_overlay_runs_and_splits_in_ink_of_the_page(tmp_path):
    pair = [runs.load(write_run(tmp_path / name)) for name in ("a", "b")]
    svg = figures.curves(pair, "loss")
    inks = [line["stroke"] for line in drawn_lines(svg)]
    assert inks == [figures.color(0), figures.color(1)] * 2  # train, then eval
    dashed = ["stroke-dasharray" in line for line in drawn_lines(svg)]
    assert dashed == [False, False, True, True]
    assert svg.startswith("<svg") and "currentColor" in svg
    assert not {"width", "height"} & set(ET.fromstring(svg).attrib)
    assert figures.curves(pair, "no such metric") == ""
    assert figures.curves(pair, "loss") == svg  # the same bytes each time


def test_long_curves_are_thinned_and_gaps_are_kept(tmp_path):
    values = [float("nan") if s == 3000 else float(s) for s in range(1, 5001)]
    lines = [line(s, loss=v) for s, v in enumerate(values, start=1)]
    run = runs.load(write_run(tmp_path / "a", lines))
    assert len(figures._thinned(values)) == figures.MAX_POINTS
    assert figures._thinned(values)[0] == 1.0 and figures._thinned(values)[-1] == 5000.0
    assert len(drawn_lines(figures.curves([run], "loss"))) == 1
    gap = runs.load(
        write_run(tmp_path / "b", [line(s, loss=values[s + 2990]) for s in range(20)])
    )
    [drawn] = drawn_lines(figures.curves([gap], "loss"))
    assert drawn["d"].count("M") == 2


def test_a_curve_lies_where_its_values_say(tmp_path):
    """Axes reach 4 % beyond the values: of steps 1 to 3, the middle one is halfway.

    Of losses 2, 6, 4 the places are 0.04, 1.04 and 0.54 of 1.08 up from the bottom.
    """
    lines = [line(s, loss=v) for s, v in ((1, 2.0), (2, 6.0), (3, 4.0))]
    run = runs.load(write_run(tmp_path / "a", lines))
    [drawn] = drawn_lines(figures.curves([run], "loss"))
    left, right = figures.LEFT, figures.RIGHT
    bottom, top = figures.BOTTOM, figures.TOP
    across = [
        left + share * (right - left) for share in (0.04 / 1.08, 0.5, 1.04 / 1.08)
    ]
    down = [bottom + share / 1.08 * (top - bottom) for share in (0.04, 1.04, 0.54)]
    places = [f"{x:.1f} {y:.1f}" for x, y in zip(across, down, strict=True)]
    assert drawn["d"] == f"M{places[0]}L{places[1]}L{places[2]}"


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0.0, 1.0, 0.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (
            0.69312,
            0.69316,
            0.0,
            ["0.69312", "0.69313", "0.69314", "0.69315", "0.69316"],
        ),
        (-30.0, 45.0, 0.0, ["−20", "0", "20", "40"]),
        (0.0, 1e-6, 0.0, ["0", "2e−07", "4e−07", "6e−07", "8e−07", "1e−06"]),
        (0.9, 2.1, 1.0, ["1", "2"]),
        (
            0.0,
            3e5,
            1.0,
            ["0", "50000", "100000", "150000", "200000", "250000", "300000"],
        ),
        (0.95, 1.05, 0.0, ["0.96", "0.98", "1.00", "1.02", "1.04"]),
    ],
)
def test_ticks_are_round_and_tell_each_other_apart(low, high, least, expected):
    axis = figures.Axis(low, high, 0.0, 100.0)
    assert [text for _, text in figures.ticks(axis, 6, least)] == expected


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [float("nan")], [1e300, -1e300]])
def test_any_values_can_be_drawn(tmp_path, values):
    lines = [line(s, loss=v) for s, v in enumerate(values, start=1)]
    svg = figures.curves([runs.load(write_run(tmp_path / "a", lines))], "loss")
    ET.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg


def test_page_escapes_all_that_comes_from_a_run(tmp_path):
    sample = {"prompt": EVIL, "before": EVIL, "after": EVIL, "reward_before": 1.5}
    lines = [line(1, loss=0.5, **{EVIL: 1.0})]
    folder = write_run(
        tmp_path / "<b>run $x$ _\x1b",
        lines,
        config={"loss": {"name": EVIL}, EVIL: 1},
        data={EVIL: 3},
        samples=[sample],
        results={"title": EVIL, "rows": [{"name": EVIL, "values": {EVIL: 1.0}}]},
    )
    html.write_report([folder], tmp_path / "deep" / "report.html")
    text = (tmp_path / "deep" / "report.html").read_text()
    page = Page(text)
    assert not {"script", "b>run"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "\x1b" not in text and "\x85" not in text and "\u202e" not in text
    assert page.text.count(SHOWN) >= 6  # three sample fields, config, data, results
    assert "reward 1.500" in page.text


def test_page_is_self_contained_and_says_everything(tmp_path):
    sample = {"prompt": "P:", "before": "bad", "after": "good", "reward_after": 2.0}
    folders = [write_run(tmp_path / "a", samples=[sample]), write_run(tmp_path / "b")]
    html.write_report(folders, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    for tag, attrs in page.tags:
        assert tag not in ("link", "script", "img", "iframe", "object")
        for key in ("src", "href", "xlink:href"):
            assert attrs.get(key, "#").startswith("#"), (tag, attrs)
    for word in (
        "2 runs",
        "Curves",
        "Samples",
        "Data",
        "dropped.identical",
        "loss.beta",
    ):
        assert word in page.text, word
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # loss, accuracies, lr
    assert not [attrs for _, attrs in page.tags if "id" in attrs]  # none meets another


def test_a_page_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write .*file/r.html"):
        html.write_report([folder], tmp_path / "file" / "r.html")


def test_importing_the_report_imports_neither_jax_nor_matplotlib():
    code = (
        "import sys; from dpo_jax.report import figures, html, runs, tables; "
        "sys.exit(bool({'jax', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "results, told",
    [
        ({"values": {"loss": [{}]}}, "values must be numbers"),
        ({"values": [1]}, "values must be numbers"),
        ({"rows": 5}, "a list of rows"),
        ({"title": 5}, "a text as title"),
    ],
)
def test_results_that_cannot_be_shown(tmp_path, results, told):
    assert told in runs.results_fault(results)
    with pytest.raises(DataError, match=told):
        runs.load(write_run(tmp_path / "a", results=results))


def test_gigabytes_of_zeros_are_no_metrics(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_text("")
    os.truncate(folder / "metrics.jsonl", 2**33)
    with pytest.raises(DataError, match="is large and holds zeros"):
        runs.load(folder)


CURVE = {
    "measure": "true reward",
    "frontier": [
        {"kl": 4.0, "reward": 0.9, "trusted": False},
        {"kl": 1.0, "reward": 0.8, "trusted": True},
        {"kl": 0.0, "reward": 0.5, "trusted": True},
    ],
    "best_of": [{"m": 2, "kl_bound": 0.19, "reward": 0.6}],
}


def sampled_lines(*places):
    return [
        line(
            step,
            "eval",
            **{"rollouts/kl": kl, "rollouts/reward": reward, "rollouts/reward_se": 0.1},
        )
        for step, (kl, reward) in enumerate(places)
    ]


def test_runs_lie_against_the_frontier_where_their_values_say(tmp_path):
    """KL 0, 1, 4 stand at 0, 1, 2 of √KL; the frontier is solid up to KL 1."""
    lines = [*sampled_lines((0.0, 0.5), (4.0, 0.7)), line(9, "eval", loss=0.5)]
    one = runs.load(write_run(tmp_path / "one", lines, frontier=CURVE))
    two = runs.load(write_run(tmp_path / "two", sampled_lines((1.0, 0.6))))
    svg = ET.fromstring(frontier.draw([one, two]))
    dots = svg.findall(f"{SVG}circle")
    across = [float(dot.get("cx")) for dot in dots]
    assert [dot.get("fill") for dot in dots] == [figures.color(i) for i in (0, 0, 1)]
    assert across[1] - across[2] == pytest.approx(across[2] - across[0], abs=0.2)
    down = [float(dot.get("cy")) for dot in dots]
    assert down[0] - down[2] == pytest.approx(down[2] - down[1], abs=0.2)
    thick = [p for p in svg.findall(f"{SVG}path") if p.get("stroke-width") == "1.8"]
    dotted, solid = sorted(thick, key=lambda p: p.get("stroke-dasharray") is None)
    assert solid.get("d").count("L") == dotted.get("d").count("L") == 1
    assert solid.get("d").split("L")[1] == dotted.get("d").split("L")[0][1:]
    words = [text.text for text in svg.findall(f"{SVG}text")]
    assert {"frontier", "true reward", "2"} <= set(words)
    assert frontier.draw([runs.load(write_run(tmp_path / "plain"))]) == ""


def test_frontiers_that_differ_are_named(tmp_path):
    other = {**CURVE, "measure": "reward"}
    held = [
        runs.load(write_run(tmp_path / name, sampled_lines((1.0, 0.6)), frontier=curve))
        for name, curve in (("a", CURVE), ("b", CURVE), ("c", other))
    ]
    assert [name for name, _ in frontier.frontiers(held)] == ["a", "c"]
    assert [name for name, _ in frontier.frontiers(held[:2])] == [""]
    assert frontier.draw(held).count("frontier of ") == 2


def test_samples_of_several_runs_stand_side_by_side_as_text(tmp_path):
    """References that said the same stand once; each run's words with its score."""
    sample = {"prompt": "P:", "before": "so so", "after": EVIL, "reward_before": 0.25}
    folders = [
        write_run(
            tmp_path / name,
            sampled_lines((1.0, 0.6)),
            samples=[{**sample, "reward_after": reward}, {**sample, "prompt": name}],
            frontier={**CURVE, "measure": EVIL},
        )
        for name, reward in (("dpo", 0.5), ("ppo", 0.75))
    ]
    loaded = runs.load_all(folders)
    both, *alone = html.side_by_side(loaded)
    assert both[0] == "P:"
    assert [(side.label, side.reward) for side in both[1]] == [
        ("reference", 0.25),
        ("dpo", 0.5),
        ("ppo", 0.75),
    ]
    assert [(p, [side.label for side in sides]) for p, sides in alone] == [
        ("dpo", ["reference", "dpo"]),
        ("ppo", ["reference", "ppo"]),
    ]
    text = html.render(loaded)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags} and "\x1b" not in text
    assert (
        page.text.count(SHOWN) >= 5
    )  # four continuations, and what rewards are called
    assert "Reward against KL" in page.text and "reward 0.7500" in page.text
    changed = loaded[1].samples[0] | {"before": "another"}
    loaded[1] = loaded[1]._replace(samples=[changed])
    labels = [side.label for side in html.side_by_side(loaded)[0][1]]
    assert labels == ["reference", "reference of ppo", "dpo", "ppo"]
