from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

from autoprune.measure import Stopwatch
from autoprune.measure.race import WARMUP
from autoprune.progress import RichProgress
from autoprune.search_spaces.errors import UserError
from tests.autoprune.scripted import Script, Scripted, ScriptedRuntime


def noisy(ms: float, sigma: float, seed: int, speed: Callable[[int], float] = lambda run: 1.0) -> Script:
    """Log-normal times around a median of `ms`, `speed` times longer at each run."""
    factors = noises(sigma, seed)
    return lambda run: ms * factors[run] * speed(run)


def noises(sigma: float, seed: int) -> list[float]:
    """Log-normal factors around 1."""
    return [math.exp(sigma * value) for value in np.random.default_rng(seed).standard_normal(1000)]


def names(runtime: ScriptedRuntime, **models: Scripted) -> str:
    by_id = {id(model): name for name, model in models.items()}
    return "".join(by_id[id(model)] for model in runtime.log)


def test_networks_take_turns_with_the_dense_one_and_leave_when_they_are_known() -> None:
    runtime = ScriptedRuntime()
    d, a, b = Scripted(lambda run: 4.0), Scripted(lambda run: 2.0), Scripted(noisy(3.0, 0.03, 0))
    with Stopwatch(runtime, d, None, accuracy=0.01, min_rounds=10, max_rounds=40, least_ms=0) as stopwatch:
        result = stopwatch.measure({"a": a, "b": b})
    order = names(runtime, d=d, a=a, b=b)
    there, back, runs = "ddaabb", "bbaadd", 6 * (WARMUP + 10)
    assert order[:runs] == (there + back) * 2 + there + (there + back) * 5
    assert result["b"].repeats == result["dense"].repeats == 40
    assert result["a"].repeats == 10, "a is known after the least number of rounds"
    assert set(order[runs:]) == {"d", "b"}
    assert (result["a"].ratio, result["a"].ms, result["dense"].ratio) == (0.5, 2.0, 1.0)
    noisy_one = result["b"]
    assert noisy_one.ratio_low is not None
    assert noisy_one.ratio_high is not None
    assert noisy_one.ratio_low + 2 * 1.96 * noisy_one.ratio_se == pytest.approx(noisy_one.ratio_high)
    assert result["a"].reference == "dense"
    assert runtime.closed == 1


def test_more_noise_takes_more_rounds_until_the_interval_is_as_narrow_as_asked_for() -> None:
    taken = []
    for sigma in (0.001, 0.02, 0.05):
        runtime = ScriptedRuntime()
        dense, model = Scripted(noisy(4.0, sigma, 1)), Scripted(noisy(2.0, sigma, 2))
        with Stopwatch(runtime, dense, None, accuracy=0.01, max_rounds=900) as stopwatch:
            latency = stopwatch.measure({"a": model})["a"]
        assert latency.accuracy <= 0.01
        assert latency.ratio_low is not None
        assert latency.ratio_high is not None
        assert latency.ratio_low <= 0.5 <= latency.ratio_high
        taken.append(latency.repeats)
    assert taken[0] == 10
    assert taken[0] < taken[1] < taken[2]


def test_a_drift_leaves_the_ratio_alone_and_is_said() -> None:
    def slower(run: int) -> float:
        return 1 + max(0, run - WARMUP) * 0.02

    dense, model = Scripted(noisy(4.0, 0.005, 1, slower)), Scripted(noisy(2.0, 0.005, 2, slower))
    fixed = {"accuracy": 0.0001, "min_rounds": 30, "max_rounds": 30, "least_ms": 0}
    with Stopwatch(ScriptedRuntime(), dense, None, **fixed) as stopwatch:  # type: ignore[arg-type]
        latency = stopwatch.measure({"a": model}, accuracy=0.01)["a"]
    assert latency.ratio == pytest.approx(0.5, rel=0.01)
    assert latency.drift == pytest.approx((1 + 24.5 * 0.02) / (1 + 4.5 * 0.02), rel=0.03)
    assert "the machine became 1.4x slower while measuring" in latency.remarks[0]


def test_throttling_between_two_measurements_shows_in_dense_ms_but_not_in_the_ratios() -> None:
    hot = {"factor": 1.0}
    dense, model = Scripted(lambda run: 8.0 * hot["factor"]), Scripted(lambda run: 4.0 * hot["factor"])
    with Stopwatch(ScriptedRuntime(), dense, None) as stopwatch:
        before = stopwatch.measure({"a": model})["a"]
        assert stopwatch.dense_ms == 8.0
        hot["factor"] = 1.7
        after = stopwatch.measure({"a": model})["a"]
        assert (before.ratio, after.ratio) == (0.5, 0.5)
        assert after.ms == pytest.approx(1.7 * before.ms)
        assert stopwatch.drift == pytest.approx(1.7)
        assert 8.0 <= stopwatch.dense_ms <= 13.6


