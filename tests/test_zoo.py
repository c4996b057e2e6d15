"""The runner of the zoo survives what it runs, and its page says what happened. The zoo itself is `make test-zoo`."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import processes, records, report
from tests.zoo.models import cases

EXPECTED = {
    "fine": "pass",
    "killed": "FAIL build: did not end (and 1 more)",
    "hangs": "FAIL build: did not end (and 1 more)",
    "too_large": "FAIL build: RuntimeError:",
    "raises": "FAIL build: ValueError: built wrongly",
    "ignored": "FAIL vacuous: AssertionError: the output never changes",
}


def test_one_bad_network_is_one_failed_record(tmp_path: Path) -> None:
    faults = cases("faults")
    done = {r.name: r for r in processes.run([*faults.values()], tmp_path, jobs=2, seconds=60, gigabytes=6)}
    assert set(done) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        assert report.status(done[name]).startswith(expected), done[name].failures
        assert records.load(tmp_path, "faults", name) == done[name]
    assert done["killed"].failures[-1] == "process: killed by signal 9"
    assert done["hangs"].failures[-1] == "process: stopped after 1 s"


def test_the_page_shows_failures_limits_and_what_was_not_run(tmp_path: Path) -> None:
    faults = cases("faults")
    for name in ("fine", "raises", "ignored"):
        record = records.Record(library="faults", name=name, failures=[] if name == "fine" else ["trace: no | good"])
        records.save(record, tmp_path)
    page = report.page({"faults": faults}, tmp_path)
    assert "**6 networks: 1 pass, 1 fail, 1 known limits, 3 not run.**" in page
    assert "FAIL trace: no / good |" in page
    assert "limit: meant to fail (FAIL trace: no / good) |" in page
