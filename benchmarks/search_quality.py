"""Regret of every agent on made-up losses whose optimum is known: what docs/agents.md quotes.

    python benchmarks/search_quality.py --results results.json
    python benchmarks/search_quality.py --results results.json --agents auto tpe --groups 20

Groups of 8 to 16 levels on a chain of convolutions of equal cost per weight, macs=0.4x, the trials scored minus loss.
With c the share cut from a group, and log-normal weights w, the loss is a sum over groups of

- separable: w c^2
- coupled: the same, plus w' (c_i - c_j)^2 of neighbours on the chain
- plateaus: w s(c)^2, where s rounds c down to one of five steps, and scores with Gaussian noise of 2 % of the optimum
- shapes: w c^e, the exponent e of each group between 1 and 4
- far: w c^2, plus 2 w' c_i c_j of as many random pairs as there are groups
- accuracy: as shapes and coupled together, the score 0.1 + 0.83 exp(-loss) rounded to 1/5000

`+table` agents are given the part of each group alone, each weight off by a log-normal factor of `--noise`: what a
measured table is to a network. The optimum is the best that annealing over millions of states finds by the true loss,
or an agent: regret is best true loss so far / optimum - 1.

Every run (problem, agent, seed) is saved in `--results` as soon as it ends, and not repeated; delete the lines of what
has changed. `gp` and reinforcement learning are run for 100 trials on 20 groups only: they would take hours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.agents import AGENTS, Trial, make_agent, option_names
from autoprune.agents.table import Table
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import check_budget, within
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray
from tests.fakes import FakeSpace, chain_space

BUDGET = Budget.parse("macs=0.4x")
AT = (50, 100, 200, 400)
KINDS = ("separable", "coupled", "plateaus", "shapes", "far", "accuracy")
SLOW = ("gp", "ddpg", "sb3:ddpg", "sb3:sac", "sb3:td3")
STEPS = 5
"""Plateaus of a group."""


class Problem:
    """A space and a loss on it, the same for the same kind, number of groups and seed."""

    def __init__(self, kind: str, num_groups: int, seed: int) -> None:
        rng = np.random.default_rng([seed, num_groups])
        self.kind, self.seed = kind, seed
        self.space: FakeSpace = chain_space([int(8 * rng.integers(8, 17)) for _ in range(num_groups)], step=8, size=1)
        scale = 0.6 / num_groups if kind == "accuracy" else 1.0  # the exponential would be 0 at most candidates
        self.weights = scale * np.exp(rng.normal(size=num_groups))
        self.couplings = scale * np.exp(rng.normal(size=num_groups))
        self.error = rng.normal(size=num_groups)
        self.exponents = rng.uniform(1, 4, size=num_groups) if kind in ("shapes", "accuracy") else 2.0
        self.offsets = rng.random(num_groups)
        self.pairs = np.array([rng.choice(num_groups, 2, replace=False) for _ in range(num_groups)])

    def alone(self, cut: FloatArray) -> FloatArray:
        """Return what each group loses [n, G] where these shares [n, G] are cut."""
        if self.kind == "plateaus":
            cut = np.floor(cut * STEPS + self.offsets) / STEPS
        lost: FloatArray = self.weights * cut**self.exponents
        return lost

    def loss(self, candidates: IntArray) -> FloatArray:
        cut = 1 - self.space.units(candidates) / self.space.level_units[:, -1]
        losses: FloatArray = self.alone(cut).sum(axis=1)
        if self.kind in ("coupled", "accuracy"):
            losses += (self.couplings[1:] * np.diff(cut, axis=1) ** 2).sum(axis=1)
        if self.kind == "far":
            losses += 2 * (self.couplings * cut[:, self.pairs[:, 0]] * cut[:, self.pairs[:, 1]]).sum(axis=1)
        return losses

    def score(self, loss: float, candidate: Candidate, optimum: float) -> float:
        if self.kind == "accuracy":
            return round((0.1 + 0.83 * float(np.exp(-loss))) * 5000) / 5000
        if self.kind == "plateaus":  # the same candidate scores the same
            loss += 0.02 * optimum * float(np.random.default_rng([self.seed, *candidate]).normal())
        return -loss

    def table(self, noise: float) -> Table:
        losses = []
        for group, each in enumerate(self.space.groups):
            cut = np.zeros((len(each.levels), len(self.space.groups)))
            cut[:, group] = 1 - np.array(each.levels) / each.num_units
            lost = self.alone(cut)[:, group] * np.exp(noise * self.error[group])
            losses.append(lost - lost[-1])
        return Table(losses)

    def anneal(self, num_chains: int = 100) -> float:
        """Return the lowest true loss that annealed chains of exchanges meet."""
        rng = np.random.default_rng(0)
        limits, num_groups = check_budget(self.space, BUDGET), len(self.space.groups)
        levels = np.repeat(np.array([self.space.project([1.0] * num_groups, BUDGET)]), num_chains, axis=0)
        losses, chains = self.loss(levels), np.arange(num_chains)
        best = start = losses.min()
        for temperature in start * np.geomspace(0.03, 1e-5, 1000 * num_groups):
            new = levels.copy()
            new[chains, rng.integers(num_groups, size=num_chains)] += rng.integers(0, 3, num_chains)
            new[chains, rng.integers(num_groups, size=num_chains)] -= rng.integers(0, 3, num_chains)
            new = np.clip(new, 0, self.space.num_levels - 1)
            after = self.loss(new)
            taken = after - losses < -temperature * np.log1p(-rng.random(num_chains))
            taken &= within(self.space, new, limits)
            levels[taken], losses[taken] = new[taken], after[taken]
            best = min(best, losses.min())
        return float(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="made, or gone on with")
    parser.add_argument("--agents", nargs="*", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--kinds", nargs="*", default=KINDS[:3], choices=KINDS)
    parser.add_argument("--groups", nargs="*", type=int, default=[20, 60])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=AT[-1])
    parser.add_argument("--noise", type=float, default=0.5, help="of the tables")
    parser.add_argument("--clusters", type=int, help="the option of that name, for agents that take it")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    at = [trials for trials in AT if trials <= arguments.trials]
    print(f"regret after {at} trials, mean ± standard deviation of {arguments.seeds} problems; CPU ms of a trial")
    for num_groups in arguments.groups:
        for kind in arguments.kinds:
            problems = [Problem(kind, num_groups, seed) for seed in range(arguments.seeds)]
            for agent in arguments.agents:
                taken = option_names(agent)
                clusters = f"/{arguments.clusters}" if arguments.clusters and "clusters" in taken else ""
                for noise in (None, arguments.noise):
                    if noise is None or "table" in taken:
                        row(results, problems, agent + clusters, noise, at)


def row(results: Results, problems: list[Problem], agent: str, noise: float | None, at: list[int]) -> None:
    """Run what is missing, and print what came out."""
    num_groups, trials = len(problems[0].space.groups), at[-1]
    if agent.partition("/")[0] in SLOW:
        if num_groups > 20:
            return
        trials = min(trials, 100)
    regrets, spent = [], 0.0
    for problem in problems:
        where = f"{problem.kind} {num_groups} {problem.seed}"
        optimum = results.once(f"optimum {where}", problem.anneal)
        best, seconds = results.once(
            f"{agent} {'table' if noise else 'alone'} {where}",
            partial(play, agent, problem, optimum, trials, noise),
        )
        lowest = results.lowest(where)
        regrets.append([best[min(number, len(best)) - 1] / lowest - 1 for number in at if number <= len(best)])
        spent += seconds / len(best) / len(problems)
    means, spreads = np.mean(regrets, axis=0), np.std(regrets, axis=0)
    cells = "".join(f"{mean:9.4f} ± {spread:.4f}" for mean, spread in zip(means, spreads, strict=True))
    print(
        f"{num_groups:3} {problems[0].kind:10}{agent + (' +table' if noise else ''):17}{cells}{1e3 * spent:8.1f}",
        flush=True,
    )


class Results:
    """What was computed, by key, in a file with a line for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known: dict[str, Any] = dict(json.loads(line) for line in lines)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return what is known, or compute and keep it."""
        if key not in self._known:
            self._known[key] = compute()
            with self._path.open("a") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]

    def lowest(self, where: str) -> float:
        """Return the lowest true loss that anything met on a problem."""
        runs = [
            value[0][-1] for key, value in self._known.items() if key.endswith(f" {where}") and key[:7] != "optimum"
        ]
        return float(min([self._known[f"optimum {where}"], *runs]))


def play(name: str, problem: Problem, optimum: float, trials: int, noise: float | None) -> tuple[list[float], float]:
    """Return the best true loss after each trial [trials], and the CPU seconds that the agent took.

    `tpe/16` is the agent `tpe` with clusters=16.
    """
    name, _, clusters = name.partition("/")
    options: dict[str, Any] = {} if noise is None else {"table": problem.table(noise)}
    if clusters:
        options["clusters"] = int(clusters)
    start = time.thread_time()
    agent = make_agent(name, problem.space, BUDGET, seed=problem.seed, **options)
    losses = []
    for number in range(trials):
        candidate = agent.ask(number)
        losses.append(float(problem.loss(np.array([candidate]))[0]))
        score = problem.score(losses[-1], candidate, optimum)
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score))
    return np.minimum.accumulate(losses).round(9).tolist(), time.thread_time() - start


if __name__ == "__main__":
    main()
