"""`card.md`: what an exported network is, what it costs, how good it is and on which data, for people."""

from __future__ import annotations

import html
import json
import re

from autoprune.config import SearchConfig
from autoprune.finished import Finished
from autoprune.importance import describe_importance
from autoprune.redaction import redact
from autoprune.tables import format_recipe, front_table


def card(index: int, finished: Finished, config: SearchConfig, folder: str = ".") -> str:
    """Text of the ``card.md`` of point `index`, for a reader to whom its folder is `folder`."""
    point = finished.points[index]
    table = front_table(finished.figures(), [point], score=config.score)
    groups = [name for name, span in table.groups for _ in range(span)]
    dense, pruned = table.rows
    lines = [
        f"| {' | '.join(map(plain, [', '.join(filter(None, heading)), before, after]))} |"
        for *heading, before, after in list(zip(groups, table.columns, dense, pruned, strict=True))[1:]
    ]
    made = [
        f"Cut by autoprune under the budget {', '.join(config.budget)}.",
        f"Dense weights: {config.weights or 'as the model was built'} ({config.fingerprints.get('weights', '-')}).",
        f"Data: {config.data or 'handed over in Python'}.",
        f"Units ranked by {describe_importance(config.importance, config.importance_samples)}.",
        f"Recovery of trials: {config.describe_recovery()}"
        f"{'' if point.repaired is None else '; this network was repaired afterwards'}.",
        f"Trial {point.trial} of {finished.num_trials}; agent {config.agent}, seed {config.seed}.",
    ]
    if point.recipe is not None:
        made.append(f"Fine-tuned: {format_recipe(point.recipe)}; the best epoch by the score on the search split.")
    first = [] if point.latency is None else [point.latency]
    for latency in point.latencies.values() or first:
        made.append(f"Latency: {latency}, on {latency.device}.")
    made.append("1 MAC = 1 multiply-add = 2 FLOPs; memory is the peak of activations.")
    given = "" if config.model is not None else ", model=dense_model"
    return "\n".join(
        [
            f"# {plain(config.model or 'Pruned model')}, point {index}",
            "",
            *map(plain, made),
            "",
            "| | dense | this network |",
            "|---|---|---|",
            *lines,
            "",
            "```python",
            "import autoprune",
            "",
            f"model = autoprune.load({json.dumps(folder)}{given})",
            "```",
            "",
        ]
    )


def plain(text: str) -> str:
    """One line of Markdown that shows `text` as it is: names from a configuration make no HTML, links or columns."""
    return re.sub(r"[\\`\[\]|]", r"\\\g<0>", html.escape(redact(" ".join(text.split())), quote=False))
