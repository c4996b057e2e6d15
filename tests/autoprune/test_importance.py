"""Scores from data: which samples are read, that they last, and that a study uses one ranking from begin to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import autoprune as ap
from autoprune import importance
from autoprune.architecture import Architecture
from autoprune.cli import app
from autoprune.cli import options as cli_options
from autoprune.config import SearchConfig
from autoprune.data import Data
from autoprune.documents import Damaged
from autoprune.importance import SCORES_FILE, collect, load_scores, save_scores
from autoprune.points import fine_tune
from autoprune.search_spaces import CRITERIA, SearchSpace
from tests.autoprune.documents import rewrite
from tests.autoprune.fakes import ConvNet, conv_net, image_data
from tests.autoprune.runs import DIGITS, NET, QUICK, SETTINGS, loaders, tiny_net


def space_of(model: nn.Module, data: Data) -> SearchSpace:
    return ap.trace(model, data.example(2))


def kept_filters(folder: Path) -> Any:
    return Architecture.read(folder).tensors["stem.weight"].kept[0]


def test_the_command_line_lists_every_criterion() -> None:
    assert tuple(CRITERIA) == cli_options.CRITERIA
    shown = CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "300"}).output
    assert all(name in shown for name in CRITERIA)
    assert "--importance-samples" in shown


def test_only_training_samples_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as asked for, un-augmented, with their own targets, in the order of a seeded permutation."""
    data = image_data(train=40, search=20, batch_size=16)
    read: list[Tensor] = []

    class Watched(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            read.append(x)
            return super().forward(x)

    space = space_of(Watched().eval(), data)
    read.clear()
    collect(space, "mean_activation", data, num_samples=24)
    images = torch.cat(read)
    train = torch.cat([x for x, _ in data.train if isinstance(x, Tensor)])
    assert len(images) == 24
    assert all(bool((train == image).flatten(1).all(1).any()) for image in images)
    assert torch.equal(images, torch.cat([x for x in data.calibration(24) if isinstance(x, Tensor)]))
    targets = torch.cat([y for _, y in data.train])
    for x, y in data.samples(24):
        for image, target in zip(x, y, strict=True):
            where = (train == image).flatten(1).all(1).nonzero()[0, 0]
            assert targets[where] == target
    read.clear()
    collect(space, "mean_activation", data, num_samples=1000)
    assert sum(map(len, read)) == 40


def test_loaders_give_their_samples_with_targets_whether_rebuilt_or_not() -> None:
    images, labels = torch.arange(20.0).reshape(20, 1), torch.arange(20)
    shuffled = ap.data_from_loaders(DataLoader(TensorDataset(images, labels), batch_size=3, shuffle=True))
    batches = list(shuffled.samples(8))
    assert [len(y) for _, y in batches] == [3, 3, 2]
    assert all(bool((x[:, 0] == y).all()) for x, y in batches if isinstance(x, Tensor))
    assert [y.tolist() for _, y in shuffled.samples(8)] == [y.tolist() for _, y in batches]
    plain = ap.data_from_loaders([(images[:6], labels[:6]), (images[6:], labels[6:])], [(images, labels)])
    assert [y.tolist() for _, y in plain.samples(8)] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert list(plain.samples(0)) == []


def test_drawing_models_are_scored_alike_and_the_global_generator_is_left_alone() -> None:
    class Noisy(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn(x.shape))

    data = image_data()
    scores = []
    for _ in range(2):
        torch.rand(3)
        before = torch.get_rng_state()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Noisy().eval()
        space = space_of(model, data)
        before = torch.get_rng_state()
        collect(space, "taylor", data, num_samples=32, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        scores.append(space.unit_scores("taylor"))
    assert all(np.array_equal(a, b) for a, b in zip(*scores, strict=True))


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs != "weights"])
def test_scores_last_to_the_last_bit(tmp_path: Path, name: str) -> None:
    data = image_data()
    space, again = space_of(conv_net(), data), space_of(conv_net(), data)
    collect(space, name, data, num_samples=16)
    save_scores(space, name, tmp_path, num_samples=16)
    load_scores(again, name, tmp_path)
    for a, b in zip(space.unit_scores(name), again.unit_scores(name), strict=True):
        assert np.array_equal(a, b)
    content = json.loads((tmp_path / SCORES_FILE).read_text())
    assert (content["importance"], content["num_samples"], content["split"]) == (name, 16, "train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"importance": "taylor"', '"importance": "fisher"', "another model or criterion"),
        ('"space": "', '"space": "x', "another model or criterion"),
        ('"conv1"', '"conv9"', "damaged"),
        ("0.", "O.", "not a JSON file"),
        ('"digest": "', '"digest": "0', "not what was written"),
    ],
)
def test_scores_of_something_else_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    data = image_data()
    space = space_of(conv_net(), data)
    with pytest.raises(Damaged, match=r"importance\.json is missing"):
        load_scores(space, "taylor", tmp_path)
    collect(space, "taylor", data, num_samples=16)
    save_scores(space, "taylor", tmp_path, num_samples=16)
    text = (tmp_path / SCORES_FILE).read_text()
    assert old in text
    if "digest" not in old:
        text = re.sub(r',\n "digest": "\w+"', "", text)
    (tmp_path / SCORES_FILE).write_text(text.replace(old, new))
    with pytest.raises(ap.UserError, match=message):
        load_scores(space, "taylor", tmp_path)
    (tmp_path / SCORES_FILE).write_text(text)
    rewrite(tmp_path / SCORES_FILE, lambda content: content["scores"]["conv1"].pop())
    with pytest.raises(ap.UserError, match=r"damaged.*one score per unit"):
        load_scores(space, "taylor", tmp_path)


