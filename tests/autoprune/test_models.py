"""Models by name, their arguments and their weights."""

from __future__ import annotations

import json
import os
import pickle
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autoprune.models import ModelSource, input_channels, load_weights, parse_model_args
from autoprune.search_spaces.errors import UserError

DIGITS = "autoprune.nets:digits_resnet"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


def not_a_module() -> str:
    return "no"


def failing(size: int) -> nn.Module:
    raise RuntimeError(f"{size} is an unlucky number")


def test_build_is_deterministic_in_eval_mode_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    source = ModelSource("torchvision:squeezenet1_1", {"num_classes": 4})
    one, other = source.build(), source.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in one.modules())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    different = source.build(seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), different.parameters(), strict=True))
    assert one(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_pretrained_backbones_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    assert isinstance(ModelSource("torchvision:lraspp_mobilenet_v3_large").build(), nn.Module)


def test_timm() -> None:
    pytest.importorskip("timm")
    model = ModelSource("timm:test_resnet.r160_in1k", {"num_classes": 3}).build()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(UserError, match=r"Unknown timm model 'resnt18'. Did you mean 'resnet18'"):
        ModelSource("timm:resnt18").build()


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'autoprune\[timm\]'"):
        ModelSource("timm:resnet18").build()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnt18", "Unknown torchvision model 'resnt18'. Did you mean 'resnet18'"),
        ("resnet18", "Cannot read the model 'resnet18'. Did you mean torchvision:resnet18[?] Write torchvision:NAME"),
        ("resnot", "Cannot read the model 'resnot'. Write torchvision:NAME"),
        ("torchvison:resnet18", "Did you mean torchvision:resnet18[?]"),
        ("autoprune.net:digits_resnet", "Did you mean autoprune.nets:digits_resnet[?]"),
        ("torchvision:", "package.module:function"),
        (":x", "package.module:function"),
        ("no_such_package.nets:net", "needs a module 'no_such_package', but there is none in"),
        ("autoprune.nots:net", "needs a module 'autoprune.nots'"),
        ("autoprune.nets:digits_resne", "Did you mean 'digits_resnet'"),
        ("autoprune.nets:__doc__", "must be a function or class that gives the model, but is a str"),
        (f"{__name__}:not_a_module", "must return a torch.nn.Module, but returned a str"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelSource(spec).build()


def test_the_constructors_own_error_keeps_its_message() -> None:
    with pytest.raises(UserError, match=r"failing\(size=13\) failed with RuntimeError: 13 is an unlucky") as caught:
        ModelSource(f"{__name__}:failing", {"size": 13}).build()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(UserError, match="unexpected keyword argument 'clases'"):
        ModelSource(DIGITS, {"clases": 3}).build()


def test_modules_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine_for_test.py").write_text(
        "from torch import nn\nclass Nets:\n    @staticmethod\n    def net(n): return nn.Linear(n, n)\n"
    )
    Path("needy_for_test.py").write_text("import a_package_that_is_not_there\n")
    Path("broken_for_test.py").write_text("1 / 0\n")
    model = ModelSource("mine_for_test:Nets.net", {"n": 3}).build()
    assert isinstance(model, nn.Linear)
    with pytest.raises(UserError, match=r"Importing 'needy_for_test' .* failed: No module named 'a_package"):
        ModelSource("needy_for_test:net").build()
    with pytest.raises(UserError, match=r"Importing 'broken_for_test' .* failed with ZeroDivisionError"):
        ModelSource("broken_for_test:net").build()


def test_model_args() -> None:
    texts = ["a=10", "b=0.5", "c=true", "d=False", "e=null", "f=[8, 16]", "g=relu", "h=", "i=x=y", "j=None", 'k="7"']
    assert parse_model_args(texts) == {
        "a": 10, "b": 0.5, "c": True, "d": False, "e": None, "f": [8, 16], "g": "relu", "h": "", "i": "x=y", "j": None,
        "k": "7",
    }  # fmt: skip
    for text in ("num_classes", "=3", "my arg=3"):
        with pytest.raises(UserError, match="written NAME=VALUE"):
            parse_model_args([text])
    with pytest.raises(UserError, match="'a' is given twice"):
        parse_model_args(["a=1", "a=2"])


def test_source_as_json() -> None:
    for source in (
        ModelSource(DIGITS),
        ModelSource("torchvision:resnet18", {"num_classes": 10, "widths": [1, 2]}, "weights/x.safetensors"),
    ):
        assert ModelSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source
    with pytest.raises(UserError, match=r"model argument norm=.* cannot be stored"):
        ModelSource(DIGITS, {"norm": nn.BatchNorm2d}).to_dict()


def test_input_channels() -> None:
    assert input_channels(ModelSource(DIGITS, {"in_channels": 2}).build()) == 2
    assert input_channels(nn.Linear(3, 3)) is None


def weights() -> dict[str, Tensor]:
    return dict(ModelSource(DIGITS).build(seed=7).state_dict())


def check_loaded(path: Path) -> None:
    loaded = ModelSource(DIGITS, weights=str(path)).build().state_dict()
    expected = weights()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


def test_weights_from_safetensors(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    check_loaded(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if "num_batches_tracked" not in name},
    ],
)
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_weights_from_torch_files(tmp_path: Path, wrap: Any, ending: str) -> None:
    path = tmp_path / f"w{ending}"
    torch.save(wrap(weights()), path)
    check_loaded(path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = weights()
    state["head.weight"] = torch.zeros(7, 64)
    state["extra"] = torch.zeros(1)
    removed = [name for name in state if name.startswith("stages.2.0.conv")]
    for name in removed:
        del state[name]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError) as caught:
        ModelSource(DIGITS, weights=str(tmp_path / "w.pt")).build()
    message = str(caught.value)
    assert "2 missing: stages.2.0.conv1.weight, stages.2.0.conv2.weight" in message
    assert "1 unknown to the model: extra" in message
    assert "1 of another shape: head.weight is [7, 64] in the file, [10, 64] in the model" in message


