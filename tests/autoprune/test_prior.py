from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import autoprune as ap
from autoprune.agents.table import Table
from autoprune.config import SearchConfig
from autoprune.kl_table import KLTable
from autoprune.prior import LEVELS, PRIOR, as_table
from autoprune.search_spaces.types import Group
from autoprune.study import Study
from tests.autoprune.runs import SETTINGS, loaders, tiny_net

TPE: dict[str, Any] = {**SETTINGS, "agent": "tpe", "points": 1}


def proposals(result: ap.Result) -> list[tuple[int, ...]]:
    return [trial.candidate for trial in result.trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ap.Result:
    run = tmp_path_factory.mktemp("prior") / "r"
    return ap.search(tiny_net(), **loaders(), **TPE, trials=4, run=run)


def test_agent_gets_what_was_measured(finished: ap.Result) -> None:
    """The second candidate is the best by the table in the run folder, found by trying all of them."""
    table = KLTable.load(finished.run / PRIOR)
    assert all(1 <= len(measured) <= LEVELS for measured in table.measured)
    space = ap.trace(tiny_net(), next(iter(loaders()["train"]))[0][:1])
    assert table.settings["split"] == "train"
    losses = as_table(table)
    every = np.stack(np.meshgrid(*map(np.arange, space.num_levels), indexing="ij"), axis=-1).reshape(
        -1, len(losses.losses)
    )
    fitting = every[space.cost("macs", every) <= 0.5 * space.costs(space.dense).macs]
    least = losses.predict(fitting).min()
    assert losses.predict(np.array(proposals(finished)[1:2]))[0] == pytest.approx(least)


def test_search_killed_while_it_measures_goes_on_alike(
    finished: ap.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = KLTable.save, 0

    def killed(table: KLTable, path: Path) -> None:
        nonlocal calls
        save(table, path)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KLTable, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            ap.search(tiny_net(), **loaders(), **TPE, trials=4, run=tmp_path / "r")
    assert sum(map(bool, KLTable.load(tmp_path / "r" / PRIOR).measured)) == 2
    result = ap.resume(tmp_path / "r", model=tiny_net(), **loaders())
    assert KLTable.load(result.run / PRIOR) == KLTable.load(finished.run / PRIOR)
    assert proposals(result) == proposals(finished)


def test_profile_of_a_study_changes_none_of_its_proposals(finished: ap.Result, tmp_path: Path) -> None:
    ap.search(tiny_net(), **loaders(), **TPE, trials=2, run=tmp_path / "r")
    ap.profile(tmp_path / "r", model=tiny_net(), **loaders())
    result = ap.resume(tmp_path / "r", trials=2, model=tiny_net(), **loaders())
    assert proposals(result) == proposals(finished)


@pytest.mark.parametrize("settings", [{"agent": "random"}, {"agent": "tpe", "prior": "off"}], ids=["random", "off"])
def test_nothing_is_measured_where_nothing_is_wanted(settings: dict[str, Any], tmp_path: Path) -> None:
    result = ap.search(tiny_net(), **loaders(), **{**TPE, **settings}, trials=1, run=tmp_path / "r")
    assert not (result.run / PRIOR).exists()


def test_studies_from_before_there_was_a_prior_go_on_without(finished: ap.Result, tmp_path: Path) -> None:
    text = (finished.run / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace('prior = "kl"\n', ""))
    assert SearchConfig.read(finished.run).prior == "kl"
    assert SearchConfig.read(tmp_path).prior == "off"


class Fussy(nn.Module):
    """Refuses to run once its hidden layer lost anything; the smaller trials fail, the search goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        if hidden.device.type != "meta" and hidden.shape[1] < 5:
            raise RuntimeError("too thin")
        out: Tensor = self.last(hidden)
        return out


def test_cuts_that_do_not_run_leave_the_agent_without_and_that_is_kept(tmp_path: Path) -> None:
    settings = {**TPE, "budget": ["macs=0.9x"], "recovery": "slice"}
    result = ap.search(Fussy().eval(), **loaders(), **settings, trials=1, run=tmp_path / "r")
    with Study.read(result.run) as study:
        assert study.config.prior == "off"
    assert not (result.run / PRIOR).exists()


def test_infinite_losses_are_worse_than_all_others() -> None:
    groups = [Group(name, "channels", 3, (1, 2, 3), True, ()) for name in "ab"]
    table = KLTable.empty(groups, {}, "").with_measured(0, {0: np.inf, 1: 2.0}).with_measured(1, {0: 1.0, 1: 0.5})
    assert [each.tolist() for each in as_table(table).losses] == [[20.0, 2.0, 0.0], [1.0, 0.5, 0.0]]
    assert isinstance(as_table(table), Table)
