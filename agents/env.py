"""The search as a Gymnasium environment, for any reinforcement-learning library: one step a group, scored at the end.

    gymnasium.make("autoprune:autoprune/Pruning-v0", space=space, budgets="macs=0.5x", evaluate=score)

Agents of autoprune learn from the same features (`autoprune.agents.features`), but are asked and told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from autoprune.agents.base import ratios
from autoprune.agents.features import NAMES, Features
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.projection import Space
from autoprune.search_spaces.types import Candidate

_ROW, _NAME, _BAR = 14, 140, 200
"""Height of a group in the picture, width of its name and of a full bar, in pixels."""
_PAPER, _INK, _CUT, _WISH, _KEPT = (255, 255, 255), (40, 40, 40), (225, 225, 225), (170, 190, 215), (60, 110, 175)


class PruningEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One episode is one candidate: the groups are decided in order, each by its pruning ratio.

    Observation: Box [0, 1], the features of the group that is about to be decided (`autoprune.agents.features.NAMES`).
    Action: Box [0, 1] of one number, the pruning ratio of that group, 1 - keep ratio.
    Reward: 0, and for the last group ``evaluate(candidate)``.

    The actions are wishes. After the last one they are projected onto the budget, all by one common shift, so every
    episode ends in a candidate that keeps the budget. The last `info` says what was executed:

    - ``candidate``: what was evaluated, a tuple of level indices;
    - ``executed``: its pruning ratios [G], which an agent should learn from in place of its wishes;
    - ``costs``: its costs by name.

    Every `info` has ``budget``, the index of the episode's budget. It is drawn from `np_random` anew for each episode,
    or given: ``reset(options={"budget": 1})``. The last feature shows it.

    Rendering: ``ansi`` is one line a group, ``rgb_array`` a picture [height, width, 3]; a dark bar is what is kept.
    While an episode runs they show the wishes; groups ahead are dense.

    Args:
        space: what may be pruned.
        budgets: one budget or several, as text (``"macs=0.5x"``) or parsed.
        evaluate: candidate -> score, higher is better.
        render_mode: ``ansi``, ``rgb_array`` or None.

    Source: He et al. 2018, "AMC", arXiv:1802.03494, sec. 3. Differs: one shift of all ratios at the end, where AMC
    limits each action to what leaves the later layers a chance to meet the budget, which makes the last layers pay.

    Raises:
        UserError: no budget, one that no subnet fits, or an unknown render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        space: Space,
        budgets: Budget | str | Sequence[Budget | str],
        evaluate: Callable[[Candidate], float],
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UserError(f"The render mode is 'ansi', 'rgb_array' or None, but got {render_mode!r}.")
        several = [budgets] if isinstance(budgets, Budget | str) else budgets
        self.budgets = tuple(each if isinstance(each, Budget) else Budget.parse(each) for each in several)
        if not self.budgets:
            raise UserError("The environment needs at least one budget, for example budgets='macs=0.5x'.")
        self.space = space
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 1, (len(NAMES),), np.float32)
        self.action_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        self._evaluate = evaluate
        self._features = [Features(space, budget) for budget in self.budgets]
        self._budget = 0
        self._actions: list[float] = []
        self._candidate: Candidate | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Raises:
            UserError: ``options["budget"]`` is no index of a budget.
        """
        super().reset(seed=seed)
        chosen = (options or {}).get("budget")
        if chosen is None:
            chosen = self.np_random.integers(len(self.budgets))
        elif chosen not in range(len(self.budgets)):
            raise UserError(f"The option `budget` is an index below {len(self.budgets)}, but got {chosen!r}.")
        self._budget = int(chosen)
        self._actions = []
        self._candidate = None
        return self._observe(), {"budget": self._budget}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Decide the next group."""
        if len(self._actions) == len(self.space.groups):
            raise UserError("The episode has ended: call reset() before the next step().")
        self._actions.append(float(np.clip(np.asarray(action).reshape(()), 0, 1)))
        done = len(self._actions) == len(self.space.groups)
        info: dict[str, Any] = {"budget": self._budget}
        reward = 0.0
        if done:
            wishes = (1 - np.array(self._actions)).tolist()
            candidate = self._candidate = self.space.project(wishes, self.budgets[self._budget])
            levels = np.array([candidate])
            info["candidate"] = candidate
            info["executed"] = self._features[self._budget].actions(levels)[0]
            info["costs"] = {name: float(self.space.cost(name, levels)[0]) for name in self.space.cost_names}
            reward = float(self._evaluate(candidate))
        return self._observe(), reward, done, False, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """Return the keep ratios as text or as a picture."""
        names = [group.name for group in self.space.groups]
        kept = self._kept()
        if self.render_mode == "ansi":
            width = max(map(len, names))
            bars = ("█" * round(20 * ratio) for ratio in kept)
            lines = [f"{n:{width}} {bar:░<20} {ratio:.2f}" for n, bar, ratio in zip(names, bars, kept, strict=True)]
            return "\n".join([str(self.budgets[self._budget]), *lines])
        if self.render_mode == "rgb_array":
            return self._picture(names, kept)
        return None

    def _observe(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = self._features[self._budget].observe(np.array([self._actions]).reshape(1, -1))[0]
        return seen

    def _kept(self) -> list[float]:
        """Return the keep ratio of every group: executed at the end, else wished for, and 1 for groups ahead."""
        if self._candidate is not None:
            kept: list[float] = ratios(self.space, self._candidate).tolist()
            return kept
        return [*(1 - action for action in self._actions), *[1.0] * (len(self.space.groups) - len(self._actions))]

    def _picture(self, names: Sequence[str], kept: Sequence[float]) -> NDArray[np.uint8]:
        picture = Image.new("RGB", (_NAME + _BAR + 10, _ROW * (len(names) + 1)), _PAPER)
        draw = ImageDraw.Draw(picture)
        draw.text((2, 1), str(self.budgets[self._budget]), _INK)
        for row, (name, ratio) in enumerate(zip(names, kept, strict=True), start=1):
            top = row * _ROW
            decided = self._candidate is not None or row <= len(self._actions)
            draw.text((2, top + 1), name if len(name) <= 22 else f"...{name[-19:]}", _INK)
            draw.rectangle((_NAME, top + 2, _NAME + _BAR, top + _ROW - 3), _CUT)
            if ratio > 0:
                bar = (_NAME, top + 2, _NAME + round(_BAR * ratio), top + _ROW - 3)
                draw.rectangle(bar, _KEPT if decided else _WISH)
        return np.array(picture)