def test_spikes_are_counted_and_do_not_move_the_figures() -> None:
    spikes = {WARMUP + 3, WARMUP + 7, WARMUP + 8}
    model = Scripted(lambda run: 30.0 if run in spikes else 2.0 + 0.001 * (run % 7))
    with Stopwatch(ScriptedRuntime(), Scripted(lambda run: 4.0), None, min_rounds=20) as stopwatch:
        latency = stopwatch.measure({"a": model})["a"]
    assert latency.outliers == 3
    assert latency.ms == pytest.approx(2.003, abs=0.002)
    assert latency.ratio == pytest.approx(0.5, abs=0.002)


def test_a_noisy_machine_is_refused_for_what_is_asked_and_no_more() -> None:
    def wall(ms: float, seed: int) -> Scripted:
        times = noises(0.3, seed)
        return Scripted(lambda run: (ms * times[run], ms))

    def stopwatch(accuracy: float, clock: str = "wall") -> Stopwatch:
        runtime = ScriptedRuntime(clock, threads=2 if clock == "wall" else 1)
        return Stopwatch(runtime, wall(4.0, 1), None, accuracy=accuracy, max_rounds=50, least_ms=0)

    def model() -> Scripted:
        return wall(2.0, 2)

    with (
        stopwatch(0.01) as strict,
        pytest.raises(UserError, match=r"too noisy: the ratio .* 'a' is known to ±\d+\.\d% after 50 rounds, ±1\.0%"),
    ):
        strict.measure({"a": model()})
    with stopwatch(0.01) as strict, pytest.raises(UserError, match=r"spread \d\d%.*use one thread"):
        strict.measure({"a": model()})
    with stopwatch(0.4) as lenient:
        assert lenient.measure({"a": model()})["a"].accuracy <= 0.4
    with stopwatch(0.01, "cpu") as steady:
        assert steady.measure({"a": model()})["a"].ms == 2.0


def test_a_busy_machine_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Stopwatch(ScriptedRuntime(), Scripted(lambda run: (6.0, 4.0)), None) as stopwatch:
        latency = stopwatch.measure({"a": Scripted(lambda run: (2.6, 2.0))}, progress=RichProgress())["dense"]
    assert capsys.readouterr().err.count("the machine is busy") == 1
    assert latency.busy == 1.5
    assert latency.ms == 4.0
    assert latency.remarks == ("the machine is busy: wall-clock time is 1.5x the processor time",)


def test_a_command_runs_once_at_its_turn() -> None:
    """It may take minutes, and warms up by itself."""
    runtime = ScriptedRuntime("reported")
    with Stopwatch(runtime, Scripted(lambda run: (6.0, None)), None) as stopwatch:
        assert stopwatch.measure({})["dense"].clock == "reported"
    assert len(runtime.log) == WARMUP + 10


def test_a_runtime_that_cannot_tell_the_processor_time_is_on_the_wall_clock() -> None:
    with Stopwatch(ScriptedRuntime(), Scripted(lambda run: (6.0, None)), None) as stopwatch:
        latency = stopwatch.measure({})["dense"]
    assert (latency.ms, latency.cpu_ms, latency.clock, latency.busy) == (6.0, None, "wall", None)


def test_dense_alone_is_measured_to_the_accuracy_of_its_own_time() -> None:
    with Stopwatch(ScriptedRuntime(), Scripted(noisy(4.0, 0.03, 1)), None, max_rounds=500) as stopwatch:
        assert stopwatch.dense_ms == pytest.approx(4.0, rel=0.02)
        assert stopwatch.dense.accuracy <= 0.02


def test_the_session_is_closed_when_the_dense_network_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ScriptedRuntime()
    session = type(runtime.open(Scripted(lambda run: 1.0), None))

    def refuse(self: object, model: object) -> None:
        raise UserError("mine")

    monkeypatch.setattr(session, "load", refuse)
    with pytest.raises(UserError, match="mine"):
        Stopwatch(runtime, Scripted(lambda run: 1.0), None)
    assert runtime.closed == 1
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 0.0}, r"`accuracy > 0` must hold, but got 0\.0\. Write ±2 % as 0\.02"),
        ({"min_rounds": 0}, "`min_rounds` must be a whole number of at least 1"),
        ({"min_rounds": 30, "max_rounds": 20}, "`max_rounds` must be a whole number of at least 30, but got 20"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stopwatch(ScriptedRuntime(), Scripted(lambda run: 1.0), None, **options)  # type: ignore[arg-type]
