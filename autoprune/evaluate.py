"""Score a candidate: slice, recover, score on the search split.

Each step can be replaced by a function of the user's. The dense model is never changed: a scored subnet shares the
storage of what is not cut, but owns its BatchNorm statistics. The same candidate gives the same score, bit for bit
(one machine, one number of threads, one order of samples). Remembering scores is the controller's business.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from autoprune.bounds import Cut
from autoprune.data.base import Data, Inputs
from autoprune.data.ordered import Indexable, OrderedBatches, hold
from autoprune.memory import Halving, InParts, smallest_batch
from autoprune.precision import autocast, device_of, resolve_precision
from autoprune.recalibrate import NothingRecalibrated, own_statistics, recalibrate, tracking_layers
from autoprune.recovery.ladder import RUNGS, Ladder
from autoprune.running import EvaluationFailed, evaluation_mode, private_random
from autoprune.scores import DivergenceFromDense, SampleScore, Score, Test, TopK, accuracy, predictions, score_samples
from autoprune.search_spaces import SearchSpace
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.types import Candidate, FloatArray
from autoprune.worst import WORST_CLASS, WorstOf, WorstSlice, classes

__all__ = ["SCORES", "EvaluationFailed", "Evaluator", "accuracy", "recalibrate"]

T = TypeVar("T")

SCORES = ("accuracy", "top5", "kl", WORST_CLASS)


class Sliceable(Protocol):
    """What the evaluation asks of a search space."""

    @property
    def model(self) -> nn.Module: ...

    def materialise(self, candidate: Candidate, importance: str = "l2", *, share: bool = False) -> nn.Module: ...


class Evaluator:
    """Scores candidates of one study.

    Args:
        space: slices the dense model.
        data: `calibration` gives the inputs of recovery, `search` the samples of the score.
        score: "accuracy", "top5", "worst_class_accuracy" (in [0, 1]), "kl" (minus nats), a `WorstOf`, or a function
            (model, batches) -> float, called under `torch.no_grad` and the precision's autocast with the model in
            evaluation mode; it moves its batches to the model's device itself. Higher is better. Where it runs out of
            memory it is called again with smaller batches: let it add up samples, not means of batches.
        importance: criterion by which units are kept.
        recovery: rung of the ladder that every candidate is put on, see `recovery.ladder.RUNGS`. None: "compensate",
            or "recalibrate" where what was cut is not known.
        calibration_samples: training samples that recovery reads; 0 turns it off.
        seed: seeds the global generators while a candidate is scored, for models and functions that draw from them.
        precision: "auto", "fp32" or "bf16"; decided once, on the dense model.
        materialise: replaces slicing: candidate -> network of its own storage.
        recalibrate: replaces recovery: (network, batches of inputs) -> number of layers changed. The network then
            shares no storage with the dense model, whatever the function does to it.

    Attributes:
        precision: what is used, "fp32" or "bf16".
        recovery: the rung.
        knows_the_cut: whether all steps are the library's own, so that every rung can be used.
        bounded: whether a bound of the score is known while it is computed: not for a function of the user's.

    Raises:
        UserError: an unknown score, rung or precision, a negative number of samples, or a rung that needs to know what
            was cut beside a `materialise` of the user's.
    """

    def __init__(
        self,
        space: Sliceable,
        data: Data,
        *,
        score: str | Score = "accuracy",
        importance: str = "l2",
        recovery: str | None = None,
        calibration_samples: int = 2000,
        seed: int = 0,
        precision: str = "auto",
        materialise: Callable[[Candidate], nn.Module] | None = None,
        recalibrate: Callable[[nn.Module, Sequence[Inputs]], int] | None = None,
    ) -> None:
        if calibration_samples < 0:
            raise UserError(f"`calibration_samples >= 0` must hold, but got {calibration_samples}.")
        self._materialise, self._recalibrate = materialise, recalibrate
        self.knows_the_cut = isinstance(space, SearchSpace) and not self.replaces_steps
        if recovery is None:
            recovery = "compensate" if self.knows_the_cut else "recalibrate"
        if recovery not in RUNGS:
            raise unknown("recovery", recovery, RUNGS)
        self.space, self.data = space, data
        self.recovery = recovery if calibration_samples else "slice"
        self.importance, self.calibration_samples, self.seed = importance, calibration_samples, seed
        self.precision = resolve_precision(precision, space.model)
        self._function = score if callable(score) and not isinstance(score, WorstOf) else None
        self._samples_score = self._resolve(score)  # one of ours, over the split as it is
        self._ordered: tuple[SampleScore, OrderedBatches] | None = None
        self.score_name = score if isinstance(score, str) else getattr(score, "__qualname__", type(score).__name__)
        self.num_norms = len(tracking_layers(space.model))
        self._ladder: Ladder | None = None
        if isinstance(space, SearchSpace):
            self._ladder = Ladder(
                space,
                data,
                samples=calibration_samples,
                importance=importance,
                classifies=self._function is None,
                precision=self.precision,
            )
        if self.recovery in RUNGS[2:] and not self.knows_the_cut:
            raise UserError(
                f"The recovery {recovery!r} must know what was cut: it cannot be used with a slicing of your own. Set "
                "recovery='recalibrate'."
            )
        if self.recovery == "recalibrate" and not self.num_norms and recalibrate is None:
            warnings.warn(
                "The model has no BatchNorm layer that keeps statistics: candidates are scored without recalibration. "
                "Set recovery to 'compensate' or 'repair' to recover them.",
                NothingRecalibrated,
                stacklevel=2,
            )

    @property
    def replaces_steps(self) -> bool:
        """Whether slicing or recovery is a function of the user's."""
        return self._materialise is not None or self._recalibrate is not None

    @property
    def bounded(self) -> bool:
        return self._samples_score is not None

    @property
    def averages(self) -> bool:
        """Whether the score is a mean of losses of single samples."""
        return self.bounded and not isinstance(self._samples_score, WorstSlice)

    @cached_property
    def score_dense(self) -> float:
        """Score of the dense model as it is: neither sliced nor recalibrated. On the split's own batches, always."""
        return self._finite(self._in_private(lambda: self._value(self.space.model, None, None)))

    def evaluate(self, candidate: Candidate) -> float:
        """Return the score of a candidate on the search split.

        Raises:
            EvaluationFailed: outputs or score are NaN or infinite.
            UserError: model, data and score do not fit each other.
        """
        return self.score(self.network(candidate, share=True))

    def evaluate_above(self, candidate: Candidate, alpha: float) -> float | Cut:
        """Return the score, or stop as soon as it is certain not to exceed `alpha`; see `bounds` and `evaluate`.

        A score that is returned is the one that `evaluate` returns, bit for bit.
        """
        return self._stopped(candidate, self._ordered, alpha)

    def race(
        self, candidate: Candidate, order: Sequence[int], alpha: float | None, test: Test | None
    ) -> tuple[float | Cut, FloatArray]:
        """As `evaluate_above`, in an order of its own, and given up where `test` says so; None: nothing cuts.

        Returns:
            What became of it, and the losses of the samples that were evaluated, in that order.
        """
        losses: list[float] = []
        found = self._stopped(candidate, self._in(order), alpha, test, losses)
        return found, np.array(losses)

    def hardest_first(self, candidate: Candidate) -> list[int] | None:
        """Return the numbers of the search samples, those first that are hardest for the network of `candidate`.

        None where they cannot be read in another order (too many for memory, or of several shapes), where the score is
        a function of the user's, or where this network gives NaN or infinite outputs.
        """
        score = self._samples_score
        if score is None or self._held is None:
            return None
        model = self.network(candidate, share=True)

        def hardness() -> torch.Tensor:
            outputs = enumerate(predictions(model, self.data.search, self.precision))
            return torch.cat([score.hardness(number, *output).cpu() for number, output in outputs])

        try:
            found = self._in_private(hardness)
        except EvaluationFailed:
            return None
        order: list[int] = score.hardest_first(found).tolist()
        return order

    def use_order(self, order: Sequence[int]) -> None:
        """Score candidates from now on in batches of samples in this order, a permutation of the search split.

        Raises:
            UserError: it is no such permutation, or the split cannot be read in another order.
        """
        score, held = self._samples_score, self._held
        if score is None or held is None or sorted(order) != list(range(self.data.search.num_samples)):
            raise UserError(
                f"The order of {len(order):,} samples does not fit the search split, or it cannot be sorted."
            )
        self._ordered = self._in(order)

    def subnet(self, candidate: Candidate) -> nn.Module:
        """Return the candidate's network, recovered, in evaluation mode, with storage of its own: what fine-tuning
        starts from.
        """
        return self.network(candidate).eval()

    def network(self, candidate: Candidate, rung: str | None = None, *, share: bool = False) -> nn.Module:
        """Return the candidate's network on a rung of the ladder, that of the study where None.

        Args:
            share: what is not changed may share storage with the dense model: for scoring.

        Raises:
            UserError: an unknown rung.
        """
        rung = self.recovery if rung is None else rung
        if rung not in RUNGS:
            raise unknown("recovery", rung, RUNGS)
        with private_random(self._device, self.seed):
            return self._build(candidate, rung, share=share)

    def score(self, model: nn.Module) -> float:
        """Score a network on the search split; see `evaluate` for what is raised."""
        return self._finite(self._in_private(lambda: self._value(model, self._ordered, None)))

    def describe(self) -> dict[str, Any]:
        """What the scores are: for the report and the run folder."""
        return {
            "score": self.score_name,
            "split": "search",
            "precision": self.precision,
            "device": str(self._device),
            "importance": self.importance,
            "recovery": self.recovery,
            "calibration_samples": self.calibration_samples,
            "bounded": self.bounded,
            "hardest_first": self._ordered is not None,
            "recalibrated_layers": self.num_norms if self.recovery in RUNGS[1:3] else 0,
        }

    @property
    def _device(self) -> torch.device:
        return device_of(self.space.model)

    @cached_property
    def _calibration(self) -> list[Inputs]:
        return self.data.calibration(self.calibration_samples)

    def _build(self, candidate: Candidate, rung: str, *, share: bool) -> nn.Module:
        share = share and self._recalibrate is None and rung in RUNGS[:2]
        if self._materialise is not None:
            model = self._materialise(candidate)
        else:
            model = self.space.materialise(candidate, self.importance, share=share)
        own_statistics(model)
        if self._recalibrate is not None:
            if rung != "slice":
                self._recalibrate(model, self._calibration)
        elif self._ladder is not None:
            self._ladder.recover(model, candidate, rung)
        elif rung != "slice" and self.num_norms:
            recalibrate(model, self._calibration, precision=self.precision)
        return model

    def _in(self, order: Sequence[int]) -> tuple[SampleScore, OrderedBatches]:
        """The score, and the split, in another order; it must be readable so."""
        score, held = self._samples_score, self._held
        assert score is not None
        assert held is not None
        batches = OrderedBatches(held[0], order, held[1])
        return self._in_private(lambda: score.in_order(batches)), batches

    def _stopped(
        self,
        candidate: Candidate,
        ordered: tuple[SampleScore, OrderedBatches] | None,
        alpha: float | None,
        test: Test | None = None,
        losses: list[float] | None = None,
    ) -> float | Cut:
        """Score a candidate as far as needed; see `score_samples`."""
        assert self._samples_score is not None, "a function of the user's has no bound"
        highest = self._samples_score.value([], self._total)
        if alpha is not None and highest <= alpha:
            return Cut(highest, 0.0, self._samples_score.pruning)
        model = self.network(candidate, share=True)
        found = self._in_private(lambda: self._value(model, ordered, alpha, test, losses))
        self._finite(found.bound if isinstance(found, Cut) else found)
        return found

    def _resolve(self, score: str | Score) -> SampleScore | None:
        if isinstance(score, WorstOf):
            return WorstSlice(score.slices)
        if callable(score):
            return None
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        if score == WORST_CLASS:
            return WorstSlice(classes)
        if score == "kl":
            return DivergenceFromDense(self.space.model, self.precision)
        return TopK(5 if score == "top5" else 1)

    @cached_property
    def _total(self) -> int:
        score = self._samples_score
        assert score is not None
        return self._in_private(lambda: score.total(self.data.search))

    @cached_property
    def _held(self) -> tuple[Indexable, int] | None:
        return hold(self.data.search)

    def _value(
        self,
        model: nn.Module,
        ordered: tuple[SampleScore, OrderedBatches] | None,
        alpha: float | None,
        test: Test | None = None,
        losses: list[float] | None = None,
    ) -> float | Cut:
        if self._function is not None:
            return self._call(self._function, model)
        assert self._samples_score is not None
        score, batches = (self._samples_score, self.data.search) if ordered is None else ordered
        total = None if alpha is None else self._total
        return score_samples(score, model, batches, self.precision, alpha=alpha, total=total, test=test, losses=losses)

    def _in_private(self, function: Callable[[], T]) -> T:
        """Call `function` with random numbers of its own, after what must be known of the split was read."""
        if self._samples_score is not None:
            with private_random(self._device, self.seed, 1):
                self._samples_score.read(self.data.search)
        with private_random(self._device, self.seed, 1):
            return function()

    def _finite(self, value: float | Cut) -> float:
        assert not isinstance(value, Cut), "nothing was given to cut at"
        if not math.isfinite(value):
            raise EvaluationFailed(f"the score {self.score_name} is {value}")
        return value

    def _call(self, score: Score, model: nn.Module) -> float:
        with evaluation_mode(model), torch.no_grad(), autocast(self.precision, self._device):
            halving = Halving(smallest_batch(model))
            value = halving(lambda: score(model, InParts(self.data.search, halving)))
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"The scoring function {self.score_name} must return a number, higher is better, but it returned "
                f"{value!r}."
            ) from None
