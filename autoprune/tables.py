"""The figures of a run as text, the same in the report, on the card and in the terminal.

Conventions: 1 MAC = 1 multiply-add = 2 FLOPs; ratios are to the dense model; scores name their split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from autoprune.front import FrontPoint, Measured
from autoprune.search_spaces.budget import format_cost
from autoprune.search_spaces.quantities import WORST, is_measured, quantity_of

if TYPE_CHECKING:
    from autoprune.agents.base import Trial
    from autoprune.measure import Latency

COST_NAMES = {
    "macs": "MACs",
    "params": "parameters",
    "memory": "peak memory",
    "size": "size",
    "latency": "latency",
    "throughput": "throughput",
    "energy": "energy",
}


class DenseFigures(TypedDict, total=False):
    """The dense model: `costs` as of a trial, `score` on the search split, `test` accuracy, measured `latency`, and all
    that was measured by the name of the cost, see `FrontPoint.measured`.
    """

    costs: dict[str, float]
    score: float | None
    test: float | None
    latency: Latency | None
    measured: dict[str, Measured]


@dataclass(frozen=True, slots=True)
class Table:
    """Text in columns; the first column names the row. `groups` are headings over so many columns each.

    A cell may have a second line: the share of the dense model's value.
    """

    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def cost_name(cost: str) -> str:
    """``latency on phone`` for ``latency@phone``; a cost that somebody added keeps its own name."""
    quantity, _, device = cost.partition("@")
    name = COST_NAMES.get(quantity, quantity)
    where = "the worst device" if device == WORST else device
    return f"{name} on {where}" if device else name


def costs_of(trials: Iterable[Trial]) -> list[str]:
    """The costs that any of the trials has, each once."""
    return list(dict.fromkeys(name for trial in trials for name in trial.costs))


def format_score(name: str, value: float | None) -> str:
    """``98.21 %`` for shares of right answers (``accuracy``, ``top5``), four digits for other scores, – for none."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether a score is a share of right answers in [0, 1]."""
    return name in ("accuracy", "top5", "worst_class_accuracy")


def format_ratio(value: float, dense: float | None) -> str:
    """``0.25×`` of the dense model's, or nothing where that is unknown."""
    return f"{value / dense:.2f}×" if dense else ""


def format_recipe(recipe: Mapping[str, Any] | None) -> str:
    """``5 epochs, KD``: how long, and with or without the dense model as teacher (knowledge distillation)."""
    if recipe is None:
        return "–"
    epochs = "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']} epochs"
    return f"{epochs}, {'KD' if recipe['kd_weight'] else 'no KD'}"


def point_name(point: FrontPoint, index: int) -> str:
    """What a point is called: the name of its folder, else its place in the front."""
    return str(index) if point.path is None else point.path.name


def best_index(front: Sequence[FrontPoint]) -> int | None:
    """The point to recommend: within the budget, best on the search split (never the test split), after fine-tuning."""
    kept = [index for index, point in enumerate(front) if not point.misses]
    return max(kept, key=lambda index: final_score(front[index]), default=None)


def untrained_score(point: FrontPoint) -> float:
    """Score on the search split before fine-tuning."""
    return point.score if point.repaired is None else point.repaired


def final_score(point: FrontPoint) -> float:
    """Score on the search split of the model as it is exported."""
    return untrained_score(point) if point.finetuned is None else point.finetuned


def front_table(dense: DenseFigures, front: Sequence[FrontPoint], *, score: str = "accuracy") -> Table:
    """The dense model and every front point, in columns; a column in which every row is empty is left out.

    Args:
        score: name of the score that the search used.
    """
    columns = [*_cost_columns(dense, front), *_measured_columns(dense, front), *_score_columns(dense, front, score)]
    if front:
        kept = ["misses " + ", ".join(point.misses) if point.misses else "kept" for point in front]
        columns.append(("", "budget", ["–", *kept]))
    columns = [column for column in columns if any(cell not in ("–", "") for cell in column[2])]
    names = ["dense", *(point_name(point, index) for index, point in enumerate(front))]
    groups: list[tuple[str, int]] = [("", 1)]
    for group, _, _ in columns:
        if groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1] + 1)
        else:
            groups.append((group, 1))
    rows = zip(names, *(cells for _, _, cells in columns), strict=True)
    return Table(tuple(groups), ("model", *(column for _, column, _ in columns)), tuple(rows))


