from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from autoprune import export as engine
from autoprune.export import export_folder
from autoprune.models import ModelSource
from autoprune.nets import digits_resnet
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.space import SearchSpace, trace
from autoprune.search_spaces.types import Candidate

# Any: what comes back is the user's own class, whose attributes `nn.Module` does not tell.
load: Callable[..., Any] = engine.load

SOURCE = ModelSource("autoprune.nets:digits_resnet", {"num_classes": 7})


class Odd(nn.Module):
    """What state_dict leaves out or holds twice: a tied weight, a hidden buffer, a plain tensor, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.conv.requires_grad_(False).weight.requires_grad_(True)
        self.norm = nn.GroupNorm(1, 16)
        self.first = nn.Linear(16, 16, bias=False)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 5)
        self.register_buffer("shift", torch.linspace(0, 1, 16), persistent=False)
        self.scale = torch.tensor(3.0)
        self.limits = [0.0, 6.0]

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x)).mean((2, 3)) + self.shift
        return self.head(self.second(self.first(x)).clamp(*self.limits)) * self.scale


def shuffled(model: nn.Module) -> nn.Module:
    """Every floating tensor at random, norms too: fresh ones and zeros hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1
    return model.eval()


def export(
    folder: Path,
    model: nn.Module | None = None,
    space: SearchSpace | None = None,
    candidate: Candidate | None = None,
    source: ModelSource | None = SOURCE,
) -> tuple[Any, SearchSpace, Candidate]:
    """Export a halved digits net, or what is given."""
    space = space or trace(shuffled(SOURCE.build()), torch.rand(2, 1, 8, 8))
    candidate = candidate or space.candidate(0.5)
    model = model or space.materialise(candidate)
    export_folder(
        folder,
        model=model,
        space=space,
        candidate=candidate,
        importance="l2",
        source=source,
        card="# A card\n",
        meta={"costs": {"macs": 1.5e6}},
    )
    return model, space, candidate


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(
        [*one.named_parameters(), *one.named_buffers()],
        [*other.named_parameters(), *other.named_buffers()],
        strict=True,
    )
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front") / "0"
    export(folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "0"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "architecture.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- there and back -----------------------------------------------------------------------------------------------


def test_a_fine_tuned_model_comes_back_exactly(tmp_path: Path) -> None:
    space = trace(shuffled(SOURCE.build()), torch.rand(2, 1, 8, 8))
    tuned: Any = shuffled(space.materialise(space.candidate(0.5))).train()
    export(tmp_path / "0", tuned, space)

    loaded = load(tmp_path / "0")

    assert type(loaded) is type(tuned)
    assert not loaded.training
    assert tuned.training
    assert same_tensors(loaded, tuned)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(x), tuned.eval()(x))
    assert loaded.stem.out_channels == loaded.stem.weight.shape[0] < 16
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == ["architecture.json", "card.md", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["0"]


def test_architecture_says_what_was_kept(tmp_path: Path) -> None:
    _, space, candidate = export(tmp_path / "0")
    dense: Any = space.model
    content = json.loads((tmp_path / "0" / "architecture.json").read_text())
    record = content["tensors"]["stem.weight"]
    kept = content["indices"][record["kept"][0]]
    assert torch.equal(load(tmp_path / "0").stem.weight, dense.stem.weight[kept])
    assert record["dense"] == [16, 1, 3, 3]
    assert content["source"] == {"spec": SOURCE.spec, "kwargs": {"num_classes": 7}, "weights": None}
    assert content["inputs"]["args"] == [{"shape": [2, 1, 8, 8], "dtype": "float32"}]
    assert content["candidate"] == list(candidate)
    assert content["meta"] == {"costs": {"macs": 1.5e6}}


@pytest.mark.parametrize("how", ["instance", "constructor"])
def test_a_module_from_python_comes_back_with_everything(tmp_path: Path, how: str) -> None:
    dense: Any = shuffled(Odd())
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    space = trace(dense, torch.rand(2, 3, 6, 6))
    pruned: Any = shuffled(space.materialise(space.candidate(0.5)))
    pruned.shift.mul_(2)
    export(tmp_path / "0", pruned, space, source=None)
    with pytest.raises(UserError, match=r"given in Python.*Odd.*model="):
        load(tmp_path / "0")
    random_state = torch.get_rng_state()

    loaded = load(tmp_path / "0", model=dense if how == "instance" else Odd)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module.training for module in loaded.modules())
    x = torch.rand(3, 3, 6, 6)
    assert torch.equal(loaded(x), pruned(x))
    assert loaded.conv.out_channels < 16
    assert torch.equal(loaded.shift, pruned.shift)
    assert "shift" not in loaded.state_dict()
    assert loaded.second.weight is loaded.first.weight
    assert not loaded.conv.bias.requires_grad
    assert loaded.conv.weight.requires_grad
    loaded.train()(x).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert dense.conv.out_channels == 16
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_layer_norm_keeps_a_tuple_for_its_shape(tmp_path: Path) -> None:
    dense = shuffled(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)))
    space = trace(dense, torch.rand(2, 6))
    export(tmp_path / "0", space=space, source=None)
    width = space.groups[0].levels[space.candidate(0.5)[0]]
    assert load(tmp_path / "0", model=dense)[1].normalized_shape == (width,)


