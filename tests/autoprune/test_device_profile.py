from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from autoprune.measure.device_profile import DeviceProfile, KeptSample, fingerprint
from autoprune.measure.robust import Estimate
from autoprune.search_spaces.errors import UserError
from tests.autoprune.scripted import ScriptedRuntime

DENSE = Estimate(8.0, 7.9, 8.1)
SLOWER = Estimate(11.2, 11.0, 11.4)
A, B = KeptSample((1, 2), 5.0, 0.1), KeptSample((0, 2), 4.0, 0.2)


def profile(path: Path, day: int = 1) -> DeviceProfile:
    return DeviceProfile(path, clock=lambda: f"2026-05-{day:02d}T12:00:00+00:00")


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path, runtime = tmp_path / "new" / "profile.json", ScriptedRuntime()
    first = profile(path)
    entry = first.entry(runtime)
    entry.steps["convolution"] = 8
    entry.keep("space", 1, DENSE, [A, B])
    first.save()
    again = profile(path).entry(runtime)
    assert again.to_dict() == entry.to_dict()
    network = again.network("space", 1)
    assert network is not None
    assert (network.dense, list(network.samples.values())) == (DENSE, [A, B])
    assert again.network("space", 2) is None
    assert again.network("other", 1) is None
    json.loads(path.read_text())


def test_entries_of_other_settings_are_apart(tmp_path: Path) -> None:
    one, two, wall = ScriptedRuntime(), ScriptedRuntime(threads=2), ScriptedRuntime("wall")
    newer = ScriptedRuntime()
    newer.version = "1.1"
    assert len({fingerprint(runtime) for runtime in (one, two, wall, newer)}) == 4
    assert fingerprint(one) == fingerprint(ScriptedRuntime())
    kept = profile(tmp_path / "p.json")
    for step, runtime in enumerate((one, two, newer)):
        kept.entry(runtime).steps["mm"] = step
    kept.save()
    read = profile(tmp_path / "p.json")
    assert [read.entry(runtime).steps for runtime in (one, two, newer, wall)] == [{"mm": 0}, {"mm": 1}, {"mm": 2}, {}]


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path, runtime, other = tmp_path / "p.json", ScriptedRuntime(), ScriptedRuntime(threads=2)
    first, second = profile(path, 1), profile(path, 2)
    first.entry(runtime).keep("space", 1, DENSE, [A])
    first.entry(runtime).steps["a"] = 1
    first.entry(other).steps["mm"] = 4
    second.entry(runtime).keep("space", 1, Estimate(8.2, 8.0, 8.4), [B])
    second.entry(runtime).keep("another", 1, DENSE, [A])
    second.entry(runtime).steps["b"] = 2
    first.save()
    second.save()
    read = profile(path).entry(runtime)
    network = read.network("space", 1)
    assert network is not None
    assert network.dense == Estimate(8.2, 8.0, 8.4), "that of the last to store"
    assert network.samples == {B.candidate: B, A.candidate: A.scaled(8.2 / 8.0)}
    assert read.network("another", 1) is not None
    assert read.steps == {"a": 1, "b": 2}
    assert profile(path).entry(other).steps == {"mm": 4}


@pytest.mark.parametrize("slow_first", [True, False])
def test_samples_at_two_speeds_are_not_mixed(tmp_path: Path, slow_first: bool) -> None:
    """Whoever stores last: those of the later day stay."""
    path, runtime = tmp_path / "p.json", ScriptedRuntime()
    old, new = profile(path, 1), profile(path, 2)
    old.entry(runtime).keep("space", 1, DENSE, [A])
    new.entry(runtime).keep("space", 1, SLOWER, [B])
    for kept in (new, old) if slow_first else (old, new):
        kept.save()
    network = profile(path).entry(runtime).network("space", 1)
    assert network is not None
    assert (network.dense, list(network.samples.values())) == (SLOWER, [B])


