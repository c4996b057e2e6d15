"""PyTorch in this process: eager, compiled, on CUDA."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.runtimes import clock as clocks
from autoprune.runtimes import make_runtime
from autoprune.runtimes.eager import EagerRuntime
from autoprune.search_spaces.errors import UserError
from tests.autoprune.runtimes.nets import image, small_net, subnets

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics processor")


class Recorder(nn.Module):
    """Notes the circumstances in which it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.seen.update(
            training=self.conv.training,
            inference=torch.is_inference_mode_enabled(),
            threads=torch.get_num_threads(),
            layout=self.conv.weight.is_contiguous(memory_format=torch.channels_last),
            dtype=x.dtype,
            scale=scale,
        )
        y: Tensor = self.conv(x)
        return y * scale


@pytest.fixture
def tf32_switches() -> Iterator[tuple[Any, Any]]:
    """What allows TF32 in convolutions and in matrix products, put back afterwards."""
    switches: tuple[Any, Any] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def test_settings_on_cuda_say_what_computes_in_tf32(tf32_switches: tuple[Any, Any]) -> None:
    """It changes times and outputs of fp32, so it belongs to what a latency is of."""
    runtime = EagerRuntime()
    assert "tf32" not in runtime.settings
    runtime.torch_device = torch.device("cuda")
    said = []
    for allowed in ((True, False), (True, True), (False, True), (False, False)):
        for switch, value in zip(tf32_switches, allowed, strict=True):
            switch.allow_tf32 = value
        said.append(runtime.settings["tf32"])
    assert said == ["convolutions", "convolutions and matmul", "matmul", "off"]


def test_circumstances_are_the_stated_ones_and_put_back() -> None:
    model = Recorder()
    model.conv.eval()
    before = torch.get_num_threads()
    make_runtime("eager", threads=before + 1).open(model, ((image(),), {"scale": 2.0})).load(model)()
    assert model.seen == {
        "training": False,
        "inference": True,
        "threads": before + 1,
        "layout": False,
        "dtype": torch.float32,
        "scale": 2.0,
    }
    assert torch.get_num_threads() == before
    assert model.training
    assert not model.conv.training


def test_circumstances_are_put_back_after_an_error() -> None:
    model, before = Recorder(), torch.get_num_threads()
    runnable = make_runtime("eager", threads=before + 1).open(model, image()[:, :2]).load(model)
    with pytest.raises(RuntimeError):
        runnable()
    assert torch.get_num_threads() == before
    assert model.conv.training


def test_model_is_copied_only_where_it_must_be_converted() -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())

    def loaded(spec: str) -> Any:
        return make_runtime(spec).open(model, image()).load(model)

    assert loaded("eager").model is model
    assert loaded("eager:precision=fp32").model is model
    copied = loaded("eager:layout=channels_last,precision=bf16")
    assert copied.model is not model
    assert copied.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert copied.outputs().dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype
        assert tensor.stride() == before[name].stride()


@pytest.mark.parametrize("spec", ["eager", "eager:layout=channels_last"])
def test_outputs_are_those_of_the_subnet(spec: str) -> None:
    net = small_net()
    _, nets = subnets(net, 2)
    session = make_runtime(spec).open(net, image(3))
    for model in (net, *nets):
        runnable: Any = session.load(model)
        with torch.inference_mode():
            assert torch.allclose(runnable.outputs(), model(image(3)), atol=1e-5)
        assert runnable().wall > 0


def test_times_of_modules_exclude_their_submodules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is one millisecond later than the one before."""
    from autoprune.runtimes import eager

    net = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Flatten()).eval()
    now = iter(range(10**6))
    monkeypatch.setattr(eager.EagerRunnable, "_now", lambda self: float(next(now)))
    layers = make_runtime("eager").open(net, image()).load(net).layers()
    assert layers == {"0.0": 1, "0.1": 1, "0": 3, "1": 1, "": 3}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_timers_read_the_clock_they_are_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, thread, process = iter([1.0, 1.5]), iter([2.0, 2.25]), iter([3.0, 3.125])
    monkeypatch.setattr(time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(time, "thread_time", lambda: next(thread))
    monkeypatch.setattr(time, "process_time", lambda: next(process))
    assert clocks.cpu_timer(1)(lambda: None) == (500.0, 250.0)
    wall = iter([1.0, 1.5])
    assert clocks.cpu_timer(2)(lambda: None) == (500.0, 125.0)


@pytest.mark.slow
def test_compiled_subnets_keep_their_own_widths() -> None:
    """Two subnets share their code; each must get a compiled form of its own, and the first keep running."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    narrow = nn.Sequential(nn.Conv2d(3, 5, 3, stride=8), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    session = make_runtime("compile").open(net, image())
    runnables: list[Any] = [session.load(net), session.load(narrow)]
    for runnable, model in zip(runnables, (net, narrow), strict=True):
        assert runnable().wall > 0
        assert runnable.layers() is None
        with torch.inference_mode():
            assert torch.allclose(runnable.outputs(), model(image()), atol=1e-5)


def test_failing_compiler_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, **_: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"No working C\+\+ compiler found.*install one"):
        make_runtime("compile").open(small_net(), image()).load(small_net())


@needs_gpu
@pytest.mark.parametrize("spec", ["eager", "eager:graph=true", "eager:precision=fp16", "compile"])
def test_cuda(spec: str) -> None:
    net = small_net()
    runtime = make_runtime(spec, device="cuda")
    assert runtime.clock == "cuda events"
    assert runtime.device
    runnable: Any = runtime.open(net, image()).load(net)
    times = runnable()
    assert times.wall > 0
    assert times.cpu is None
    with torch.inference_mode():
        expected = net(image())
    assert torch.allclose(runnable.outputs().float().cpu(), expected, atol=1e-2)
    assert next(net.parameters()).device.type == "cpu"