def test_channels_last_weights_are_stored_plainly(tmp_path: Path) -> None:
    dense = shuffled(digits_resnet(num_classes=7)).to(memory_format=torch.channels_last)
    space = trace(dense, torch.rand(2, 1, 8, 8))
    pruned, _, _ = export(tmp_path / "0", space=space)
    assert not pruned.stages[0][0].conv1.weight.is_contiguous()
    assert load(tmp_path / "0").stages[0][0].conv1.weight.is_contiguous()


def test_loading_needs_no_search_and_no_dense_weights(folder: Path) -> None:
    code = (
        "import sys, autoprune; model = autoprune.load(sys.argv[1]); "
        "print(type(model).__name__, sorted({'optuna', 'sqlalchemy', 'onnx', 'plotly'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["SmallResNet", "[]"]


def test_a_second_export_replaces_the_first(folder: Path) -> None:
    (folder / "model.onnx").write_text("of the old weights")
    space = trace(shuffled(SOURCE.build()), torch.rand(2, 1, 8, 8))
    export(folder, space=space, candidate=space.smallest)
    assert load(folder).stem.out_channels == space.groups[0].levels[0]
    assert not (folder / "model.onnx").exists()


# -- written only if it is right --------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """Its output depends on a number that neither a tensor nor the constructor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)
        self.gain = 1.0

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x)) * self.gain


def test_a_copy_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    space = trace(Remembers(), torch.rand(2, 4))
    candidate = space.candidate(0.5)
    export(tmp_path / "0", space=space, source=None)
    before = (tmp_path / "0" / "architecture.json").read_bytes()
    changed: Any = space.materialise(candidate)
    changed.gain = 2.0
    with pytest.raises(UserError, match=r"was not written to .*outputs differ by"):
        export(tmp_path / "0", changed, space, source=None)
    assert (tmp_path / "0" / "architecture.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["0"]


def test_a_source_that_builds_another_model_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit.*'head\.weight' has the shape \(10, 64\)"):
        export(tmp_path / "0", source=ModelSource(SOURCE.spec))
    assert list(tmp_path.iterdir()) == []


def test_dropout_and_random_layers_in_train_mode_do_not_matter(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2)).eval()
    space = trace(dense, torch.rand(2, 4))
    pruned = space.materialise(space.candidate(0.5)).train()
    export(tmp_path / "0", pruned, space, source=None)
    x = torch.rand(3, 4)
    assert torch.equal(load(tmp_path / "0", model=dense)(x), pruned.eval()(x))


# -- what a folder may not do -----------------------------------------------------------------------------------------


def test_a_function_of_the_users_own_is_imported_only_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_private_nets.py").write_text(
        "from autoprune.nets import digits_resnet\ndef make(size): return digits_resnet(num_classes=size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = ModelSource("my_private_nets:make", {"size": 7})
    pruned, space, _ = export(tmp_path / "0", source=source)
    monkeypatch.delitem(sys.modules, "my_private_nets")

    with pytest.raises(UserError, match=r"my_private_nets:make\(size=7\).*trust=True.*model="):
        load(tmp_path / "0")
    assert "my_private_nets" not in sys.modules

    assert same_tensors(load(tmp_path / "0", model=space.model), pruned)
    assert "my_private_nets" not in sys.modules
    assert same_tensors(load(tmp_path / "0", trust=True), pruned)


