"""What a reinforcement-learning agent sees of a group: AMC's ten features, from costs alone, and the budget.

AMC walks through the layers of a network and describes each by numbers read from its module: index, layer type,
channels in and out, stride, kernel, weights, and what was and what can still be saved. A `Space` knows groups, levels
and costs, no modules: a group may span several layers, of any kind. Each of AMC's numbers is therefore replaced by what
it does to the costs, found by pricing a few candidates. All features lie in [0, 1].

| feature | AMC's | what it is |
|---|---|---|
| `index` | t | place of the group, t / G: 0 for the first, 1 when all are decided |
| `units` | n | units of the dense group, of the largest group |
| `overlap` | c | share of the MACs that cutting it saves which cutting the group before it saves too |
| `weights` | k, c | parameters per unit, of the group with the most |
| `positions` | h, w, stride | MACs per parameter, of the group with the most: how often each weight is used |
| `macs` | FLOPs | share of the dense MACs that cutting it to its smallest level saves |
| `smallest` | - | smallest keep ratio allowed (AMC has one for all layers: 0.2) |
| `reduced` | reduced | share of the dense cost that the actions so far have saved, all later groups dense |
| `rest` | rest | share of the dense cost that the groups from this one on can still save |
| `previous` | a of t - 1 | pruning ratio of the group before it, 0 for the first |
| `budget` | - | what the budget leaves of the dense cost (AMC has one budget) |

The cost behind `reduced`, `rest` and `budget` is the one that the budget limits most tightly.

Source: He et al. 2018, "AMC", arXiv:1802.03494, sec. 3.1; layer type and weights as in its code.

Shape letters: n candidates or episodes, G groups, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import Space, check_budget
from autoprune.search_spaces.types import FloatArray, IntArray

NAMES = (
    "index",
    "units",
    "overlap",
    "weights",
    "positions",
    "macs",
    "smallest",
    "reduced",
    "rest",
    "previous",
    "budget",
)


class Features:
    """The observations of episodes in one space under one budget: before step t, group t is about to be decided.

    Attributes:
        cost: name of the cost that the budget limits most tightly: `reduced` and `rest` are shares of it.
        share: its limit, as a share of the dense model.

    Raises:
        UserError: no subnet fits the budget, or it limits a cost that the space does not have.
    """

    def __init__(self, space: Space, budget: Budget) -> None:
        limits = check_budget(space, budget)
        self.space = space
        self._dense = space.num_levels - 1
        shares = {cost: limit / self._price(cost, self._dense[None])[0] for cost, limit in limits.items()}
        self.cost = min(shares, key=shares.__getitem__)
        self.share = min(1.0, shares[self.cost])
        self._dense_cost = self._price(self.cost, self._dense[None])[0]
        self._static = self._describe()

    def levels(self, actions: FloatArray) -> IntArray:
        """Return the levels nearest to pruning ratios [n, G], of two equally near the smaller one."""
        units = self.space.level_units
        wanted = (1 - np.clip(actions, 0, 1)) * units[:, -1]
        levels: IntArray = np.abs(units - wanted[..., None]).argmin(axis=-1)
        return levels

    def actions(self, levels: IntArray) -> FloatArray:
        """Return the pruning ratios [n, G] of candidates [n, G]."""
        units = self.space.level_units
        ratios: FloatArray = 1 - units[np.arange(len(units)), levels] / units[:, -1]
        return ratios

    def observe(self, actions: FloatArray) -> NDArray[np.float32]:
        """Return what is seen after the actions so far, pruning ratios [n, t] with 0 <= t <= G: [n, F].

        After the last one there is no group: what is constant of a group is then 0, except the index.
        """
        taken = actions.shape[1]
        return self._observe(self.levels(_padded(actions, len(self._dense))), actions, np.array([taken]))[:, 0]

    def episodes(self, levels: IntArray) -> NDArray[np.float32]:
        """Return what is seen before every step of the episodes that end in these candidates [n, G]: [n, G, F]."""
        return self._observe(levels, self.actions(levels), np.arange(levels.shape[1]))

    def cost_shares(self) -> FloatArray:
        """Return how much of the limited cost a little more pruning of each group saves, [G], of all together."""
        alone = np.where(np.eye(len(self._dense), dtype=np.bool_), 0, self._dense)
        saved = 1 - self._price(self.cost, alone) / self._dense_cost
        rates = np.maximum(_divide(saved, self.actions(alone).max(axis=1)), 0)
        return _divide(rates, rates.sum(keepdims=True))

    def _observe(self, levels: IntArray, actions: FloatArray, steps: IntArray) -> NDArray[np.float32]:
        num_groups = len(self._dense)
        decided = np.arange(num_groups) < steps[:, None]  # [steps, G]
        dense_ahead = np.where(decided, levels[:, None], self._dense)
        smallest_ahead = np.where(decided, levels[:, None], 0)
        both = np.stack([dense_ahead, smallest_ahead]).reshape(-1, num_groups)
        ahead, least = self._price(self.cost, both).reshape(2, len(levels), len(steps)) / self._dense_cost
        seen = np.zeros((len(levels), len(steps), len(NAMES)))
        seen[..., :7] = self._static[steps]
        seen[..., 7] = 1 - ahead
        seen[..., 8] = ahead - least
        later = steps > 0
        seen[:, later, 9] = actions[:, steps[later] - 1]
        seen[..., 10] = self.share
        return np.clip(seen, 0, 1).astype(np.float32)

    def _describe(self) -> FloatArray:
        """Return what does not change during an episode: features 0 to 6 of every group, and of the end, [G + 1, 7]."""
        space, num_groups = self.space, len(self._dense)
        alone = np.where(np.eye(num_groups, dtype=np.bool_), 0, self._dense)  # group g at its smallest level
        pairs = np.minimum(alone, np.roll(alone, 1, axis=0))  # and the one before it as well
        macs, weights = (self._saved(cost, alone) for cost in ("macs", "params"))
        common = macs + np.roll(macs, 1) - self._saved("macs", pairs)
        common[0] = 0
        units = space.level_units.astype(np.float64)
        cut = units[:, -1] - units[:, 0]
        return np.concatenate(
            [
                np.stack(
                    [
                        np.arange(num_groups) / max(num_groups, 1),
                        units[:, -1] / units[:, -1].max(),
                        _divide(common, macs),
                        _of_largest(_divide(weights, cut)),
                        _of_largest(_divide(macs, weights)),
                        macs / self._price("macs", self._dense[None])[0],
                        units[:, 0] / units[:, -1],
                    ],
                    axis=1,
                ),
                np.eye(1, 7),
            ]
        )

    def _saved(self, cost: str, levels: IntArray) -> FloatArray:
        saved: FloatArray = self._price(cost, self._dense[None])[0] - self._price(cost, levels)
        return saved

    def _price(self, cost: str, levels: IntArray) -> FloatArray:
        return self.space.cost(cost, levels)


def _padded(actions: FloatArray, width: int) -> FloatArray:
    padded = np.zeros((len(actions), width))
    padded[:, : actions.shape[1]] = actions
    return padded


def _divide(values: FloatArray, by: FloatArray) -> FloatArray:
    """Divide; 0 where nothing is saved."""
    shares: FloatArray = np.divide(values, by, out=np.zeros_like(values), where=by > 0)
    return shares


def _of_largest(values: FloatArray) -> FloatArray:
    return _divide(values, values.max(keepdims=True))
