"""The search space of a model: groups, levels, costs, projection, surgery. `trace` makes one.

Shape letters: n candidates, G groups.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autoprune.search_spaces import surgery
from autoprune.search_spaces.attributes import Site, changes, find_attributes
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.collector import collector_paused
from autoprune.search_spaces.costs import CostFunctions
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.groups import Grouping, collect_fields, count_fields, make_groups
from autoprune.search_spaces.importance import Batch, Loss, get_criterion
from autoprune.search_spaces.labels import Field, Labels
from autoprune.search_spaces.placement import Placement
from autoprune.search_spaces.projection import project
from autoprune.search_spaces.proof import prove
from autoprune.search_spaces.runs import trace_model
from autoprune.search_spaces.tracer import Op, TensorSpec, Trace, map_specs
from autoprune.search_spaces.types import Candidate, CostModel, Costs, FloatArray, Frozen, IntArray


class SearchSpace(Placement):
    """What may be cut in `model`, and what every candidate costs; made by `trace`.

    Attributes:
        model: the dense model, never changed.
        example_inputs: (args, kwargs) of the traced call; costs are at its batch size.
        groups: one dimension of the space each, in order of execution.
        frozen: units that stay, and why.
        unknown_ops: ATen ops without a rule that touched prunable positions -> module path.
        level_units: unit counts [G, levels], rows padded with the last level.
        num_levels: levels per group [G].
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[tuple[Any, ...], dict[str, Any]],
        *,
        grouping: Grouping,
        parameters: Mapping[str, Labels],
        traces: Sequence[Trace],
        sites: Sequence[Site],
        fields: Sequence[Field],
    ) -> None:
        super().__init__(model, grouping, parameters)
        self.example_inputs = example_inputs
        self.frozen: tuple[Frozen, ...] = grouping.frozen
        unknown_ops = {op: module for trace in traces for op, module in trace.unknown_ops.items()}
        self.unknown_ops = {op: module for op, module in unknown_ops.items() if op in grouping.pinning_ops}
        self._sites = sites
        self._trace = traces[0]
        self.counts = count_fields(grouping, fields)
        self._added_costs: dict[str, CostModel] = {}
        self._scores: dict[str, list[FloatArray]] = {}
        self._rankings: dict[str, list[IntArray]] = {}
        widest = max((len(g.levels) for g in self.groups), default=1)
        self.level_units = np.array(
            [[*g.levels, *[g.levels[-1]] * (widest - len(g.levels))] for g in self.groups], np.int64
        ).reshape(len(self.groups), widest)
        self.num_levels = np.array([len(g.levels) for g in self.groups], np.int64)

    # -- candidates ---------------------------------------------------------------------------------------------

    @property
    def dense(self) -> Candidate:
        """The candidate that keeps everything."""
        return tuple(len(g.levels) - 1 for g in self.groups)

    @property
    def smallest(self) -> Candidate:
        """The candidate with the fewest units in every group."""
        return (0,) * len(self.groups)

    def candidate(self, keep_ratios: float | Mapping[str, float]) -> Candidate:
        """The candidate nearest to one keep ratio for all groups, or to ratios by group name (others stay dense).

        Raises:
            UserError: an unknown group name, a ratio outside [0, 1].
        """
        names = [g.name for g in self.groups]
        if isinstance(keep_ratios, Mapping):
            for name in keep_ratios:
                if name not in names:
                    raise unknown("group", name, names)
            ratios = [keep_ratios.get(name, 1.0) for name in names]
        else:
            ratios = [float(keep_ratios)] * len(names)
        for name, ratio in zip(names, ratios, strict=True):
            if not 0 <= ratio <= 1:
                raise UserError(f"A keep ratio lies in [0, 1], but got {ratio!r} for group {name!r}.")
        distances = (np.abs(np.array(g.levels) - r * g.num_units) for g, r in zip(self.groups, ratios, strict=True))
        return tuple(int(np.argmin(d)) for d in distances)

    def keep_ratios(self, candidate: Candidate) -> dict[str, float]:
        """Kept / dense units by group name."""
        return {g.name: g.levels[level] / g.num_units for g, level in zip(self.groups, candidate, strict=True)}

    def units(self, candidates: NDArray[np.integer[Any]] | Sequence[Candidate]) -> IntArray:
        """Kept units [n, G] of candidates [n, G]."""
        array = np.asarray(candidates, np.int64).reshape(-1, len(self.groups))
        return self.level_units[np.arange(len(self.groups)), array]

    # -- costs ----------------------------------------------------------------------------------------------------

    @property
    def cost_names(self) -> tuple[str, ...]:
        """``macs``, ``params``, ``memory``, ``size``, and what was added."""
        return (*CostFunctions.names, *self._added_costs)

    def add_cost(self, name: str, model: CostModel) -> None:
        """Add a cost, say ``latency`` in milliseconds, as a function of kept units [n, G]; a known name is replaced."""
        self._added_costs[name] = model

    def cost(self, name: str, candidates: NDArray[np.integer[Any]] | Sequence[Candidate]) -> FloatArray:
        """One cost of candidates [n, G], shape [n]."""
        units = self.units(candidates)
        if name in self._added_costs:
            return self._added_costs[name](units)
        if name not in CostFunctions.names:
            raise unknown("cost", name, self.cost_names)
        return self._cost_functions(name, units).astype(np.float64)

    def cost_dict(self, candidate: Candidate) -> dict[str, float]:
        """All costs of one candidate by name."""
        return {name: float(self.cost(name, [candidate])[0]) for name in self.cost_names}

    def costs(self, candidate: Candidate | NDArray[np.integer[Any]]) -> Costs:
        """MACs, params, peak activation bytes and size: ints for one candidate, int64 arrays for an array [n, G]."""
        units = self.units(np.asarray(candidate))
        values = [self._cost_functions(name, units) for name in CostFunctions.names]
        if isinstance(candidate, np.ndarray) and candidate.ndim == 2:
            return Costs(*values)
        return Costs(*(int(v[0]) for v in values))

    @cached_property
    def _cost_functions(self) -> CostFunctions:
        labels = self._parameters
        in_file = {id(tensor) for tensor in self.model.state_dict(keep_vars=True).values()}
        stored = [(name, t) for name, t in surgery.named_tensors(self.model).items() if id(t) in in_file]
        return CostFunctions(
            self.counts,
            self._trace,
            [(p.shape, labels.get(name, ())) for name, p in self.model.named_parameters()],
            [(t.element_size(), t.shape, labels.get(name, ())) for name, t in stored],
        )

    def positions(self, units: IntArray) -> IntArray:
        """Kept positions of every distinct field, for kept units [n, G]: [n, fields + 1], the last column 1."""
        return self._cost_functions.positions(units)

    def project(self, wishes: Sequence[float] | FloatArray, budget: Budget) -> Candidate:
        """The feasible candidate nearest to the wished keep ratios [G], as large as the budget allows."""
        return project(self, wishes, budget)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The ATen calls of one forward pass, in order; their shapes are labelled where a cut can change them."""
        varies = np.diff(self.counts.per_unit.indptr) > 0

        def reduced(spec: TensorSpec) -> TensorSpec:
            return replace(spec, labels=tuple(f for f in spec.labels if varies[self.counts.row(f)]))

        return tuple(
            replace(
                op,
                args=map_specs(op.args, reduced),
                kwargs=map_specs(op.kwargs, reduced),
                outputs=map_specs(op.outputs, reduced),
            )
            for op in self._trace.ops
        )

    # -- surgery --------------------------------------------------------------------------------------------------

    def kept_units(self, candidate: Candidate, importance: str = "l2") -> list[IntArray]:
        """Kept unit indices per group, ascending: the most important ones."""
        ranking = self.ranking(importance)
        units = self.units([candidate])[0]
        return [np.sort(order[:k]) for order, k in zip(ranking, units, strict=True)]

    def ranking(self, importance: str = "l2") -> list[IntArray]:
        """Units of every group, most important first; of equal ones the first stays. Computed once per criterion.

        Raises:
            UserError: the criterion reads data, and `collect` was not called.
        """
        self.unit_scores(importance)
        return self._rankings[importance]

    def unit_scores(self, importance: str = "l2") -> list[FloatArray]:
        """Scores of the units of every group, higher is more important; see `ranking`."""
        if importance not in self._scores:
            criterion = get_criterion(importance)
            if criterion.needs != "weights":
                raise UserError(
                    f"The importance {importance!r} reads {criterion.needs}: give it data first, with "
                    f"space.collect({importance!r}, batches)."
                )
            self.collect(importance)
        return self._scores[importance]

    def collect(self, importance: str, batches: Iterable[Batch] = (), *, loss: Loss = cross_entropy) -> None:
        """Score the units by a criterion and remember it: what `ranking` and all that cuts use from here on.

        Args:
            batches: (inputs, targets), read once, in order; at any batch size. Use training samples.
            loss: (output, targets) -> mean loss over the batch, for criteria that read gradients.

        Raises:
            UserError: an unknown criterion, no batch where one is needed, or scores that are not finite.
        """
        self.use_scores(importance, get_criterion(importance).scores(self, batches, loss))

    def use_scores(self, importance: str, scores: Sequence[FloatArray]) -> None:
        """Rank by these scores wherever `importance` is asked for: what `unit_scores` gave, or scores of your own.

        Raises:
            UserError: not one finite score for each unit of each group.
        """
        arrays = [np.asarray(s, np.float64) for s in scores]
        expected, found = [(g.num_units,) for g in self.groups], [a.shape for a in arrays]
        if found != expected:
            raise UserError(
                f"The importance {importance!r} needs one score per unit of every group, in order, but got "
                f"arrays of shapes {found} for {expected}."
            )
        for group, array in zip(self.groups, arrays, strict=True):
            if not np.isfinite(array).all():
                raise UserError(
                    f"The importance {importance!r} gave NaN or infinite scores for {group.name!r}. Check the weights "
                    "and the data."
                )
        self._scores[importance] = arrays
        self._rankings[importance] = [np.argsort(-a, kind="stable") for a in arrays]

    def kept(self, candidate: Candidate, importance: str = "l2") -> dict[str, tuple[IntArray | None, ...]]:
        """Kept indices per dimension (None: all) of every parameter and buffer that is cut."""
        return self.kept_indices(self.kept_units(candidate, importance))

    def with_sites(self, sites: Sequence[Site]) -> SearchSpace:
        """The same space with other numbers that surgery sets."""
        other = copy.copy(self)
        other._sites = sites
        return other

    def attributes(self, candidate: Candidate) -> list[surgery.Change]:
        """(module path, attribute, value) that surgery sets beside the tensors."""
        return changes(self.model, self._sites, self.units([candidate])[0])

    def materialise(self, candidate: Candidate, importance: str = "l2", *, share: bool = False) -> nn.Module:
        """The real subnet: a new module of the same class; the dense model is untouched.

        Args:
            share: uncut parameters share storage with the dense model: for scoring, not for training.
        """
        return self.cut(self.kept_units(candidate, importance), share=share)

    def cut(self, kept_units: Sequence[IntArray], model: nn.Module | None = None, *, share: bool = False) -> nn.Module:
        """As `materialise`, from kept unit indices per group; `model` is another copy of the dense one."""
        model = self.model if model is None else model
        units = np.array([len(kept) for kept in kept_units], np.int64)
        return surgery.cut(model, self.kept_indices(kept_units), changes(model, self._sites, units), share=share)

    def verify(self, candidate: Candidate, importance: str = "l2") -> float:
        """Largest relative error of the subnet against the dense model in which the cut units are silenced.

        Both run in eval mode on the example inputs. Norms and means over pruned positions use the kept ones in both.
        Relative to the largest absolute value of each output.
        """
        from autoprune.search_spaces.verify import relative_error  # runs the tracer; not needed for a search

        return relative_error(self, self.kept_units(candidate, importance))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of groups, levels and parameter shapes: two spaces with the same one speak the same candidates."""
        description = {
            "groups": [(g.name, g.num_units, g.levels) for g in self.groups],
            "shapes": [(name, list(p.shape)) for name, p in self.model.named_parameters()],
        }
        return hashlib.sha256(json.dumps(description).encode()).hexdigest()[:16]