@pytest.mark.parametrize(
    ("spec", "kwargs"),
    [
        ("os:system", {"command": "touch /tmp/never"}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("timm:resnet18", {"checkpoint_path": "/tmp/evil.pth"}),
        ("timm:resnet18", {"pretrained_cfg": {"url": "https://example.org"}}),
        ("timm:resnet18", {"model_name": "hf-hub:somebody/something"}),
        ("timm:hf-hub:somebody/something", {}),
        ("timm:../local", {}),
        ("autoprune.nets:torch.hub.load", {"repo_or_dir": "somebody/something"}),
        ("autoprune.nets:Sequence", {}),
        ("autoprune.nets.os:system", {}),
    ],
)
def test_harmful_builders_are_refused_without_trust(folder: Path, spec: str, kwargs: dict[str, Any]) -> None:
    edit(folder, lambda content: content.update(source={"spec": spec, "kwargs": kwargs, "weights": None}))
    with pytest.raises(UserError, match="trust=True"):
        load(folder)


def test_builders_of_known_families_need_no_trust(folder: Path) -> None:
    edit(folder, lambda c: c.update(source={"spec": "torchvision:resnet18", "kwargs": {"num_classes": 7}}))
    with pytest.raises(UserError, match="does not fit"):  # it was built, and is another net
        load(folder)


@pytest.mark.parametrize(
    ("attribute", "complaint"),
    [
        (["stem", "forward", 3], "no number or tuple 'forward'"),
        (["stem", "__class__", 3], "no number or tuple '__class__'"),
        (["stem", "_parameters", [1]], "no number or tuple '_parameters'"),
        (["stem", "padding_mode", 3], "no number or tuple 'padding_mode'"),
        (["../../etc", "out_channels", 3], "no module"),
        (["stem", "out_channels", "3"], "finite number"),
        (["stem", "out_channels", float("nan")], "finite number"),
        (["stem", "out_channels", {"a": 1}], "finite number"),
    ],
)
def test_only_numbers_that_are_there_can_be_set(folder: Path, attribute: list[Any], complaint: str) -> None:
    edit(folder, lambda content: content["attributes"].append(attribute))
    with pytest.raises(UserError, match=complaint):
        load(folder)


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused(folder: Path) -> None:
    edit(folder, lambda content: content.update(format=2))
    with pytest.raises(UserError, match=r"newer autoprune \(folder format 2.*Upgrade"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("format"),
        lambda c: c.pop("tensors"),
        lambda c: c.update(tensors=[]),
        lambda c: c.update(indices=[[0, -1]]),
        lambda c: c.update(indices=[]),
        lambda c: c["tensors"]["stem.weight"].update(shape=[9, 1, 3, 3]),
        lambda c: c["tensors"]["stem.weight"].update(kept=[None, None, None, None]),
        lambda c: c["tensors"]["stem.weight"].update(kept=[99, None, None, None]),
        lambda c: c["tensors"]["stem.weight"].update(dtype="float64"),
        lambda c: c["tensors"].pop("head.bias"),
        lambda c: c["indices"][0].__setitem__(0, 10**6),
        lambda c: c.update(attributes=[["stem"]]),
        lambda c: c.update(source="resnet"),
        lambda c: c.update(sha256=None),
    ],
)
def test_a_damaged_description_is_one_clear_error(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(folder, change)
    with pytest.raises(UserError, match=r"architecture\.json"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "\x00"])
def test_a_description_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "architecture.json").write_text(text)
    with pytest.raises(UserError, match=r"architecture\.json"):
        load(folder)


def test_weights_that_changed_are_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(folder)
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"There is no file .*model\.safetensors"):
        load(folder)


def test_weights_that_are_no_safetensors_or_others(folder: Path) -> None:
    path = folder / "model.safetensors"
    for data in (b"nonsense", safetensors.torch.save({"stem.weight": torch.zeros(2)})):
        path.write_bytes(data)
        digest = {"sha256": hashlib.sha256(data).hexdigest()}
        edit(folder, lambda content, digest=digest: content.update(digest))  # type: ignore[misc]
        with pytest.raises(UserError, match=r"cannot be read|holds other tensors"):
            load(folder)


def test_a_run_folder_names_its_points(tmp_path: Path) -> None:
    export(tmp_path / "front" / "0")
    with pytest.raises(UserError, match=r"does not hold an exported model.*front/0"):
        load(tmp_path)
    with pytest.raises(UserError, match="does not hold an exported model"):
        load(tmp_path / "absent")


def test_another_dense_model_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit.*it lacks 'bn.bias'.*and \d+ more; it has besides '0.bias'"):
        load(folder, model=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UserError, match=r"must be a torch\.nn\.Module, but got dict"):
        load(folder, model=dict)
