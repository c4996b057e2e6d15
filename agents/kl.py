"""Subnets drawn with probability exp(-loss / temperature) from all that the budget allows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoprune.agents.base import check_count, trial_rng
from autoprune.agents.moves import descend, improve
from autoprune.agents.table import Table
from autoprune.agents.warm import WarmAgent
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space, check_budget, within
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray

_CHAINS = 32
"""Chains side by side for one proposal: numpy takes little longer for them than for one."""
_STAGES = 10
"""Temperatures that they pass through."""
_RAISED = (1, 4, 16)
"""Factors of the temperature, the next one where all chains end in candidates that were tried already."""


def sample(
    space: Space,
    limits: Mapping[str, float],
    table: Table,
    temperature: float | FloatArray,
    *,
    start: IntArray,
    num_steps: int,
    rng: np.random.Generator,
) -> IntArray:
    """Return where chains stand after `num_steps` steps of Metropolis and Hastings, [n, G].

    Their distribution tends to p(candidate) ~ exp(-loss / temperature) on the candidates that keep the limits. Every
    step proposes, with even chances, any other level for one group, or an exchange: one group up and another down, by
    numbers of levels drawn alike. Both are symmetric, so only loss and limits decide. Any candidate can go down to the
    smallest and up again, group by group, so every candidate is reached, where costs never fall when more is kept.

    Args:
        temperature: in units of loss, above 0; one for all chains, or one each.
        start: one candidate within the limits per chain, [n, G].
    """
    levels = start.copy()
    num_chains, num_groups = levels.shape
    chains, losses = np.arange(num_chains), table.padded()
    most = max(1, int(space.num_levels.max()) // 2)
    for _ in range(num_steps):
        up, further = rng.integers([[0], [1]], [[num_groups], [max(num_groups, 2)]], size=(2, num_chains))
        down = np.mod(up + further, num_groups)
        # short and long exchanges alike: the size of a step is 1 ... most, with even chances for its logarithm
        rise, fall = np.floor(most ** rng.random((2, num_chains))).astype(np.int64)
        alone = (rng.random(num_chains) < 0.5) | (up == down)
        to_up: IntArray = np.where(alone, rng.integers(space.num_levels[up]), levels[chains, up] + rise)
        to_down: IntArray = np.where(alone, levels[chains, down], levels[chains, down] - fall)
        valid = (to_up < space.num_levels[up]) & (to_down >= 0)
        to_up, to_down = np.where(valid, to_up, 0), np.where(valid, to_down, 0)
        more = losses[up, to_up] - losses[up, levels[chains, up]]
        more += np.where(alone, 0, losses[down, to_down] - losses[down, levels[chains, down]])
        accepted = np.flatnonzero(valid & (-temperature * np.log1p(-rng.random(num_chains)) > more))
        proposed = levels[accepted]
        rows = np.arange(len(accepted))
        proposed[rows, down[accepted]] = to_down[accepted]
        proposed[rows, up[accepted]] = to_up[accepted]  # last: alone, `down` may be the same group
        fitting = within(space, proposed, limits)  # priced last: most are turned down by their loss
        levels[accepted[fitting]] = proposed[fitting]
    return levels


def annealed(
    space: Space,
    limits: Mapping[str, float],
    table: Table,
    temperatures: FloatArray,
    *,
    start: IntArray,
    num_steps: int,
    rng: np.random.Generator,
) -> IntArray:
    """Return chains [n, G] that passed through falling temperatures, `num_steps` at each, from `start` [n, G].

    At each fall the chains are drawn anew with weights exp(-loss * (1 / T - 1 / previous T)), so that none counts for
    having been caught where the limits leave no way out at a low temperature.
    """
    levels, before = start, np.inf
    for temperature in temperatures.tolist():
        if before < np.inf:
            losses = table.predict(levels)
            weights = np.exp(-(losses - losses.min()) * (1 / temperature - 1 / before))
            levels = levels[rng.choice(len(levels), size=len(levels), p=weights / weights.sum())]
        levels = sample(space, limits, table, temperature, start=levels, num_steps=num_steps, rng=rng)
        before = temperature
    return levels


class KLAgent(WarmAgent):
    """Proposes subnets with probability ~ exp(-loss / T): the less a table says they lose, the more often.

    T sweeps: trial k of the agent has temperature `hot` * (`cold` / `hot`)^(k mod `period` / (`period` - 1)) times
    the loss per group of the best candidate that descent and exchanges find. Hot trials explore, cold ones stay where
    the table is best. Scores are not learnt from; candidates already tried are passed over, and where no chain ends
    in another, T is raised fourfold, twice at most. Each proposal comes from chains of its own, seeded by (seed,
    number): 32 of them, from the uniform candidate, cooled from twice the scale down to T in 10 stages and drawn anew
    at each, `sweeps` steps per group in all.

    Args:
        table: losses by group and level, in a study KL(dense || subnet) of each cut alone. Without one,
            `Table.stand_in`, which knows only where the MACs are: the proposals then scatter around the uniform
            candidate.
        hot, cold: the temperatures of a sweep, hot >= cold > 0.
        period: trials per sweep, at least 2.
        sweeps: steps per group of each chain, at least 1.

    Source: Metropolis et al. 1953, J. Chem. Phys. 21; Hastings 1970, Biometrika 57, sec. 2; drawing anew:
    Hukushima and Iba 2003, "Population annealing", AIP Conf. Proc. 690. Differs: the set is that of a budget, and the
    temperature is swept over trials.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        seed: int,
        table: Table | None = None,
        hot: float = 1.0,
        cold: float = 0.02,
        period: int = 6,
        sweeps: int = 30,
    ) -> None:
        if not hot >= cold > 0 or not np.isfinite(hot):
            raise UserError(f"Agent 'kl' needs temperatures hot >= cold > 0, but got {hot!r} and {cold!r}.")
        check_count("kl", "period", period, least=2)
        check_count("kl", "sweeps", sweeps)
        super().__init__(space, budget, seed=seed, table=table)
        self._table = self.table or Table.stand_in(space)
        self._hot, self._cold, self._period, self._sweeps = hot, cold, period, sweeps
        limits = check_budget(space, budget)
        best = improve(space, limits, self._table, descend(space, limits, self._table))
        # where nothing is lost (all of it fits) any scale will do
        self._scale = float(self._table.predict(best[None])[0]) / len(best) or 1.0

    def temperature(self, rank: int) -> float:
        """Return the temperature of the agent's trial `rank`, in units of the table's losses."""
        part = rank % self._period / (self._period - 1)
        return float(self._scale * self._hot * (self._cold / self._hot) ** part)

    def propose(self, number: int) -> Candidate:
        rng = trial_rng(self.seed, number)
        limits = check_budget(self.space, self.budget)
        start = np.repeat(np.array([self.uniform()], dtype=np.int64), _CHAINS, axis=0)
        for raised in _RAISED:
            target = raised * self.temperature(len(self.trials))
            ends = annealed(
                self.space,
                limits,
                self._table,
                np.geomspace(max(2 * self._scale, target), target, _STAGES),
                start=start,
                num_steps=-(-self._sweeps * len(self.space.groups) // _STAGES),
                rng=rng,
            )
            candidates: list[Candidate] = [tuple(levels) for levels in ends.tolist()]
            new = next((each for each in candidates if each not in self.tried), None)
            if new is not None:
                return new
        return candidates[0]
