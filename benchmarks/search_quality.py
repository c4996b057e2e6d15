"""Regret of every agent on made-up losses whose optimum is known: what docs/agents.md quotes.

    python benchmarks/search_quality.py

20 groups of 8 to 16 levels on a chain of convolutions of equal cost per weight, macs=0.4x. The loss is a sum over
groups of weight * (1 - keep ratio)^2 with log-normal weights; coupled, neighbouring groups add weight * (difference of
their cut shares)^2. `+table` agents are given the separable part, each weight off by a log-normal factor of `--noise`:
what a measured table is to a network. The optimum is the best that annealing over millions of states finds by the
true loss. Regret: best loss so far / optimum - 1.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from autoprune.agents import AGENTS, Trial, agent_class, make_agent
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import check_budget, within
from autoprune.search_spaces.types import FloatArray, IntArray
from tests.fakes import FakeSpace, chain_space

BUDGET = Budget.parse("macs=0.4x")
AT = (50, 100, 200)


class Problem:
    """A space and a loss on it, the same for the same seed."""

    def __init__(self, seed: int, coupling: float) -> None:
        rng = np.random.default_rng(seed)
        self.space: FakeSpace = chain_space([int(8 * rng.integers(8, 17)) for _ in range(20)], step=8, size=1)
        self.weights = np.exp(rng.normal(size=20))
        self.couplings = coupling * np.exp(rng.normal(size=19))
        self.noise = rng.normal(size=20)

    def loss(self, candidates: IntArray) -> FloatArray:
        cut = 1 - self.space.units(candidates) / self.space.level_units[:, -1]
        separable: FloatArray = (self.weights * cut**2).sum(axis=1)
        return separable + (self.couplings * np.diff(cut, axis=1) ** 2).sum(axis=1)

    def table(self, noise: float) -> Table:
        weights = self.weights * np.exp(noise * self.noise)
        return Table(
            [w * (1 - np.array(g.levels) / g.num_units) ** 2 for w, g in zip(weights, self.space.groups, strict=True)]
        )

    def optimum(self, num_chains: int = 200, num_steps: int = 20_000) -> float:
        """The lowest true loss that annealed chains of exchanges meet."""
        rng = np.random.default_rng(0)
        limits = check_budget(self.space, BUDGET)
        levels = np.repeat(np.array([self.space.project([1.0] * 20, BUDGET)]), num_chains, axis=0)
        losses, chains = self.loss(levels), np.arange(num_chains)
        best = losses.min()
        for temperature in np.geomspace(0.3, 1e-4, num_steps):
            new = levels.copy()
            new[chains, rng.integers(20, size=num_chains)] += rng.integers(0, 3, num_chains)
            new[chains, rng.integers(20, size=num_chains)] -= rng.integers(0, 3, num_chains)
            new = np.clip(new, 0, self.space.num_levels - 1)
            after = self.loss(new)
            taken = after - losses < -temperature * np.log1p(-rng.random(num_chains))
            taken &= within(self.space, new, limits)
            levels[taken], losses[taken] = new[taken], after[taken]
            best = min(best, losses.min())
        return float(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--agents", nargs="*", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--couplings", type=float, nargs="*", default=[0.0, 1.0], help="0: separable")
    parser.add_argument("--trials", type=int, default=AT[-1])
    arguments = parser.parse_args()
    print(f"regret after {AT} trials, mean ± standard deviation over {arguments.seeds} problems; CPU seconds of a run")
    for coupling in arguments.couplings:
        problems = [Problem(seed, coupling) for seed in range(arguments.seeds)]
        optima = [problem.optimum() for problem in problems]
        for name in arguments.agents:
            for with_table in (False, True):
                if with_table and "table" not in agent_class(name).__init__.__annotations__:
                    continue
                start = time.thread_time()
                regrets = np.array(
                    [
                        regret(
                            name,
                            problem,
                            seed,
                            arguments.trials,
                            problem.table(arguments.noise) if with_table else None,
                        )
                        / optimum
                        - 1
                        for seed, (problem, optimum) in enumerate(zip(problems, optima, strict=True))
                    ]
                )
                seconds = (time.thread_time() - start) / arguments.seeds
                columns = [
                    f"{regrets[:, at - 1].mean():6.3f} ± {regrets[:, at - 1].std():.3f}"
                    for at in AT
                    if at <= arguments.trials
                ]
                label = name + (" +table" if with_table else "")
                print(
                    f"{'coupled' if coupling else 'separable':10}{label:17}{'  '.join(columns)}{seconds:7.1f} s",
                    flush=True,
                )


def regret(name: str, problem: Problem, seed: int, trials: int, table: Table | None) -> FloatArray:
    """Return the best true loss after each trial, [trials]."""
    options = {} if table is None else {"table": table}
    agent = make_agent(name, problem.space, BUDGET, seed=seed, **options)
    losses = []
    for number in range(trials):
        candidate = agent.ask(number)
        losses.append(float(problem.loss(np.array([candidate]))[0]))
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-losses[-1]))
    best: FloatArray = np.minimum.accumulate(losses)
    return best


if __name__ == "__main__":
    main()
