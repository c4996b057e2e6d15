"""Check one network: trace it, cut it five ways, and hold every subnet against the dense network and the counters."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import Candidate, SearchSpace, trace
from autoprune.search_spaces.shapes import ShapeCheck
from autoprune.search_spaces.surgery import to_meta
from autoprune.search_spaces.tracer import map_tensors, plain_kernels, tensors
from tests.zoo import keeping
from tests.zoo.building import Call, build, call_of, settle
from tests.zoo.case import Case
from tests.zoo.records import Record

TOLERANCE, TOLERANCE64 = 1e-5, 1e-9
UNSEEN = 1e-4
"""A relative change of the output below which a cut is not seen at all, and agreement means nothing."""


def check(case: Case, note: Callable[[Record], None]) -> Record:
    """Check a network. `note` is called with the record so far before each step, for whoever stops this process."""
    torch.set_num_threads(1)
    record = Record(library=case.library, name=case.name)
    record.versions = {name: version(name) for name in ("torch", case.library) if name != "faults"}
    steps = _Steps(record, note)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _check(case, record, steps)
    record.warnings = sorted({f"{w.category.__name__}: {str(w.message)[:300]}" for w in caught})
    return record


def _check(case: Case, record: Record, steps: _Steps) -> None:
    model, call, train_call, dense = nn.Module(), _NO_CALL, _NO_CALL, _Outputs()
    with steps("build"):
        model = build(case)
        torch.manual_seed(1)
        call = call_of(case.inputs())
        train_call = call_of(case.train_inputs()) if case.train_inputs else call
        settle(model, train_call)
        record.params = sum(p.numel() for p in model.parameters())
    with steps("dense run"):
        dense = _dense_outputs(case, model, call, train_call)
    if record.failures:
        return
    keeping.mark(model)
    before = keeping.state(model)
    space: SearchSpace | None = None
    with steps("trace"):
        started = time.perf_counter()
        space = trace(model, call)
        record.trace_s = time.perf_counter() - started
        _describe(space, record)
    if space is None:
        return
    chosen = _candidates(space)
    with steps("slice"):
        space.ranking()  # once per study
        started = time.perf_counter()
        space.materialise(chosen["0.5"])
        record.slice_s = time.perf_counter() - started
    seen = [_check_candidate(case, space, f"{name}: ", candidate, call, train_call, dense, record, steps)
            for name, candidate in chosen.items()]  # fmt: skip
    with steps("vacuous"):
        assert any(seen), "the output never changes, whatever is cut: that subnet and dense network agree says nothing"
    with steps("dense network untouched"):
        changed = keeping.changes(before, keeping.state(model))
        assert not changed, f"changed: {', '.join(changed[:5])}"
    if record.error is not None and not record.error <= TOLERANCE:
        with steps("float64"):
            _verify_in_float64(space, chosen, record)


class _Steps:
    """Names what is being done; a step that raises becomes a line of the record, and the check goes on."""

    def __init__(self, record: Record, note: Callable[[Record], None]) -> None:
        self.record, self.note = record, note

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.record.failures.append(f"{name}: did not end")
        self.note(self.record)
        self.record.failures.pop()
        try:
            yield
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            self.record.failures.append(f"{name}: {type(error).__name__}: {first}"[:400])


class _Outputs:
    """Structures of the dense network's outputs, and its outputs in evaluation mode."""

    evaluation: Any = None
    training: Any = None
    tensors: tuple[Tensor, ...] = ()


_NO_CALL: Call = ((), {})


def _call(model: nn.Module, call: Call) -> Any:
    torch.manual_seed(2)  # dropped paths and samples are the same in every run
    args, kwargs = map_tensors(call, torch.clone)
    return model(*args, **kwargs)


def _dense_outputs(case: Case, model: nn.Module, call: Call, train_call: Call) -> _Outputs:
    outputs = _Outputs()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with torch.no_grad():
        evaluation = _call(model.eval(), call)
        training = _call(model.train(), train_call)
    for name, b in model.named_buffers():
        b.copy_(buffers[name])
    outputs.evaluation = keeping.structure(evaluation, case.sizes_vary)
    outputs.training = keeping.structure(training, case.sizes_vary)
    outputs.tensors = tuple(t.clone() for t in tensors(evaluation))
    return outputs


def _describe(space: SearchSpace, record: Record) -> None:
    record.groups, record.units = len(space.groups), sum(g.num_units for g in space.groups)
    record.inexact = sum(not g.exact for g in space.groups)
    reasons: Counter[str] = Counter()
    for frozen in space.frozen:
        reasons[frozen.reason] += frozen.num_units
    record.frozen = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    record.unknown_ops = sorted(space.unknown_ops)
    record.macs = space.costs(space.dense).macs
    record.smallest = space.costs(space.smallest).macs / record.macs