@collector_paused()  # many small objects, almost no garbage: its passes grow with the square of the depth
def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    align: int = 8,
    max_levels: int = 32,
) -> SearchSpace:
    """Trace a model: find what may be cut together, and what everything costs.

    Args:
        model: any module that runs on `example_inputs`; never changed.
        example_inputs: one tensor, a tuple of positional or a dict of keyword arguments. Costs are at its batch size.
        align: channel counts of the levels are multiples of this, a power of two, where a layer is wide enough.
        max_levels: at most this many levels per group.

    Raises:
        UserError: the model does not run on the inputs (its own error is the cause), nothing can be cut, or `align`
            is no power of two.
    """
    if align < 1 or align & (align - 1):
        raise UserError(f"`align` must be a power of two, but got {align!r}. Choose 1, 8 or 16.")
    args, kwargs = _split_inputs(example_inputs)
    traced = trace_model(model, args, kwargs)
    ties, parameters = traced.ties, traced.parameters
    fields = collect_fields(traced.traces, parameters)
    attributes = find_attributes(traced.model, parameters, (op for trace in traced.traces for op in trace.ops))

    def build() -> SearchSpace:
        grouping = make_groups(ties, ties.solve(), parameters, fields, align=align, max_levels=max_levels)
        return SearchSpace(
            model,
            (args, kwargs),
            grouping=grouping,
            parameters=parameters,
            traces=traced.traces,
            sites=attributes.sites(grouping),
            fields=fields,
        )

    space = prove(build, traced, attributes)
    if not space.groups:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in space.frozen[:3]) or "no layer makes channels"
        raise UserError(f"Nothing in {type(model).__name__} can be cut: {reasons}.")
    return space


def _split_inputs(
    example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        if len(example_inputs) == 2 and isinstance(example_inputs[0], tuple) and isinstance(example_inputs[1], dict):
            return example_inputs[0], dict(example_inputs[1])
        return example_inputs, {}
    return (example_inputs,), {}