def test_many_misfits_are_counted_not_listed(tmp_path: Path) -> None:
    torch.save({f"x{i}": torch.zeros(1) for i in range(9)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="9 unknown to the model: x0, x1, x2, x3, x4 and 4 more"):
        ModelSource(DIGITS, weights=str(tmp_path / "w.pt")).build()


def test_tied_weights_need_to_be_there_once(tmp_path: Path) -> None:
    model = Tied()
    save_file({"first.weight": torch.eye(3), **model.norm.state_dict(prefix="norm.")}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.second.weight, torch.eye(3))


def test_weights_with_nan(tmp_path: Path) -> None:
    state = weights()
    state["head.bias"][0] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"NaN or infinite values in head\.bias"):
        ModelSource(DIGITS, weights=str(tmp_path / "w.pt")).build()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_before_they_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": weights(), "hook": Payload(proof)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(proof), protocol=2))
    torch.save(ModelSource(DIGITS).build(), tmp_path / "whole.pt")
    for name in ("evil.pt", "plain.pt", "whole.pt"):
        with pytest.raises(UserError, match=r"could run code.*torch.save\(model.state_dict"):
            ModelSource(DIGITS, weights=str(tmp_path / name)).build()
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "do not exist"),
        ("x.h5", b"", "read from .safetensors, .pt"),
        ("x.safetensors", b"12", "not a complete safetensors file"),
        ("x.pt", b"", "cannot be read"),
        ("x.pt", b"PK\x03\x04 torn", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        ModelSource(DIGITS, weights=str(tmp_path / name)).build()


@pytest.mark.parametrize("state", [[1, 2], {"epoch": 3}, {}, torch.zeros(3)])
def test_files_without_a_state_dict(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="must be a state_dict"):
        ModelSource(DIGITS, weights=str(tmp_path / "w.pt")).build()