_Column = tuple[str, str, list[str]]
"""Heading of the group, of the column, and its cells."""


def _cost_columns(dense: DenseFigures, front: Sequence[FrontPoint]) -> list[_Column]:
    all_costs = [dense.get("costs", {}), *(point.costs for point in front)]

    def cell(name: str, costs: Mapping[str, float]) -> str:
        if name not in costs:
            return "–"
        ratio = "" if costs is all_costs[0] else format_ratio(costs[name], all_costs[0].get(name))
        return f"{format_cost(name, costs[name])}\n{ratio}".strip()

    return [
        ("cost", COST_NAMES[name], [cell(name, costs) for costs in all_costs])
        for name in ("macs", "params", "size", "memory")
    ]


def _measured_columns(dense: DenseFigures, front: Sequence[FrontPoint]) -> list[_Column]:
    """Of every cost that is measured: what was predicted, and what was found."""
    first = dense.get("costs", {})
    names = dict.fromkeys(name for costs in (first, *(p.costs for p in front)) for name in costs if is_measured(name))
    measured = [measured_costs(dense), *(measured_costs(point) for point in front)]
    names.update(dict.fromkeys(name for found in measured for name in found))
    columns = []
    for name in names:
        predicted = [first.get(name), *(point.costs.get(name) for point in front)]
        columns.append((cost_name(name), "predicted", ["–" if v is None else format_cost(name, v) for v in predicted]))
        cells = []
        for index, found in enumerate(measured):
            share = found[name].share if index and name in found else None
            ratio = "" if share is None else f"{share:.2f}×"
            cells.append(f"{format_measured(name, found[name])}\n{ratio}".strip() if name in found else "–")
        columns.append((cost_name(name), "measured", cells))
    return columns


def measured_costs(of: FrontPoint | DenseFigures) -> Mapping[str, Measured]:
    """Measured costs by name: value and interval."""
    if isinstance(of, FrontPoint):
        measured, latency = of.measured, of.latency
    else:
        measured, latency = of.get("measured", {}), of.get("latency")
    if measured or latency is None:
        return measured
    return {"latency": Measured(latency.ms, latency.low_ms, latency.high_ms, latency.ratio)}  # of an older release


def format_measured(cost: str, found: Measured) -> str:
    """``8.2 ms ± 0.3``: a measured cost with half its interval; throughput, which has its bounds reversed, without."""
    value, low, high, _ = found
    if quantity_of(cost).least or cost.endswith(f"@{WORST}"):
        return format_cost(cost, value)
    half, decimals = (high - low) / 2, 1
    while decimals < 4 and (half < 10**-decimals or value < 10 ** (1 - decimals)):
        decimals += 1
    return f"{value:.{decimals}f} {quantity_of(cost).shown} ± {half:.{decimals}f}"


def _score_columns(dense: DenseFigures, front: Sequence[FrontPoint], score: str) -> list[_Column]:
    split = front[0].split if front else "search"
    first, test = dense.get("score"), dense.get("test")
    before = [format_score(score, value) for value in (first, *(point.score for point in front))]
    tested = [format_score("accuracy", value) for value in (test, *(point.test_before for point in front))]
    name = score if is_share(score) or score == "kl" else "score"
    columns = [(f"{name}, {split} split", "pruned", before)]
    repaired = any(point.repaired is not None for point in front)
    if repaired:
        columns.append((columns[0][0], "repaired", ["–", *(format_score(score, point.repaired) for point in front)]))
    if any(point.finetuned is not None for point in front):
        after = [format_score(score, point.finetuned) for point in front]
        columns.append((columns[0][0], "fine-tuned", ["–", *after]))
    recipes = [format_recipe(point.recipe) for point in front]
    columns.append(("accuracy, test split", "repaired" if repaired else "pruned", tested))
    after = [format_score("accuracy", point.test_after) for point in front]
    columns.append(("accuracy, test split", "fine-tuned", ["–", *after]))
    columns.append(("", "fine-tuning", ["–", *recipes]))
    return columns
