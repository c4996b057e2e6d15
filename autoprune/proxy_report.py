"""How well each proxy ranks candidates, held against a short fine-tuning: the figures and the verdict.

Computed from what ``profile/proxy.json`` holds; no network is run for it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from autoprune.correlation import MIN_PAIRS, Correlation, correlate
from autoprune.proxy_file import FILE, FINETUNE, Measured
from autoprune.recovery.ladder import RUNGS
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.tables import format_score, is_share

TRUSTED = 0.5
"""The lower end of the interval of Spearman's correlation from which on a score is trusted."""

CLEARLY = 0.1
"""A proxy is recommended instead of the study's own where its Spearman correlation is higher by more than this."""

NEARLY = 0.05
"""Of proxies whose Spearman correlations differ by less than this, the cheapest counts as the best."""

Trust: TypeAlias = Literal["yes", "partly", "no"]


@dataclass(frozen=True, kw_only=True)
class ProxyRow:
    """One proxy against the truth.

    Attributes:
        name: as in the file.
        label: what it is.
        option: of a search that scores with it; empty where there is none.
        scores: one for each candidate of `ProxyReport.candidates`; None where it failed.
        seconds: median of one candidate.
        spearman, kendall: with the score after fine-tuning; None where the proxy is the same for all candidates.
        upward: Spearman's with the next rung of the ladder; None at its end and off it.
        choice: score after fine-tuning of the candidate that this proxy ranks first.
    """

    name: str
    label: str
    option: str
    scores: tuple[float | None, ...]
    seconds: float
    spearman: Correlation | None
    kendall: Correlation | None
    upward: Correlation | None
    choice: float | None


@dataclass(frozen=True, kw_only=True)
class ProxyReport:
    """What `autoprune proxy` found.

    Attributes:
        score: name of the score, on the search split throughout.
        own: name of the proxy that the study scores with.
        settings: budget, fine-tuning and the rest that the figures depend on.
        numbers, candidates: those whose fine-tuning worked.
        truths: their scores after fine-tuning.
        num_failed: fine-tunings that failed; their candidates are left out.
        num_unimproved: fine-tunings that ended with a lower accuracy than they began with.
        seconds: median of one fine-tuning.
        rows: the proxies, the ladder from its foot first.
        trust: whether the score of the study can be trusted: see `TRUSTED`.
        verdict: the same in words, with what to do.
        remarks: what else one should know of the figures.
    """

    score: str
    own: str
    settings: dict[str, Any]
    numbers: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    truths: tuple[float, ...]
    num_failed: int
    num_unimproved: int
    seconds: float
    rows: tuple[ProxyRow, ...]
    trust: Trust
    verdict: str
    remarks: tuple[str, ...]

    def row(self, name: str) -> ProxyRow:
        """The row of one proxy.

        Raises:
            UserError: it was not measured.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown("proxy", name, [row.name for row in self.rows])

    @property
    def best(self) -> ProxyRow | None:
        """The proxy with the highest Spearman correlation, or a cheaper one nearly as high; None where none has one."""
        return best_of(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The values in the words of JSON."""
        return asdict(self)


