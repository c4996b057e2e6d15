"""What may be pruned, and what it costs: tracing, groups, costs, budgets, surgery.

Knows no data set, no score and no study. Imports neither `autoprune.agents` nor the engine.
"""

from __future__ import annotations

if __name__ != "autoprune.search_spaces":
    raise ImportError(
        f"This package is called autoprune.search_spaces, but was imported as {__name__!r}. "
        "Write `import autoprune.search_spaces`, and install the checkout first: pip install -e ."
    )

from autoprune.search_spaces.budget import Budget, Limit, format_cost
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.importance import CRITERIA, ImportanceWarning
from autoprune.search_spaces.quantities import parse_cost
from autoprune.search_spaces.runs import TraceWarning
from autoprune.search_spaces.space import SearchSpace, trace
from autoprune.search_spaces.types import Candidate, CostModel, Costs, Frozen, Group

__all__ = [
    "CRITERIA",
    "Budget",
    "Candidate",
    "CostModel",
    "Costs",
    "Frozen",
    "Group",
    "ImportanceWarning",
    "Limit",
    "SearchSpace",
    "TraceWarning",
    "UserError",
    "format_cost",
    "parse_cost",
    "trace",
]
