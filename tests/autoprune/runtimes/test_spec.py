"""Names and settings of runtimes."""

from __future__ import annotations

import pytest
import torch

from autoprune.runtimes import RUNTIMES, make_runtime
from autoprune.search_spaces.errors import UserError


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "command"])
def test_every_runtime_says_what_it_is(name: str) -> None:
    if name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    runtime = make_runtime(name, threads=2)
    assert (runtime.name, runtime.threads, runtime.clock, runtime.device) == (name, 2, "wall", None)
    assert make_runtime(name).clock == "cpu"
    assert runtime.describe().startswith(f"{name} {runtime.version} {runtime.precision}, 2 threads")


def test_settings_are_read() -> None:
    runtime = make_runtime("eager:precision=bf16, layout=channels_last")
    assert (runtime.precision, runtime.settings) == ("bf16", {"layout": "channels_last"})
    assert make_runtime("compile:mode=max-autotune").settings["mode"] == "max-autotune"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onnx", "Unknown runtime 'onnx'. Did you mean 'onnxruntime'?"),
        ("", "Unknown runtime ''"),
        ("eager:", "ends with a colon"),
        ("eager:fast", "written key=value"),
        ("eager:layot=contiguous", "Did you mean 'layout'?"),
        ("eager:precision=int4", "Unknown value of eager:precision 'int4'"),
        ("eager:precision=bf16,precision=fp32", "given twice"),
        ("onnxruntime:precision=bf16", "has no settings"),
        ("eager:graph=true", "needs the device cuda"),
    ],
)
def test_wrong_specs_get_one_message(spec: str, message: str) -> None:
    if spec.startswith("onnxruntime"):
        pytest.importorskip("onnxruntime")
    with pytest.raises(UserError) as caught:
        make_runtime(spec)
    assert message in str(caught.value)


def test_devices_and_threads_are_checked() -> None:
    with pytest.raises(UserError, match="only eager and compile"):
        make_runtime("onnxruntime", device="cuda")
    for device in ("meta", "no such device"):
        with pytest.raises(UserError, match=f"{device}'"):
            make_runtime("eager", device=device)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no graphics processor"):
            make_runtime("eager", device="cuda")
    for threads in (0, True, 1.5):
        with pytest.raises(UserError, match="`threads`"):
            make_runtime("eager", threads=threads)  # type: ignore[arg-type]
