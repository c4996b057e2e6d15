from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autoprune import export_graph
from autoprune.export_graph import as_inputs, export_onnx, export_program, max_difference
from autoprune.nets import digits_resnet
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.space import trace

FORMS = pytest.mark.parametrize("export", [export_onnx, export_program])
Export = Callable[[nn.Module, Any, Path], float]


class Fusion(nn.Module):
    """Keyword arguments, a constant, a tensor without a batch, nested outputs of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0, *, mask: Tensor, table: Tensor) -> dict[str, Any]:
        y = self.layer(x) * scale
        return {"logits": y, "more": [mask.float() + x @ table, y.argmax(1)]}


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@FORMS
@pytest.mark.parametrize("batch", [1, 3])
def test_a_pruned_net_is_written_for_any_batch(tmp_path: Path, export: Export, batch: int) -> None:
    space = trace(digits_resnet(), torch.rand(2, 1, 8, 8))
    model = space.materialise(space.candidate(0.5)).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.bin"

    difference = export(model, torch.rand(batch, 1, 8, 8), path)

    assert 0 <= difference < 1e-5
    assert model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]
    x = torch.rand(7, 1, 8, 8)
    expected = model.eval()(x).detach()
    if export is export_onnx:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    else:
        found = torch.export.load(path).module()(x).detach().numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


@FORMS
def test_any_call_signature(tmp_path: Path, export: Export) -> None:
    example = ((torch.rand(3, 4), 2.5), {"table": torch.rand(4, 4), "mask": torch.ones(3, 4, dtype=torch.bool)})
    assert export(Fusion(), example, tmp_path / "model") < 1e-5


@FORMS
@pytest.mark.parametrize("model", [Branches(), FixedBatch()])
def test_a_model_that_is_no_graph_is_one_clear_error(
    tmp_path: Path, export: Export, model: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="cannot be written as") as caught:
        export(model, torch.rand(2, 4), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@FORMS
def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, export: Export) -> None:
    (tmp_path / "model").write_text("as before")
    with pytest.raises(UserError, match=r"differ from PyTorch's by .*Nothing was written"):
        export(Noisy(), torch.rand(2, 4), tmp_path / "model")
    assert (tmp_path / "model").read_text() == "as before"


def test_the_tolerance_is_relative_to_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_graph, "max_difference", lambda found, expected: 0.5)
    big = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(big[0].weight, 1e4)  # type: ignore[arg-type]
    assert export_program(big, torch.ones(2, 2), tmp_path / "model") == 0.5
    with pytest.raises(UserError, match="differ"):
        export_program(nn.Linear(2, 2), torch.ones(2, 2), tmp_path / "model")


@pytest.mark.parametrize("module", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_names_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module}.*pip install 'autoprune\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), torch.rand(2, 2), tmp_path / "model.onnx")


@FORMS
@pytest.mark.parametrize("example", [(), torch.tensor(1.0), torch.rand(0, 2), ("text",)])
def test_an_example_without_a_batch(tmp_path: Path, export: Export, example: Any) -> None:
    with pytest.raises(UserError, match="first dimension is the batch"):
        export(nn.Linear(2, 2), example, tmp_path / "model")


def test_ways_to_write_an_example() -> None:
    x, y = torch.rand(1), torch.rand(1)
    assert as_inputs(x) == ((x,), {})
    assert as_inputs((x, y)) == ((x, y), {})
    assert as_inputs([x, y]) == ((x, y), {})
    assert as_inputs({"x": x}) == ((), {"x": x})
    assert as_inputs(((x,), {"y": y})) == ((x,), {"y": y})


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), 0.5),
        (
            {"a": torch.tensor([1, 2]), "b": [torch.tensor(True)]},
            {"a": torch.tensor([1, 4]), "b": [torch.tensor(True)]},
            2,
        ),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]), 0),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), float("inf")),
        (torch.tensor([float("inf")]), torch.tensor([1.0]), float("inf")),
        (torch.zeros(2), torch.zeros(3), float("inf")),
        ([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)], float("inf")),
        ("a", "b", float("inf")),
        (torch.tensor([3 + 4j]), torch.tensor([0j]), 5),
        (torch.zeros(0), torch.zeros(0), 0),
    ],
)
def test_max_difference(found: Any, expected: Any, difference: float) -> None:
    assert max_difference(found, expected) == difference