def test_targets_that_are_no_classes_ask_for_a_loss() -> None:
    data = image_data()
    regression = Data("r", data.train, data.search)
    regression.train.targets = torch.randn(96)  # type: ignore[attr-defined]
    space = space_of(conv_net(), data)
    with pytest.raises(ap.UserError, match=r"class indices.*importance_loss="):
        collect(space, "taylor", regression, num_samples=16)
    collect(space, "apoz", regression, num_samples=16)

    def squares(output: Tensor, targets: Tensor) -> Tensor:
        return (output[:, 0] - targets).square().mean()

    collect(space, "taylor", regression, num_samples=16, loss=squares)


def test_an_error_in_the_loss_is_said_in_one_line() -> None:
    def broken(output: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError("by nothing")

    data = image_data()
    with pytest.raises(ap.UserError, match=r"'fisher' cannot be computed: ZeroDivisionError: by nothing .*'l2'"):
        collect(space_of(conv_net(), data), "fisher", data, num_samples=16, loss=broken)


@pytest.mark.parametrize("name", ["taylor", "hrank"])
def test_a_study_uses_one_ranking_from_begin_to_end(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, resume, fine-tune and export; computed once, and never again once the folder holds it."""
    run = tmp_path / "r"
    settings = {**SETTINGS, "importance": name, "importance_samples": 64}
    whole = ap.search(tiny_net(), **loaders(), **settings, trials=4, run=tmp_path / "whole")
    ap.search(tiny_net(), **loaders(), **settings, trials=2, run=run)
    stored = (run / SCORES_FILE).read_bytes()
    assert stored == (tmp_path / "whole" / SCORES_FILE).read_bytes()

    scored = SearchSpace.collect

    def never_again(space: SearchSpace, importance: str, *args: Any, **kwargs: Any) -> None:
        assert importance != name, "scored again"
        scored(space, importance, *args, **kwargs)

    monkeypatch.setattr(SearchSpace, "collect", never_again)
    parts = ap.resume(run, trials=2, model=tiny_net(), **loaders())
    assert [(t.candidate, t.score) for t in parts.trials] == [(t.candidate, t.score) for t in whole.trials]
    assert kept_filters(run / "front" / "0") == kept_filters(tmp_path / "whole" / "front" / "0")
    before = kept_filters(run / "front" / "0")
    fine_tune(run, ap.FineTune(epochs=1, lr=0.01), point=0, model=tiny_net(), **loaders())
    assert kept_filters(run / "front" / "0") == before
    assert (run / SCORES_FILE).read_bytes() == stored
    assert Architecture.read(run / "front" / "0").importance == name
    assert f"Units ranked by {name} on 64 training samples." in (run / "front" / "0" / "card.md").read_text()
    assert f'importance = "{name}"' in (run / "config.toml").read_text()
    monkeypatch.undo()
    for damage in (Path.unlink, lambda path: path.write_text("{")):
        damage(run / SCORES_FILE)
        ap.resume(run, model=tiny_net(), **loaders())
        assert (run / SCORES_FILE).read_bytes() == stored


def test_lost_scores_that_cannot_be_found_again_stop_the_study(tmp_path: Path) -> None:
    """With ones that may differ, its trials would not be comparable any more."""
    run, settings = tmp_path / "r", {**SETTINGS, "importance": "taylor", "importance_samples": 64, "points": 1}
    ap.search(tiny_net(), **loaders(), **settings, trials=1, run=run)
    (run / SCORES_FILE).write_text("{")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(re.sub(r'importance = "\w{16}"', 'importance = "another"', config))
    with pytest.raises(ap.UserError, match="computed again are not those that the trials were made with"):
        ap.resume(run, model=tiny_net(), **loaders())
    (run / "config.toml").write_text(re.sub(r'importance = "\w{16}"\n', "", config))  # made by an older release
    with pytest.raises(ap.UserError, match="scores computed again need not be the same"):
        ap.resume(run, model=tiny_net(), **loaders())
    assert (run / SCORES_FILE).read_text() == "{"


def test_the_stored_scores_are_used_not_recomputed(tmp_path: Path) -> None:
    """Turned around by hand, they keep the other units."""
    run, settings = tmp_path / "r", {**SETTINGS, "importance": "mean_activation", "points": 1}
    ap.search(tiny_net(), **loaders(), **settings, trials=1, run=run)
    kept = set(kept_filters(run / "front" / "0"))

    def turn(content: dict[str, Any]) -> None:
        content["scores"] = {name: [-s for s in scores] for name, scores in content["scores"].items()}

    rewrite(run / SCORES_FILE, turn)
    (run / "front.json").unlink()
    ap.resume(run, model=tiny_net(), **loaders())
    turned = set(kept_filters(run / "front" / "0"))
    assert len(turned) == len(kept)
    assert turned != kept


def test_criteria_that_read_weights_leave_no_file(tmp_path: Path) -> None:
    ap.search(tiny_net(), **loaders(), **{**SETTINGS, "importance": "bn_scale"}, trials=1, run=tmp_path / "r")
    assert not (tmp_path / "r" / SCORES_FILE).exists()
    assert SearchConfig.read(tmp_path / "r").importance == "bn_scale"


def test_own_loss_is_used_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(output))
        return output.square().mean()

    settings = {**SETTINGS, "importance": "taylor", "importance_samples": 60, "importance_loss": loss}
    ap.search(tiny_net(), **loaders(), **settings, trials=1, run=tmp_path / "r")
    assert calls == [50, 10]
    ap.resume(tmp_path / "r", trials=1, model=tiny_net(), **loaders())
    assert calls == [50, 10]


def test_command_line_takes_a_criterion_and_shows_it(tmp_path: Path) -> None:
    run = tmp_path / "r"
    given = [
        "search",
        *NET,
        *DIGITS,
        *QUICK,
        "--budget",
        "macs=0.5x",
        "--trials",
        "1",
        "--points",
        "1",
        "--run",
        str(run),
    ]
    result = CliRunner().invoke(app, [*given, "--importance", "fisher", "--importance-samples", "20"])
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(app, ["show", str(run)])
    assert "Units ranked by fisher on 20 training samples." in shown.output
    assert "fisher" in (run / "report.html").read_text()


def test_wrong_names_and_numbers(tmp_path: Path) -> None:
    for wrong, message in (
        ({"importance": "tailor"}, "Did you mean 'taylor'"),
        ({"importance": "taylor", "importance_samples": 0}, "`importance_samples` must be"),
    ):
        with pytest.raises(ap.UserError, match=message):
            ap.search(tiny_net(), **loaders(), **SETTINGS, **wrong, trials=1, run=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_every_criterion_has_a_card() -> None:
    page = (Path(__file__).parents[2] / "docs" / "importance.md").read_text(encoding="utf-8")
    for name in CRITERIA:
        assert f"| [`{name}`](#" in page
        assert re.search(rf"^## .*`{name}`", page, re.MULTILINE)
        assert re.search(rf"^\| {name} \| \d", page, re.MULTILINE), f"{name} has no row of the benchmark"


def test_description_of_a_criterion() -> None:
    assert importance.describe_importance("l2", 1024) == "l2"
    assert importance.describe_importance("taylor", 1024) == "taylor on 1,024 training samples"