def evaluate_proxies(measured: Measured) -> ProxyReport | None:
    """Compute the report; None where fewer than `MIN_PAIRS` fine-tunings worked."""
    good = [record for record in measured.records if record.truth is not None]
    if len(good) < MIN_PAIRS:
        return None
    truths = [record.truth for record in good if record.truth is not None]
    seed = measured.settings["seed"]
    columns: dict[str, Sequence[float | None]] = {
        name: [record.scores.get(name) for record in good] for name in measured.proxies
    }
    ladder = [name for name in RUNGS if name in columns]
    above = dict(zip(ladder, [*(columns[name] for name in ladder), truths][1:], strict=True))
    rows = []
    for name, (label, option) in measured.proxies.items():
        scores = columns[name]
        spearman, kendall = _between(scores, truths, seed)
        known = [(score, -index) for index, score in enumerate(scores) if score is not None]
        times = [record.seconds[name] for record in good if name in record.seconds]
        rows.append(
            ProxyRow(
                name=name,
                label=label,
                option=option,
                scores=tuple(scores),
                seconds=statistics.median(times) if times else 0.0,
                spearman=spearman,
                kendall=kendall,
                upward=_between(scores, above[name], seed)[0] if name in above else None,
                choice=truths[-max(known)[1]] if known and spearman is not None else None,
            )
        )
    score, recipe = measured.settings["score"], measured.settings["finetune"]
    trust, words = verdict(
        measured.own, rows, num_candidates=len(good), whole=measured.planned <= len(measured.records)
    )
    unimproved = sum(not record.improved for record in good)
    failed = len(measured.records) - len(good)
    return ProxyReport(
        score=score,
        own=measured.own,
        settings=dict(measured.settings),
        numbers=tuple(record.number for record in good),
        candidates=tuple(record.candidate for record in good),
        truths=tuple(truths),
        num_failed=failed,
        num_unimproved=unimproved,
        seconds=statistics.median(record.seconds[FINETUNE] for record in good),
        rows=tuple(rows),
        trust=trust,
        verdict=words,
        remarks=tuple(_remarks(measured, truths, recipe, failed, unimproved)),
    )


def verdict(own: str, rows: Sequence[ProxyRow], *, num_candidates: int, whole: bool = True) -> tuple[Trust, str]:
    """Whether the study's own score ranks as fine-tuning does, and what to do.

    The rule is on the interval of Spearman's correlation: trusted where its lower end is at least `TRUSTED`, no better
    than guessing as far as can be seen where it is not above 0, in part between. Another proxy is named where its own
    correlation is higher by more than `CLEARLY`, its interval is above 0, and an option of a search selects it.

    Args:
        own: name of the proxy that the study scores with.
        rows: one for each proxy.
        num_candidates: behind the correlations.
        whole: whether these are as many as were asked for.
    """
    mine = next(row for row in rows if row.name == own)
    found = mine.spearman
    what = f"The score of this study ({mine.label})"
    trust: Trust
    if found is None:
        trust, text = "no", f"{what} is the same for all candidates: it ranks nothing."
    elif found.low >= TRUSTED:
        trust = "yes"
        text = f"{what} ranks candidates like a short fine-tune does: Spearman {found}. Trust the search."
    elif found.low > 0:
        trust, text = "partly", f"{what} ranks candidates only in part like a short fine-tune does: Spearman {found}."
    elif found.high < TRUSTED:
        trust, text = "no", f"{what} hardly ranks candidates: Spearman {found}. The search is guessing."
    else:
        trust = "no"
        text = f"{what} cannot be told from guessing with {num_candidates} candidates: Spearman {found}."
    best = best_of([row for row in rows if row.option and row.name != own])
    if best is not None and best.spearman is not None and best.spearman.low > 0:
        gain = best.spearman.value - (found.value if found is not None else 0.0)
        if gain > CLEARLY:
            start = "Better still" if trust == "yes" else "Better here"
            return trust, (
                f"{text} {start}: {best.label}, Spearman {best.spearman}, {format_seconds(best.seconds)} a candidate; "
                f"search in a new run with {best.option}."
            )
    if trust != "yes":
        narrow = ""
        if whole and found is not None and found.high >= TRUSTED:
            narrow = f", or narrow the interval (--candidates {2 * num_candidates})"
        text += (
            " No other score here is clearly better: fine-tune several points of the front before choosing one "
            f"(--points){narrow}."
        )
    return trust, text


def best_of(rows: Sequence[ProxyRow]) -> ProxyRow | None:
    """The row with the highest Spearman correlation; of those less than `NEARLY` below it the cheapest."""
    ranked = [(row.spearman.value, row) for row in rows if row.spearman is not None]
    highest = max((value for value, _ in ranked), default=0.0)
    return min((row for value, row in ranked if value > highest - NEARLY), key=lambda row: row.seconds, default=None)