def _candidates(space: SearchSpace) -> dict[str, Candidate]:
    """By name: keep ratios of every group at once, and mixtures."""
    rng = np.random.default_rng(0)
    found = {str(ratio): space.candidate(ratio) for ratio in (0.9, 0.5, 0.1)}
    for name in ("mixed", "mixed2"):
        found[name] = tuple(int(level) for level in rng.integers(0, space.num_levels))
    return found


def _check_candidate(
    case: Case,
    space: SearchSpace,
    name: str,
    candidate: Candidate,
    call: Call,
    train_call: Call,
    dense: _Outputs,
    record: Record,
    steps: _Steps,
) -> bool:
    """One candidate; returns whether the cut is seen in the output."""
    with steps(f"{name}verify"):
        record.error = max(space.verify(candidate), record.error or 0.0)
    subnet = nn.Module()
    with steps(f"{name}materialise"):
        subnet = space.materialise(candidate)
        lost = list(keeping.lost(space.model, subnet))
        assert not lost, f"lost: {', '.join(lost)}"
    outputs: tuple[Tensor, ...] = ()
    with steps(f"{name}evaluation mode"), torch.no_grad():
        result = _call(subnet.eval(), call)
        outputs = tuple(tensors(result))
        assert keeping.structure(result, case.sizes_vary) == dense.evaluation, "the output's structure or shape changed"
    with steps(f"{name}training mode"):
        result = _call(subnet.train(), train_call)
        assert keeping.structure(result, case.sizes_vary) == dense.training, "the output's structure or shape changed"
        _check_gradients(subnet, result)
    with steps(f"{name}costs"):
        costs = space.costs(candidate)
        counted = sum(p.numel() for p in subnet.parameters())
        assert costs.params == counted, f"{costs.params} parameters, but the subnet has {counted}"
        flops = _flops_on_the_traced_path(space, candidate, call) if case.sizes_vary else _flops(subnet, call)
        assert 2 * costs.macs == flops, f"{costs.macs} MACs, but the subnet takes {flops / 2:.0f}"
    return any(map(_differ, outputs, dense.tensors))


def _check_gradients(subnet: nn.Module, result: Any) -> None:
    loss = torch.zeros(())
    for tensor in tensors(result):
        if tensor.requires_grad and tensor.numel():
            scale = tensor.detach().abs().max().clamp(min=1e-12)  # random networks make outputs of any size
            loss = loss + (tensor / scale).square().mean().float()
    loss.backward()
    gradients = [p.grad for p in subnet.parameters() if p.grad is not None]
    subnet.zero_grad()
    assert all(g.isfinite().all() for g in gradients), "a gradient is not finite"
    assert any(g.any() for g in gradients), "every gradient is zero"


def _flops(subnet: nn.Module, call: Call) -> int:
    """FLOPs of the subnet by PyTorch's own counter."""
    with plain_kernels(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _call(to_meta(subnet.eval()), map_tensors(call, lambda t: t.to("meta")))
    return int(counter.get_total_flops())


def _flops_on_the_traced_path(space: SearchSpace, candidate: Candidate, call: Call) -> int:
    """The same where sizes depend on values: what they decide is decided as in the trace."""
    path = ShapeCheck(space._trace, space.keep_atoms(space.kept_units(candidate)))
    subnet = space.materialise(candidate, share=True).eval()
    with plain_kernels(), torch.no_grad(), FlopCounterMode(display=False) as counter, path:
        _call(subnet, call)
    return int(counter.get_total_flops())


def _differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return True
    scale = b.double().abs().max().clamp(min=1e-30) if b.numel() else 1.0
    return bool(b.numel()) and not bool((a.double() - b.double()).abs().max() <= UNSEEN * scale)


def _verify_in_float64(space: SearchSpace, chosen: dict[str, Candidate], record: Record) -> None:
    """Is it rounding? The same candidates of the same network in float64."""

    def double(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    torch.set_default_dtype(torch.float64)  # for what the network's own code makes; this process ends here
    model = space.model.double()
    again = trace(model, map_tensors(space.example_inputs, double))
    assert [g.num_units for g in again.groups] == [g.num_units for g in space.groups], "other groups than in float32"
    record.error64 = max(again.verify(candidate) for candidate in chosen.values())
    assert record.error64 <= TOLERANCE64, f"relative error {record.error:.1e}, in float64 {record.error64:.1e}"
