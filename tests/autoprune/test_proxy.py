"""The proxy report: correlations equal scipy's, the verdict follows its rule, a killed measurement loses nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner, Result

import autoprune as ap
from autoprune import proxies as measuring
from autoprune.cli import app
from autoprune.correlation import Correlation, _kendall, _spearman, correlate
from autoprune.evaluate import Evaluator
from autoprune.finetune import FineTuneFailed, finetune
from autoprune.proxies import draw, proxies, proxy
from autoprune.proxy_file import FILE, Measured, Record
from autoprune.proxy_report import ProxyReport, evaluate_proxies, format_seconds, proxy_cells, read_report
from autoprune.report.proxy import proxy_figure, proxy_section
from autoprune.running import EvaluationFailed
from autoprune.search_spaces import SearchSpace
from autoprune.search_spaces.types import Candidate
from autoprune.study import Study
from tests.autoprune.runs import DIGITS, NET, QUICK, SETTINGS, loaders, tiny_net

RNG = np.random.default_rng(0)
GIVEN: dict[str, Any] = {"model": tiny_net(), **loaders()}

# -- correlations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [RNG.random((2, 24)), RNG.integers(0, 4, (2, 15)), [[1, 2, 3, 4, 5], [5, 3, 4, 1, 2]]]
)
def test_correlations_are_those_of_scipy(values: Any) -> None:
    x, y = np.asarray(values, float)
    spearman, kendall = correlate(x.tolist(), y.tolist())
    assert spearman is not None
    assert kendall is not None
    assert spearman.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall.value == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
    assert -1 <= spearman.low <= spearman.value <= spearman.high <= 1
    draws = RNG.integers(len(x), size=(20, len(x)))
    for found, function in (
        (_spearman(x[draws], y[draws]), scipy.stats.spearmanr),
        (_kendall(x, y, draws), scipy.stats.kendalltau),
    ):
        expected = [function(x[d], y[d]).statistic for d in draws]
        np.testing.assert_allclose(found, np.nan_to_num(expected), atol=1e-12)  # a constant resample counts as 0


def test_the_interval_covers_the_true_correlation_and_shrinks_with_more_candidates() -> None:
    rho, covered = 0.6, 0
    widths: dict[int, float] = {}
    true = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a bivariate normal
    for n in (24, 100):
        for seed in range(40):
            x, noise = np.random.default_rng((seed, n)).normal(size=(2, n))
            found, _ = correlate(x.tolist(), (rho * x + math.sqrt(1 - rho**2) * noise).tolist(), seed=seed)
            assert found is not None
            covered += found.low <= true <= found.high
            widths[n] = widths.get(n, 0.0) + found.high - found.low
    assert covered >= 70  # 95 % of 80 are 76, less three standard deviations
    assert widths[100] < 0.6 * widths[24]


def test_what_has_no_correlation_says_so() -> None:
    ten = [float(k) for k in range(10)]
    assert correlate([1.0] * 10, ten) == (None, None)
    assert correlate(ten, [0.5] * 10) == (None, None)
    assert correlate(ten[:4], ten[:4]) == (None, None)
    assert correlate(ten, ten)[0] == Correlation(1.0, 1.0, 1.0)
    assert correlate(ten, ten[::-1])[1] == Correlation(-1.0, -1.0, -1.0)
    assert correlate([1.0, 0, 0, 0, 0], [0.0, 0, 0, 0, 1])[0] is not None  # many constant resamples


def test_the_interval_is_a_function_of_the_seed() -> None:
    x, y = RNG.random((2, 12)).tolist()
    assert correlate(x, y, seed=1) == correlate(x, y, seed=1) != correlate(x, y, seed=2)
    assert str(Correlation(-0.001, -0.5, 1.0)) == "0.00 [-0.50, 1.00]"


# -- figures and verdict ----------------------------------------------------------------------------------------------

TRUTHS = [0.80 + 0.005 * k for k in np.random.default_rng(1).permutation(24).tolist()]
RANDOM = np.random.default_rng(2).random(24).tolist()
LABELS = {name: (f"after {name}", f"--recovery {name}") for name in ("slice", "recalibrate", "compensate", "repair")}


def noisy(size: float) -> list[float]:
    return [truth + size * noise for truth, noise in zip(TRUTHS, np.random.default_rng(3).normal(size=24), strict=True)]


def measured(own: str = "recalibrate", score: str = "accuracy", **columns: Sequence[float | None]) -> Measured:
    """24 candidates with these scores by proxy, and `TRUTHS` after fine-tuning."""
    seconds = {name: 0.01 * (1 + k) for k, name in enumerate(columns)} | {"finetune": 20.0}
    return Measured(
        settings={
            "budget": ["macs=0.5x"], "seed": 0, "finetune": {"epochs": 1}, "kd": True, "score": score,
            "recovery": own,
        },
        fingerprints={"weights": "w"},
        planned=24,
        num_samples=6000,
        own=own,
        proxies={name: LABELS.get(name, (name, "")) for name in columns},
        records=[
            Record(
                number=k,
                candidate=(k,),
                scores={name: column[k] for name, column in columns.items()},
                truth=TRUTHS[k],
                seconds=seconds,
            )
            for k in range(24)
        ],
    )  # fmt: skip


def evaluated(found: Measured) -> ProxyReport:
    result = evaluate_proxies(found)
    assert result is not None
    json.dumps(result.to_dict(), allow_nan=False)
    return result


def test_a_perfect_and_a_random_proxy() -> None:
    report = evaluated(measured(recalibrate=[math.exp(t) for t in TRUTHS], repair=RANDOM))
    perfect, other = report.row("recalibrate"), report.row("repair")
    assert perfect.spearman == perfect.kendall == Correlation(1.0, 1.0, 1.0)
    assert perfect.choice == max(TRUTHS)
    assert other.spearman is not None
    assert other.spearman.low < 0 < other.spearman.high
    assert other.choice == TRUTHS[RANDOM.index(max(RANDOM))]
    assert report.trust == "yes"
    assert report.verdict == (
        "The score of this study (after recalibrate) ranks candidates like a short fine-tune does: Spearman 1.00 "
        "[1.00, 1.00]. Trust the search."
    )
    assert report.best == perfect
    assert (perfect.seconds, other.seconds, report.seconds) == (0.01, 0.02, 20.0)


def test_a_guessing_study_is_told_what_to_do() -> None:
    report = evaluated(measured(slice=RANDOM[::-1], recalibrate=RANDOM, compensate=noisy(0.1), repair=noisy(0.005)))
    assert report.trust == "no"
    assert f"Spearman {report.row('recalibrate').spearman}" in report.verdict
    assert "search in a new run with --recovery repair." in report.verdict
    assert str(report.row("repair").spearman) in report.verdict


def test_only_what_can_be_selected_and_is_clearly_better_is_recommended() -> None:
    better = noisy(0.02)
    assert "Better" not in evaluated(measured(recalibrate=RANDOM, table=TRUTHS)).verdict  # no option selects it
    report = evaluated(measured(recalibrate=better, repair=better))
    assert "Better" not in report.verdict
    low, high, *_ = sorted(TRUTHS)
    nearly = [{low: high, high: low}.get(truth, truth) for truth in TRUTHS]
    report = evaluated(measured(recalibrate=RANDOM, compensate=nearly, repair=TRUTHS))
    assert report.best is not None
    assert report.best.name == "compensate"  # not quite as good as the repair, but cheaper
    assert "with --recovery compensate." in report.verdict


@pytest.mark.parametrize(
    ("noise", "trust", "words"),
    [(0.005, "yes", "Trust the search"), (0.03, "partly", "only in part"), (0.5, "no", "")],
)
def test_the_rule_of_the_verdict(noise: float, trust: str, words: str) -> None:
    report = evaluated(measured(recalibrate=noisy(noise)))
    found = report.row("recalibrate").spearman
    assert found is not None
    assert report.trust == trust
    assert {"yes": found.low >= 0.5, "partly": 0 < found.low < 0.5, "no": found.low <= 0}[trust]
    assert words in report.verdict
    assert ("No other score here is clearly better" in report.verdict) == (trust != "yes")


def test_constant_scores_have_no_correlation() -> None:
    report = evaluated(measured(recalibrate=[0.1] * 24, repair=TRUTHS))
    assert report.row("recalibrate").spearman is None
    assert report.row("recalibrate").choice is None
    assert "is the same for all candidates: it ranks nothing. Better here: after repair" in report.verdict
    cells = proxy_cells(report)
    assert cells[0][:5] == ("after recalibrate (this study)", "none", "none", "none", "–")
    assert "NaN" not in proxy_section(report)
    assert "nan" not in str(cells)


def test_the_ladder_is_measured_step_by_step() -> None:
    scores = {"slice": RANDOM, "recalibrate": noisy(0.05), "compensate": noisy(0.02), "repair": TRUTHS, "kl": RANDOM}
    report = evaluated(measured(**scores))
    upward = {row.name: row.upward for row in report.rows}
    for low, high in (("slice", "recalibrate"), ("recalibrate", "compensate"), ("compensate", "repair")):
        assert upward[low] == correlate(scores[low], scores[high])[0]
    assert upward["repair"] == report.row("repair").spearman
    assert upward["kl"] is None


def test_failures_are_left_out_and_counted() -> None:
    found = measured(recalibrate=[None, *noisy(0.01)[1:]])
    found.records[3] = Record(number=3, candidate=(3,), scores={"recalibrate": 9.0}, message="NaN")
    found.records[4] = Record(**{**vars(found.records[4]), "improved": False})
    report = evaluated(found)
    assert (len(report.truths), report.num_failed, report.num_unimproved) == (23, 1, 1)
    assert 3 not in report.numbers
    kept = [k for k in range(24) if k not in (0, 3)]
    expected, _ = correlate([noisy(0.01)[k] for k in kept], [TRUTHS[k] for k in kept])
    assert report.row("recalibrate").spearman == expected
    assert any(remark.startswith("1 fine-tunings failed") for remark in report.remarks)
    found.records = found.records[:5]
    assert evaluate_proxies(found) is None


def test_more_candidates_are_advised_where_they_help_and_all_are_measured() -> None:
    found = measured(recalibrate=noisy(0.03))
    assert evaluated(found).verdict.endswith("(--points), or narrow the interval (--candidates 48).")
    found.planned = 30
    assert evaluated(found).verdict.endswith("(--points).")
    with pytest.raises(ap.UserError, match="Did you mean 'recalibrate'"):
        evaluated(found).row("recalibrated")


def test_candidates_that_hardly_differ_are_mentioned() -> None:
    found = measured(recalibrate=RANDOM)
    assert not any("hardly differ" in remark for remark in evaluated(found).remarks)
    found.num_samples = 50
    assert any("hardly differ" in remark for remark in evaluated(found).remarks)


def test_seconds_as_text() -> None:
    shown = [format_seconds(value) for value in (0.0, 4.2e-6, 0.00213, 0.0994, 0.0999, 0.351, 1.46, 19.4, 130.0)]
    assert shown == ["0 s", "0.0042 ms", "2.1 ms", "99 ms", "0.10 s", "0.35 s", "1.5 s", "19 s", "130 s"]


def test_the_scatter_shows_proxy_and_truth() -> None:
    report = evaluated(measured(recalibrate=[None, *TRUTHS[1:]], kl=RANDOM))
    (trace,) = json.loads(proxy_figure(report, report.row("recalibrate")).to_json())["data"]
    assert trace["x"] == trace["y"] == pytest.approx([100 * truth for truth in TRUTHS[1:]])
    (trace,) = json.loads(proxy_figure(report, report.row("kl")).to_json())["data"]
    assert trace["x"] == pytest.approx(RANDOM)  # not in percent


def test_names_in_the_section_are_escaped() -> None:
    found = measured(own="<script>", **{"<script>": RANDOM, "<img>": TRUTHS})
    section = proxy_section(evaluated(found))
    assert "<img>" not in section
    assert "&lt;img&gt;" in section


# -- measuring --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a net from Python."""
    run = tmp_path_factory.mktemp("proxy") / "r"
    ap.search(tiny_net(), **loaders(), **SETTINGS, trials=2, run=run)
    return run


