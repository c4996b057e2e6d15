"""Fixtures that all fault tests share, and the table of what was tried, printed at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Harness, Server, build_shim, table

RECORDS = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Forks processes that have everything imported."""
    server = Server(build_shim(tmp_path_factory.mktemp("shim")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def harness(
    server: Server, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Harness]:
    harness = Harness(server, tmp_path_factory.mktemp("runs"))
    request.config.stash[RECORDS] = harness.records
    yield harness
    where = os.environ.get("AUTOPRUNE_FAULTS")
    if where:
        Path(where).write_text(json.dumps(harness.records, indent=1) + "\n")


@pytest.fixture
def shim(server: Server) -> None:
    """Skips a test where no shim could be compiled."""
    if server.shim is None:
        pytest.skip("needs Linux and a C compiler (cc) for tests/faults/shim.c")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash.get(RECORDS, [])
    if records:
        terminalreporter.section("faults injected")
        for line in table(records):
            terminalreporter.write_line(line)
