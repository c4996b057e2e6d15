from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.offline
import pytest

from autoprune.agents.base import Trial
from autoprune.front import FrontPoint
from autoprune.measure import Latency
from autoprune.report import write_report
from autoprune.report.charts import front_figure, num_below, progress_figure, score_range
from autoprune.tables import DenseFigures, best_index, format_score, front_table

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def latency(median_ms: float, ratio: float | None = None) -> Latency:
    return Latency(
        ms=median_ms,
        low_ms=median_ms - 0.2,
        high_ms=median_ms + 0.2,
        median_ms=median_ms,
        p10_ms=median_ms * 0.9,
        iqr_ms=0.25,
        cpu_ms=median_ms,
        ratio=ratio,
        reference="dense",
        repeats=31,
        warmup=7,
        settled=True,
        threads=1,
        batch=1,
        precision="fp32",
        device="A processor",
    )


DENSE: DenseFigures = {
    "costs": {"macs": 2e6, "params": 80_000, "memory": 65536.0, "latency": 3.9},
    "score": 0.985,
    "test": 0.981,
    "latency": latency(4.0),
}


def trial(number: int, score: float | None, macs: float = 1e6, **values: Any) -> Trial:
    state = "failed" if score is None else "complete"
    costs = {"macs": macs, "params": 40_000, "memory": 32768.0, "latency": macs / 5e5}
    given: dict[str, Any] = {"candidate": (number, 1), "state": state, "score": score, "costs": costs}
    given.update(values)
    return Trial(number=number, **given)


def point(found: Trial, **values: Any) -> FrontPoint:
    return FrontPoint(
        trial=found.number, candidate=found.candidate, costs=found.costs, score=found.score or 0.0, **values
    )


TRIALS = [
    trial(0, 0.90),
    trial(1, 0.95),
    trial(2, 0.93, 0.6e6),
    trial(3, None, message="ValueError: NaN in the outputs"),
    trial(4, 0.95, candidate=(1, 1), message="same subnet as trial 1"),
    trial(5, 0.10),
    trial(6, 0.94, state="cut", message="cannot reach the front"),
    trial(7, 0.92, 0.8e6),
]
FAST, FASTER = latency(2.5, 0.62), latency(1.5, 0.38)
RECIPE = {"epochs": 5, "kd_weight": 0.9, "temperature": 4.0}
TUNED: dict[str, Any] = {"recipe": RECIPE, "test_before": 0.94, "test_after": 0.96}
FRONT = [
    point(TRIALS[1], latency=FAST, misses=("latency",), finetuned=0.97, **TUNED),
    point(TRIALS[2], latency=FASTER, finetuned=0.96, **TUNED | {"test_before": 0.92, "test_after": 0.955}),
]
KEPT = [{"stem": 0.5, "layer.conv": 0.25}, {"stem": 0.125, "layer.conv": 1.0}]