@pytest.fixture(scope="module")
def whole(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement that nobody interrupted."""
    run = Path(shutil.copytree(searched, tmp_path_factory.mktemp("whole") / "r"))
    assert isinstance(ap.proxy(run, candidates=5, **GIVEN), ProxyReport)
    return run


@pytest.fixture
def fresh(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "r"))


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "r"))


def stored(run: Path) -> dict[str, Any]:
    """The file without what must differ: the seconds, and the digest of all."""
    content: dict[str, Any] = json.loads((run / FILE).read_text())
    content.pop("digest", None)
    for record in content["records"]:
        record["seconds"] = sorted(record["seconds"])
    return content


def test_trials_are_left_alone_and_the_report_shows_the_section(whole: Path, searched: Path) -> None:
    assert Study.read(whole).trials == Study.read(searched).trials
    for name in ("config.toml", "front.json"):
        assert (whole / name).read_bytes() == (searched / name).read_bytes()
    assert "Can the scores be trusted?" in (whole / "report.html").read_text()
    assert "Can the scores be trusted?" not in (searched / "report.html").read_text()
    space = ap.trace(tiny_net(), loaders()["train"].dataset[:1][0])
    records = stored(whole)["records"]
    candidates = [tuple(record["candidate"]) for record in records]
    assert candidates == draw(space, ap.Budget.parse("macs=0.5x"), 5, seed=0)
    assert len(set(candidates)) == 5
    assert all(space.costs(c).macs <= space.costs(space.dense).macs / 2 for c in candidates)
    assert [*records[0]["scores"]] == ["slice", "recalibrate", "compensate", "repair", "kl"]


def test_candidates_depend_on_the_seed_and_not_on_their_number() -> None:
    space, budget = ap.trace(tiny_net(), loaders()["train"].dataset[:1][0]), ap.Budget.parse("macs=0.5x")
    assert draw(space, budget, 12, seed=1)[:5] == draw(space, budget, 5, seed=1) != draw(space, budget, 5, seed=2)
    few = draw(space, ap.Budget.parse("params=0.07x"), 1000, seed=0)
    assert few == draw(space, ap.Budget.parse("params=0.07x"), 500, seed=0)


def test_which_proxies_there_are() -> None:
    given, train = loaders(), loaders()["train"]
    space = ap.trace(tiny_net(), train.dataset[:1][0])
    data = ap.data_from_loaders(train, None, given["test"])
    plain = proxies(Evaluator(space, data, recovery="repair", calibration_samples=50))
    assert [*plain] == ["slice", "recalibrate", "compensate", "repair", "kl"]
    assert plain["kl"].label == "repaired layer by layer, minus KL to the dense model"
    assert [*proxies(Evaluator(space, data, score="kl"))] == ["slice", "recalibrate", "compensate", "repair"]
    assert [*proxies(Evaluator(space, data, calibration_samples=0))] == ["slice", "kl"]
    assert proxies(Evaluator(space, data, importance="fpgm"))["slice"].label == "ranked by fpgm only"
    evaluator = Evaluator(space, data, score="kl", calibration_samples=50)
    (score,) = plain["kl"].score(evaluator, [space.smallest])
    assert score == evaluator.evaluate(space.smallest) < 0  # the proxy is what the search has under that name


class Stop(Exception):
    pass


class StopAfter:
    """A `Progress` and its task that stops whatever is going on after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def task(self, description: str, total: float, unit: str = "", *, done: float = 0) -> StopAfter:
        return self

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def advance(self, steps: float = 1, *, note: str = "") -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Stop

    def say(self, text: str) -> None:
        pass


def test_a_measurement_that_is_interrupted_goes_on_and_ends_the_same(fresh: Path, whole: Path) -> None:
    # Stops in the second fine-tuning, after the second was stored, in the third; an epoch takes 9 or so steps.
    for steps in (14, 10, 3, 17):
        with pytest.raises(Stop):
            proxy(fresh, candidates=5, progress=StopAfter(steps), **GIVEN)
    (fresh / FILE.parent / ".proxy.json.4194309.tmp").write_text('{"torn')
    before = len(stored(fresh)["records"])
    assert 0 < before < 5
    _, line = read_report(fresh, stored(whole)["fingerprints"])
    missing = f"{5 - before} of 5 candidates are still to be measured: autoprune proxy {fresh}"
    assert line == f"{before} candidates measured: no verdict yet. {missing}"
    report = proxy(fresh, candidates=5, **GIVEN)
    assert stored(fresh) == stored(whole)
    assert not [path.name for path in (fresh / FILE.parent).iterdir() if path.name.startswith(".")]
    again, text = read_report(whole, stored(whole)["fingerprints"])
    assert again is not None
    assert again.verdict == report.verdict == text


def test_more_candidates_and_more_proxies_add_to_what_is_there(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["seed"])
        return finetune(*args, **kwargs)

    def macs(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        assert isinstance(evaluator.space, SearchSpace)
        return [float(evaluator.space.costs(candidate).macs) for candidate in candidates]

    monkeypatch.setattr(measuring, "finetune", counted)
    before = stored(done)["records"]
    proxy(done, candidates=5, **GIVEN)
    assert seeds == []
    report = proxy(done, candidates=5, extra={"macs": macs}, **GIVEN)
    assert seeds == []
    assert report.row("macs").scores[0] == macs_of(before[0]["candidate"])
    report = proxy(done, candidates=6, **GIVEN)
    assert len(seeds) == 1
    assert len(report.truths) == 6
    assert report.row("macs").scores[5] is None
    after = stored(done)["records"]
    assert [record["truth"] for record in after[:5]] == [record["truth"] for record in before]


def test_the_table_is_one_of_the_proxies_where_the_run_has_one(done: Path) -> None:
    assert "kl_table" not in [row.name for row in proxy(done, candidates=5, **GIVEN).rows]
    table = ap.profile(done, levels=2, samples=40, **GIVEN)
    row = proxy(done, candidates=5, **GIVEN).row("kl_table")
    candidates = [record["candidate"] for record in stored(done)["records"]]
    assert row.scores == pytest.approx((-table.predict(candidates)).tolist())


def macs_of(candidate: Sequence[int]) -> int:
    space = ap.trace(tiny_net(), loaders()["train"].dataset[:1][0])
    return int(space.costs(tuple(candidate)).macs)


def test_figures_under_other_settings_are_not_mixed(done: Path) -> None:
    before = (done / FILE).read_bytes()
    with pytest.raises(ap.UserError, match=r"was measured with finetune = .*epochs=1.*delete it to measure again"):
        proxy(done, candidates=5, epochs=2, **GIVEN)
    with pytest.raises(ap.UserError, match=r"was measured with budget = macs=0.5x, not macs=0.4x"):
        proxy(done, candidates=5, budget="macs=0.4x", **GIVEN)
    with pytest.raises(ap.UserError, match=r"was measured with kd = True"):
        proxy(done, candidates=5, kd=False, **GIVEN)
    assert (done / FILE).read_bytes() == before
    content = json.loads(before)
    del content["digest"]
    (done / FILE).write_text(json.dumps(content | {"fingerprints": {"weights": "others"}}))
    with pytest.raises(ap.UserError, match="belongs to other weights or data"):
        proxy(done, candidates=5, **GIVEN)
    (done / FILE).write_text(json.dumps(content | {"records": content["records"][::-1]}))
    with pytest.raises(ap.UserError, match="holds other candidates"):
        proxy(done, candidates=5, **GIVEN)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1}', '{"format": 1, "records": 5, "proxies": {}}'])
def test_a_damaged_file_is_named_and_stops_neither_search_nor_show(done: Path, text: str) -> None:
    fingerprints = stored(done)["fingerprints"]
    before = [(r["candidate"], r["truth"]) for r in stored(done)["records"]]
    (done / FILE).write_text(text)
    found, line = read_report(done, fingerprints)
    assert found is None
    assert "proxy.json is damaged" in line
    if text == "{":
        proxy(done, candidates=5, **GIVEN)  # measures again
        assert [(r["candidate"], r["truth"]) for r in stored(done)["records"]] == before


def test_a_file_of_a_newer_release_is_left_alone(done: Path) -> None:
    (done / FILE).write_text('{"format": 2}')
    with pytest.raises(ap.UserError, match="newer autoprune"):
        proxy(done, candidates=5, **GIVEN)
    assert (done / FILE).read_text() == '{"format": 2}'


def test_damage_inside_the_records_is_a_line_too(done: Path) -> None:
    content = json.loads((done / FILE).read_text())
    del content["digest"]
    for key, value in (("settings", {}), ("own", "nobody"), ("proxies", {"slice": ["a", "b"]})):
        (done / FILE).write_text(json.dumps(content | {key: value}))
        found, line = read_report(done, content["fingerprints"])
        assert found is None
        assert "Delete it" in line


def test_what_cannot_be_measured_is_refused_at_once(fresh: Path) -> None:
    for wrong, words in (
        ({"candidates": 4}, "at least 5 candidates, but got 4"),
        ({"epochs": 0}, "at least 1 epoch, but got 0"),
        ({"finetune_options": {"momentums": 1}}, "momentums"),
        ({"budget": "macs=0.0001x"}, "macs"),
        ({"budget": "latency=5ms"}, "knows nothing of latency"),
        ({"extra": {"repair": lambda evaluator, candidates: [0.0]}}, "a proxy called 'repair' already"),
        ({"extra": {"mine": lambda evaluator, candidates: None}}, "must return one number"),
    ):
        given: dict[str, Any] = {"candidates": 5, **wrong}
        with pytest.raises(ap.UserError, match=words):
            proxy(fresh, **given, **GIVEN)
    assert not (fresh / FILE).exists()


def test_a_budget_with_too_few_candidates_is_refused(fresh: Path) -> None:
    space = ap.trace(tiny_net(), loaders()["train"].dataset[:1][0])
    smallest = space.costs(space.smallest).params
    with pytest.raises(ap.UserError, match=r"only 1 different candidates were found"):
        proxy(fresh, candidates=5, budget=f"params={smallest}", **GIVEN)


def test_fine_tunings_that_fail(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(100))

    def third_fails(*args: Any, **kwargs: Any) -> Any:
        if next(numbers) == 2:
            raise FineTuneFailed("The loss became nan.")
        return finetune(*args, **kwargs)

    monkeypatch.setattr(measuring, "finetune", third_fails)
    report = proxy(fresh, candidates=6, **GIVEN)
    assert (report.num_failed, report.numbers) == (1, (0, 1, 3, 4, 5))
    proxy(fresh, candidates=6, **GIVEN)  # what failed is not tried again
    assert next(numbers) == 6


def test_when_every_fine_tuning_fails_the_reason_is_given(fresh: Path) -> None:
    options: dict[str, Any] = {"lr": 1e12, "precision": "fp32"}
    with pytest.raises(ap.UserError, match=r"3 of 3 fine-tunings failed, the last with: .*learning rate"):
        proxy(fresh, candidates=6, finetune_options=options, **GIVEN)


def test_a_proxy_that_fails_is_left_out_of_its_own_row_only(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        raise EvaluationFailed("NaN")

    def infinite(evaluator: Evaluator, candidates: Sequence[Candidate]) -> list[float]:
        return [math.inf]

    report = proxy(fresh, candidates=5, extra={"failing": failing, "infinite": infinite}, **GIVEN)
    assert report.row("failing").scores == report.row("infinite").scores == (None,) * 5
    assert report.row("failing").spearman is None
    assert len(report.truths) == 5
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_limit_on_latency_takes_the_table_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "r"
    limits = {**SETTINGS, "budget": ["macs=0.5x", "latency=9s"]}
    ap.search(tiny_net(), **loaders(), **limits, trials=1, run=run)
    assert len(proxy(run, candidates=5, **GIVEN).truths) == 5
    (run / FILE).unlink()
    model = run / "profile" / "latency" / "eager-1.json"
    model.unlink()
    assert len(proxy(run, candidates=5, **GIVEN).truths) == 5
    assert model.is_file(), "measured again"
    (run / FILE).unlink()
    assert len(proxy(run, candidates=5, budget="macs=0.5x", **GIVEN).truths) == 5


# -- the command ------------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:Could not get the installed")
def test_the_command(tmp_path: Path) -> None:
    run = tmp_path / "r"
    result = call(
        "search", *NET, *DIGITS, *QUICK, "--budget", "macs=0.5x", "--points", "1", "--trials", "1", "--run", run
    )
    assert result.exit_code == 0, result.output
    assert "Proxies" not in call("show", run).stdout

    command: list[str | Path] = ["proxy", run, "--candidates", "5", "--budget", "macs=0.4x", "--no-kd"]
    shown = call(*command, "--finetune-arg", "lr=0.1")
    assert shown.exit_code == 0, shown.output
    for words in ("Spearman", "Kendall", "compensated (this study)", "repaired layer by layer", "macs=0.4x", "labels"):
        assert words in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("The score of this study")
    found = json.loads(call(*command, "--finetune-arg", "lr=0.1", "--json").stdout)
    assert found["verdict"] == shown.stdout.splitlines()[-1]
    assert found["settings"]["kd"] is False
    assert len(found["truths"]) == 5
    assert f"Proxies: {found['verdict']}" in call("show", run).stdout
    assert "Can the scores be trusted?" in (run / "report.html").read_text()

    refusals: list[list[str | Path]] = [
        ["proxy", run, "--candidates", "3"],
        ["proxy", run, "--epochs", "0"],
        ["proxy", run, "--budget", "speed=2x"],
        ["proxy", run, "--finetune-arg", "lr=-1"],
        ["proxy", run],
        ["proxy", tmp_path / "none"],
    ]
    for wrong in refusals:
        refused = call(*wrong)
        assert refused.exit_code == 2, refused.output
        assert refused.stdout == ""
        assert refused.stderr.startswith("error: ")
        assert len(refused.stderr.splitlines()) == 1