def test_a_stale_network_is_noticed_and_forgotten(tmp_path: Path) -> None:
    path, runtime = tmp_path / "p.json", ScriptedRuntime()
    kept = profile(path)
    kept.entry(runtime).keep("space", 1, DENSE, [A])
    kept.entry(runtime).steps["mm"] = 8
    kept.save()
    later = profile(path, 9)
    entry = later.entry(runtime)
    assert entry.stale("space", 1, Estimate(8.5, 8.4, 8.6)) is None, "6 % is no other speed"
    assert entry.stale("space", 1, Estimate(11.2, 7.0, 15.0)) is None, "too uncertain to tell"
    assert entry.stale("unknown", 1, SLOWER) is None
    assert entry.stale("space", 1, SLOWER) == (
        "The device profile was measured on 2026-05-01, when the dense network took 8 ms; it takes 11.2 ms now: "
        "measuring again."
    )
    entry.forget("space", 1)
    entry.keep("space", 1, SLOWER, [B])
    later.save()
    read = profile(path).entry(runtime)
    network = read.network("space", 1)
    assert network is not None
    assert (network.dense, list(network.samples.values())) == (SLOWER, [B])
    assert read.steps == {"mm": 8}


def test_a_forgotten_network_does_not_come_back_from_the_file(tmp_path: Path) -> None:
    path, runtime = tmp_path / "p.json", ScriptedRuntime()
    kept = profile(path)
    kept.entry(runtime).keep("space", 1, DENSE, [A])
    kept.save()
    kept.entry(runtime).forget("space", 1)
    kept.save()
    assert profile(path).entry(runtime).network("space", 1) is None


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, runtime = tmp_path / "p.json", ScriptedRuntime()
    kept = profile(path)
    kept.entry(runtime).keep("space", 1, DENSE, [A])
    kept.save()
    before = path.read_text()
    kept.entry(runtime).keep("other", 1, Estimate(float("nan"), 1.0, 2.0), [A])
    with pytest.raises(ValueError, match="JSON"):
        kept.save()
    assert path.read_text() == before
    kept.entry(runtime).forget("other", 1)
    kept.save()  # the lock was given back


WRITTEN = {"format": 1, "entries": {}}
ENTRY = {"device": {}, "runtime": "x", "steps": {}, "networks": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{half", "is damaged: it is not a JSON file"),
        ("[]", "is damaged"),
        (json.dumps({"format": 1}), "is damaged: .*entries"),
        (json.dumps({**WRITTEN, "entries": {"a": {}}}), "is damaged"),
        (json.dumps({**WRITTEN, "entries": {"a": {**ENTRY, "steps": {"mm": "many"}}}}), "is damaged"),
        (json.dumps({**WRITTEN, "entries": {"a": {**ENTRY, "networks": {"s/1": {"dense_ms": [1]}}}}}), "is damaged"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    said: list[str] = []
    progress: Any = type("Lines", (), {"say": lambda _, text: said.append(text)})()
    profile = DeviceProfile(path, progress=progress)
    (line,) = said
    assert re.search(f"p.json {message}.*what it held is measured again", line)
    profile.entry(ScriptedRuntime()).steps["mm"] = 8
    profile.save()
    assert DeviceProfile(path).entry(ScriptedRuntime()).steps == {"mm": 8}
    assert path.with_name("p.json.damaged").read_text() == content, "it may have been another file"


def test_a_file_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"was written by a newer autoprune \(format 2, this one reads up to 1\)"):
        DeviceProfile(path)
    assert path.read_text() == '{"format": 2}'


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        DeviceProfile(tmp_path)


def test_samples_are_dated_by_the_first_and_kept_at_its_speed(tmp_path: Path) -> None:
    days = count(1)
    kept = DeviceProfile(tmp_path / "p.json", clock=lambda: f"2026-05-{next(days):02d}T12:00:00+00:00")
    entry = kept.entry(ScriptedRuntime())
    entry.keep("space", 1, DENSE, [A])
    entry.keep("space", 1, SLOWER, [B])
    network = entry.network("space", 1)
    assert network is not None
    assert (network.measured[:10], network.dense) == ("2026-05-01", DENSE)
    assert network.samples[A.candidate] == A
    kept_b = network.samples[B.candidate]
    assert kept_b.ms / DENSE.value == pytest.approx(B.ms / SLOWER.value)
    assert kept_b.se / DENSE.value == pytest.approx(B.se / SLOWER.value)