class Page(HTMLParser):
    """Text, tags and attributes of a report, as a browser takes them; script and style apart."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.text += f" {data}"


def written(tmp_path: Path, **values: Any) -> Page:
    path = tmp_path / "report.html"
    given: dict[str, Any] = {
        "title": "first",
        "config": {"budget": ("macs=0.5x",), "agent": "tpe", "weights": None, "model_args": {"num_classes": 10}},
        "dense": DENSE,
        "trials": TRIALS,
        "front": FRONT,
        "keep_ratios": KEPT,
        "limits": {"macs": 1e6},
    }
    write_report(path, **given | values)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        environment={"cpu": "A processor", "gpu": None},
        notes=["Predictions are 4 % off."],
    )
    text = " ".join(page.text.split())
    for expected in (
        "macs=0.5x (MACs ≤ 1M) · 8 trials · best point: 1",
        "2M → 600k",
        "4 ms → 1.5 ms 0.38×, measured, eager, batch 1, 1 thread",
        "98.10 % → 95.50 % test split, fine-tuned",
        "misses latency",
        "2.5 ms ± 0.2 0.62×",
        "1 of 8 trials lie below the axis",
        "5 complete 1 failed 1 same subnet again 1 cut",
        "1 failed: ValueError: NaN in the outputs",
        "model_args.num_classes 10",
        "cpu A processor",
        "31 repeats after 7 for warm-up, wall-clock time, batch 1, 1 thread, eager fp32 on A processor",
        "Fine-tuned with 5 epochs, KD (the dense model's weight 0.9, temperature 4.0).",
        "1 MAC = 1 multiply-add = 2 FLOPs",
        "Predictions are 4 % off.",
    ):
        assert expected in text
    assert "weights" not in text
    assert "gpu" not in text
    kept = [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "bar"]
    assert kept == ["--kept:50.0%", "--kept:12.5%", "--kept:25.0%", "--kept:100.0%"]


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.scripts.count(plotly.offline.get_plotlyjs()) == 1
    assert sum("Plotly.newPlot(" in script for script in page.scripts if len(script) < 1e6) == 3
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "data", "action"} & attributes.keys()
    policy = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"]


def test_what_a_user_names_is_never_markup(tmp_path: Path) -> None:
    harmless = [tag for tag, _ in written(tmp_path).tags]
    found = TRIALS[3]
    page = written(
        tmp_path,
        title=EVIL,
        score=EVIL,
        config={"budget": (EVIL,), EVIL: EVIL, "agent": [EVIL], "model_args": {EVIL: {EVIL: EVIL}}},
        trials=[
            *TRIALS[:3],
            replace(found, message=EVIL),
            *TRIALS[4:],
            trial(8, 0.9, message=EVIL, pruning=EVIL, ruled_out={EVIL: 3}),
        ],
        front=[replace(FRONT[0], misses=(EVIL,)), replace(FRONT[1], path=Path("front") / EVIL.replace("/", "\\"))],
        keep_ratios=[{EVIL: 0.5}, {EVIL: 0.5}],
        environment={EVIL: EVIL},
        notes=[EVIL],
    )
    assert {tag for tag, _ in page.tags} == set(harmless)
    assert [tag for tag, _ in page.tags].count("script") == harmless.count("script")
    assert page.text.count("<script>alert(1)</script>") > 8
    assert all("onerror" not in attributes for _, attributes in page.tags)
    # Plotly reads HTML in labels: there too the text arrives escaped.
    data = [script for script in page.scripts if "Plotly.newPlot(" in script and len(script) < 1e6]
    assert all("<script" not in script and "<img" not in script for script in data)
    assert any("&lt;script" in script.replace("\\u003c", "<").replace("\\u0026", "&") for script in data)


@pytest.mark.parametrize(
    ("trials", "front"),
    [
        ([], []),
        ([trial(0, None, message="broken")], []),
        (TRIALS, []),
        (TRIALS[:1], [point(TRIALS[0])]),
        ([replace(TRIALS[0], costs={"macs": 1e6})], [replace(point(TRIALS[0]), costs={"macs": 1e6})]),
    ],
)
def test_a_run_of_which_little_is_known_yet(tmp_path: Path, trials: list[Trial], front: list[FrontPoint]) -> None:
    dense: DenseFigures = {"costs": {"macs": 2e6}, "score": 0.9} if len(trials) < 2 else {}
    page = written(tmp_path, dense=dense, trials=trials, front=front, keep_ratios=KEPT[: len(front)], limits=None)
    assert f"{len(trials)} trials" in page.text
    assert ("no point within the budget yet" in page.text) == (not front)


def test_a_score_that_is_no_share(tmp_path: Path) -> None:
    trials = [trial(0, -0.25), trial(1, -0.0125)]
    page = written(
        tmp_path,
        score="kl",
        dense={"costs": DENSE["costs"], "score": 0.0},
        trials=trials,
        front=[point(trials[1])],
        keep_ratios=KEPT[:1],
    )
    assert "-0.0125" in page.text
    assert "minus the mean divergence" in page.text
    assert "accuracy" not in page.text


def test_costs_of_named_devices_are_shown(tmp_path: Path) -> None:
    costs = {"throughput@phone": 4.0, "latency@worst": 0.4, "size": 5e6}
    trials = [replace(trial, costs={**trial.costs, **costs}) for trial in TRIALS]
    page = written(tmp_path, trials=trials, limits={"throughput@phone": 5.0, "latency@worst": 0.5})
    text = " ".join(page.text.split())
    assert "throughput on phone ≥ 200/s, latency on the worst device ≤ 0.5x" in text
    for cell in ("throughput on phone", "250/s", "0.4x", "size", "5 MB"):
        assert cell in text


def test_many_points_stand_side_by_side_up_to_a_limit(tmp_path: Path) -> None:
    trials = [trial(k, 0.9 - k / 100, 1e6 - k * 1e4) for k in range(20)]
    page = written(
        tmp_path, trials=trials, front=[point(t) for t in trials], keep_ratios=[{"stem": t.number / 20} for t in trials]
    )
    assert "6 of 20 points" in page.text
    kept = [attributes["style"] for _, attributes in page.tags if attributes.get("class") == "bar"]
    assert (kept[0], kept[-1], len(kept)) == ("--kept:0.0%", "--kept:95.0%", 6)


# -- figures ----------------------------------------------------------------------------------------------------------


def traces(figure: Any) -> dict[str, dict[str, Any]]:
    return {trace.get("name", ""): trace for trace in json.loads(figure.to_json())["data"]}


def test_front_figure() -> None:
    y_range = score_range(dense=DENSE, trials=TRIALS, points=FRONT, score="accuracy")
    figure = front_figure(
        "latency", dense=DENSE, trials=TRIALS, points=FRONT, score="accuracy", limit=2.0, y_range=y_range
    )
    found = traces(figure)
    assert found["trials"]["x"] == [2.0, 2.0, 1.2, 2.0, 2.0, 1.6]  # predicted; neither failed nor cut
    assert found["trials"]["y"] == pytest.approx([90, 95, 93, 95, 10, 92])
    assert found["best at this cost"]["x"] == [1.2, 2.0, 2.0]
    assert found["best at this cost"]["y"] == pytest.approx([93, 95, 95])
    assert found["pruned"]["x"] == found["fine-tuned"]["x"] == [2.5, 1.5]  # measured
    assert found["fine-tuned"]["y"] == pytest.approx([97, 96])
    assert found["pruned"]["error_x"]["array"] == pytest.approx([0.2, 0.2])
    assert found["dense"]["x"] == [4.0]
    assert found["dense"]["y"] == pytest.approx([98.5])
    assert figure.layout.shapes[0].x0 == 2.0
    macs = front_figure("macs", dense=DENSE, trials=TRIALS, points=FRONT, score="accuracy", limit=None, y_range=y_range)
    assert traces(macs)["pruned"]["x"] == [1.0, 0.6]  # millions
    assert not macs.layout.shapes


def test_progress_figure() -> None:
    y_range = (80.0, 100.0)
    found = traces(progress_figure(dense=DENSE, trials=TRIALS, score="accuracy", y_range=y_range))
    assert found["best so far"]["x"] == [0, 1, 2, 4, 5, 7, 7]
    assert found["best so far"]["y"] == pytest.approx([90, 95, 95, 95, 95, 95, 95])
    assert (found["failed"]["x"], found["cut"]["x"]) == ([3], [6])
    assert all(80 < y < 82 for name in ("failed", "cut") for y in found[name]["y"])
    assert found["dense"]["y"] == pytest.approx([98.5, 98.5])


def test_the_axis_leaves_hopeless_trials_out_and_points_in() -> None:
    low, high = score_range(dense=DENSE, trials=TRIALS, points=FRONT, score="accuracy")
    assert 50 < low < 90
    assert 98.5 < high < 101
    assert num_below(TRIALS, "accuracy", (low, high)) == 1
    poor = point(trial(9, 0.05))
    assert score_range(dense=DENSE, trials=TRIALS, points=[poor], score="accuracy")[0] < 5
    assert score_range(dense={}, trials=[], points=[], score="accuracy") == (0.0, 1.0)
    low, high = score_range(dense={}, trials=[trial(0, 0.5)], points=[], score="accuracy")
    assert low < 50 < high


# -- tables -----------------------------------------------------------------------------------------------------------


def test_front_table() -> None:
    table = front_table(DENSE, FRONT)
    rows = {row[0]: dict(zip(table.columns[1:6], row[1:6], strict=True)) for row in table.rows}
    assert rows["dense"] == {
        "MACs": "2M",
        "parameters": "80k",
        "peak memory": "65.5 kB",
        "predicted": "3.9 ms",
        "measured": latency(4.0).short,
    }
    assert rows["1"]["MACs"] == "600k\n0.30×"
    assert rows["1"]["measured"] == f"{latency(1.5).short}\n0.38×"
    assert table.rows[1][6:] == ("95.00 %", "97.00 %", "94.00 %", "96.00 %", "5 epochs, KD", "misses latency")
    assert table.columns[6:] == ("pruned", "fine-tuned", "pruned", "fine-tuned", "fine-tuning", "budget")
    assert sum(span for _, span in table.groups) == len(table.columns)
    assert ("accuracy, search split", 2) in table.groups


def test_front_table_leaves_out_what_is_not_known() -> None:
    bare = FrontPoint(trial=0, candidate=(0,), costs={"macs": 1e6}, score=-0.125)
    table = front_table({"costs": {"macs": 2e6}, "score": 0.0}, [bare], score="kl")
    assert table.columns == ("model", "MACs", "pruned", "budget")
    assert table.rows == (("dense", "2M", "0", "–"), ("0", "1M\n0.50×", "-0.125", "kept"))


def test_the_best_point_keeps_the_budget_and_is_never_chosen_on_the_test_split() -> None:
    assert best_index(FRONT) == 1  # point 0 is better, but misses its latency
    assert best_index([replace(FRONT[0], misses=()), FRONT[1]]) == 0
    assert best_index([replace(FRONT[0], misses=(), finetuned=0.9, test_after=1.0), FRONT[1]]) == 1
    assert best_index([FRONT[0]]) is None
    assert best_index([]) is None


def test_scores_as_text() -> None:
    assert format_score("accuracy", 0.98214) == "98.21 %"
    assert format_score("kl", -0.0123456) == "-0.01235"
    assert format_score("top5", None) == "–"
    assert re.fullmatch(r"0\.5", format_score("my_module.f1", 0.5))