def read_report(run: Path, fingerprints: Mapping[str, str]) -> tuple[ProxyReport | None, str]:
    """The report of a run and one line about it, for those who show it beside other things: a file that cannot be used
    is a line too, and there is none where there is no file.
    """
    try:
        if not (run / FILE).exists():
            return None, ""
        measured = Measured.read(run)
        if measured.fingerprints != dict(fingerprints):
            return None, f"{run / FILE} belongs to other weights or data. Delete it."
        found = evaluate_proxies(measured)
    except UserError as error:
        return None, str(error)
    except (AttributeError, AssertionError, KeyError, StopIteration, TypeError, ValueError) as error:
        return None, f"{run / FILE} is damaged ({error!r}). Delete it to measure again."
    missing = measured.planned - len(measured.records)
    text = found.verdict if found is not None else f"{len(measured.records)} candidates measured: no verdict yet."
    more = f" {missing} of {measured.planned} candidates are still to be measured: autoprune proxy {run}"
    return found, text + (more if missing > 0 else "")


COLUMNS = (
    "score",
    "Spearman",
    "Kendall",
    "with the next rung",
    "its first choice, fine-tuned",
    "a candidate",
)


def proxy_cells(found: ProxyReport) -> list[tuple[str, ...]]:
    """The figures as text under `COLUMNS`: a row for each proxy, and the fine-tuning itself."""
    rows = [
        (
            row.label + (" (this study)" if row.name == found.own else ""),
            format_correlation(row.spearman),
            format_correlation(row.kendall),
            format_correlation(row.upward) if row.name in RUNGS else "",
            format_score(found.score, row.choice),
            format_seconds(row.seconds),
        )
        for row in found.rows
    ]
    best = format_score(found.score, max(found.truths))
    return [*rows, ("fine-tuned", "", "", "", best, format_seconds(found.seconds))]


def format_correlation(found: Correlation | None) -> str:
    """``0.86 [0.70, 0.94]``, or ``none``."""
    return "none" if found is None else str(found)


def format_seconds(seconds: float) -> str:
    """``2.1 ms``, ``0.35 s``, ``19 s``: two significant digits."""
    seconds = float(f"{seconds:.2g}")
    if seconds <= 0:
        return "0 s"
    value, unit = (seconds, "s") if seconds >= 0.1 else (1000 * seconds, "ms")
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f} {unit}"


def _between(
    scores: Sequence[float | None], others: Sequence[float | None], seed: int
) -> tuple[Correlation, Correlation] | tuple[None, None]:
    """Correlations over the candidates that both have scored."""
    pairs = [(x, y) for x, y in zip(scores, others, strict=True) if x is not None and y is not None]
    return correlate([x for x, _ in pairs], [y for _, y in pairs], seed=seed)


def _remarks(
    measured: Measured, truths: Sequence[float], recipe: Mapping[str, Any], failed: int, unimproved: int
) -> list[str]:
    settings, score = measured.settings, measured.settings["score"]
    epochs = "1 epoch" if recipe["epochs"] == 1 else f"{recipe['epochs']} epochs"
    teacher = "the dense model as teacher" if settings["kd"] else "labels alone"
    spread = statistics.pstdev(truths)
    lines = [
        f"{len(truths)} random candidates under {', '.join(settings['budget'])}, each fine-tuned for {epochs} with "
        f"{teacher}, beginning with its network after the study's own recovery ({settings['recovery']}). All scores "
        f"are taken on the search split ({measured.num_samples:,} samples). Intervals: 95 %, bootstrap of candidates.",
        f"After fine-tuning: {format_score(score, min(truths))} to {format_score(score, max(truths))}, standard "
        f"deviation {format_score(score, spread)}.",
    ]
    if is_share(score):
        noise = math.sqrt(sum(p * (1 - p) for p in truths) / len(truths) / measured.num_samples)
        if spread < noise:
            lines.append(
                f"That is less than the sampling error of one score ({format_score(score, noise)}): the candidates "
                "hardly differ, and a low correlation may say no more than that. A tighter --budget tells more."
            )
    if failed:
        lines.append(f"{failed} fine-tunings failed; their candidates are left out.")
    if unimproved:
        lines.append(
            f"{unimproved} fine-tunings ended worse than they began: too short or too fast to say what training is "
            "worth. More --epochs, or another learning rate (--finetune-arg lr=...)."
        )
    return lines
