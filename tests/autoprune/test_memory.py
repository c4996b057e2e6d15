from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune import memory
from autoprune.data.base import Batches, Data
from autoprune.data.tensors import TensorBatches
from autoprune.evaluate import Evaluator
from autoprune.importance import collect
from autoprune.memory import BatchesHalved, Halving, is_out_of_memory, join
from autoprune.nets import SmallResNet
from autoprune.profiling import measure_table
from autoprune.recalibrate import recalibrate
from autoprune.scores import accuracy
from autoprune.search_spaces import SearchSpace, trace
from autoprune.search_spaces.types import Candidate
from tests.autoprune.runs import blobs

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB"


class Hungry(SmallResNet):
    """Runs out of memory above so many samples a batch; `ran` lists the batches that it was given."""

    room: float = math.inf
    ran: list[int]

    def forward(self, x: Tensor) -> Tensor:
        Hungry.ran.append(len(x))
        if len(x) > Hungry.room:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return super().forward(x)


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Hungry, "room", math.inf)
    Hungry.ran = []
    memory._say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchesHalved)
        yield


def hungry_net() -> Hungry:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Hungry(10, 1, (8, 16), (1, 1), 1).eval()


def data(batch_size: int = 50) -> Data:
    train, search = blobs(200, 1), blobs(100, 2)
    return Data(
        "blobs", TensorBatches(*train, batch_size=batch_size), TensorBatches(*search, batch_size=50), None, 10, 0
    )


@cache
def space() -> SearchSpace:
    return trace(hungry_net(), torch.zeros(2, 1, 8, 8), align=1)


def half() -> Candidate:
    return tuple(len(group.levels) // 2 for group in space().groups)


def runs_of(room: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the networks so much room from here on; their batches are counted anew."""
    monkeypatch.setattr(Hungry, "room", room)
    Hungry.ran = []
    return Hungry.ran


def same_value(value: float) -> object:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


# -- telling it from other errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes. Buy new RAM!"),
    ],
)
def test_out_of_memory_has_many_names(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_a_real_one_is_known_and_others_are_not() -> None:
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**50)
    assert is_out_of_memory(torch_error.value)
    assert is_out_of_memory(numpy_error.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


# -- halves ----------------------------------------------------------------------------------------------------------


def test_a_score_is_the_same_in_halves_and_a_size_that_fits_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = hungry_net(), data().search
    whole = accuracy(net, split)
    assert Hungry.ran == [50, 50]
    ran = runs_of(13, monkeypatch)
    assert accuracy(net, split) == whole
    assert ran == [50, 25, 13, 13, 13, 11, 13, 13, 13, 11]


def test_one_sample_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = runs_of(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        accuracy(hungry_net(), TensorBatches(*blobs(5, 2), batch_size=5))
    assert ran == [5, 3, 2, 1]


def test_samples_that_know_of_each_other_are_not_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    net = hungry_net()
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_mean = norm.running_var = None  # it takes the statistics of the batch
    ran = runs_of(25, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        accuracy(net, data().search)
    assert ran == [50]


def test_it_is_said_once_and_other_errors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs_of(13, monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        accuracy(hungry_net(), data().search)
        accuracy(hungry_net(), data().search)
    assert [str(entry.message) for entry in said] == [
        "Batches of 50 samples do not fit in memory: they are run in parts of 13. Set a smaller batch_size to save the "
        "attempts."
    ]
    calls = []

    def broken() -> None:
        calls.append(1)
        raise RuntimeError("not that")

    with pytest.raises(RuntimeError, match="not that"):
        Halving()(broken)
    assert len(calls) == 1


def test_nothing_of_the_failed_attempt_is_held_in_the_next() -> None:
    held: list[weakref.ref[Tensor]] = []
    halving = Halving()

    def run(batch: Tensor) -> Tensor:
        activations = batch.clone()
        assert all(reference() is None for reference in held), "a failed attempt is still in memory"
        if len(batch) > 2:
            held.append(weakref.ref(activations))
            try:
                raise torch.OutOfMemoryError("first")
            except RuntimeError as error:
                raise torch.OutOfMemoryError("second") from error
        return activations * 2

    batch = torch.arange(8.0)
    found = halving(lambda: join([run(part) for part in halving.parts(batch)]))
    assert len(held) == 2
    assert torch.equal(found, batch * 2)


def test_outputs_of_any_form_are_joined() -> None:
    halving = Halving()
    halving.limit = 2
    batch: dict[str, Any] = {"x": torch.arange(5.0), "mask": None}
    parts = halving.parts(batch)
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    joined = join([(part["x"], {"twice": 2 * part["x"], "none": part["mask"]}) for part in parts])
    assert torch.equal(joined[0], torch.arange(5.0))
    assert torch.equal(joined[1]["twice"], 2 * torch.arange(5.0))
    assert joined[1]["none"] is None


# -- wherever networks run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "recovery"), [("accuracy", "slice"), ("kl", "slice"), ("kl", "compensate")])
def test_candidates_keep_their_scores(score: str, recovery: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def scored() -> float:
        evaluator = Evaluator(space(), data(), score=score, recovery=recovery, calibration_samples=100)
        return evaluator.evaluate(half())

    whole = scored()
    ran = runs_of(25, monkeypatch)
    halved = scored()
    assert max(size for size in ran if size <= 25) == 25
    # Statistics of a BatchNorm are means over batches, and differ between batches of 50 and of 25.
    assert halved == (same_value(whole) if recovery == "slice" else pytest.approx(whole, rel=0.05))


def test_a_candidate_is_scored_alike_whatever_was_scored_before(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(space(), data(), score="kl", recovery="recalibrate", calibration_samples=100)
    before = evaluator.evaluate(half())
    runs_of(20, monkeypatch)
    evaluator.evaluate(space().dense)
    runs_of(math.inf, monkeypatch)
    assert evaluator.evaluate(half()) == before


def test_statistics_are_not_taken_of_too_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    net = hungry_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ran = runs_of(12, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        recalibrate(net, data().calibration(100))
    assert ran == [50, 25, 13]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_a_function_of_the_users_is_given_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def right(model: nn.Module, batches: Batches) -> float:
        lengths.append(len(batches))
        assert batches.num_samples == 100
        return sum(float((model(x).argmax(1) == y).sum()) for x, y in batches)

    evaluator = Evaluator(space(), data(), score=right, recovery="slice")
    whole = evaluator.evaluate(half())
    runs_of(25, monkeypatch)
    assert evaluator.evaluate(half()) == whole
    assert lengths == [2, 2, 4]


@pytest.mark.parametrize("share", [True, False])
def test_a_table_of_losses_is_the_same(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> list[float]:
        table = measure_table(Evaluator(space(), data(), recovery="slice"), levels=1, samples=100, share=share)
        return [value for levels in table.measured for value in levels.values()]

    whole = measured()
    ran = runs_of(25, monkeypatch)
    assert measured() == pytest.approx(whole, rel=1e-3, abs=1e-6)
    assert 25 in ran


def test_importance_is_that_of_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(batch_size: int) -> list[float]:
        collect(space(), "taylor", data(batch_size), num_samples=100)
        return [float(value) for unit in space().unit_scores("taylor") for value in unit]

    smaller = scores(25)
    runs_of(25, monkeypatch)
    assert scores(50) == smaller
