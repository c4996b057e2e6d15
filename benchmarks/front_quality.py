"""Fronts of score against cost on made-up losses: agents that look for a front, and sweeps of the budget.

    python benchmarks/front_quality.py

The problems are those of `search_quality`, separable and coupled: 20 groups, macs=0.4x. An agent that takes `costs` is
told the MACs beside the score, as by `--aim front`; for a sweep agents take turns in seats for the shares of the budget
that `--aim front` gives to those that take none. Measured is the hypervolume of loss and MACs after equal numbers of
trials, as a share of what a candidate without loss at the least share of the budget would cover. The reference is the
loss of the uniform candidate at that share, and 1.1 times the budget. `best`: the lowest loss at any size over that of
the uniform candidate at the whole budget: what looking for a front costs the best score.
"""

from __future__ import annotations

import argparse

import numpy as np

from autoprune.agents import AGENTS, Trial, make_agent, option_names
from autoprune.agents.base import FRONT_SHARES
from autoprune.front import hypervolume
from autoprune.search_spaces.types import FloatArray
from benchmarks.search_quality import BUDGET, KINDS, Problem

AT = (50, 100, 200)
LEAST = FRONT_SHARES[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agents", nargs="*", default=["random", "evolution", "nsga2", "tpe"], choices=list(AGENTS))
    parser.add_argument("--sweeps", nargs="*", default=["tpe", "cmaes", "greedy", "auto"], choices=list(AGENTS))
    parser.add_argument("--kinds", nargs="*", default=KINDS[:2], choices=KINDS)
    parser.add_argument("--trials", type=int, default=AT[-1])
    arguments = parser.parse_args()
    at = [trials for trials in AT if trials <= arguments.trials]
    print(f"hypervolume after {at} trials and best / uniform after {at[-1]}, mean ± standard deviation")
    for kind in arguments.kinds:
        problems = [Problem(kind, 20, seed) for seed in range(arguments.seeds)]
        for name, sweep in [(name, False) for name in arguments.agents] + [(name, True) for name in arguments.sweeps]:
            points = [play(name, problem, seed, arguments.trials, sweep) for seed, problem in enumerate(problems)]
            columns = []
            for count in at:
                volumes = [covered(each[:count], problem) for each, problem in zip(points, problems, strict=True)]
                columns.append(f"{np.mean(volumes):.3f} ± {np.std(volumes):.3f}")
            best = [each[: at[-1], 0].min() / uniform(p, 1.0) for each, p in zip(points, problems, strict=True)]
            label = f"{name} {'sweep' if sweep else 'front'}"
            print(f"{kind:10}{label:16}{'  '.join(columns)}   {np.mean(best):.3f} ± {np.std(best):.3f}", flush=True)


def play(name: str, problem: Problem, seed: int, trials: int, sweep: bool) -> FloatArray:
    """Return loss and MACs of every trial, [trials, 2]."""
    if sweep:
        agents = [make_agent(name, problem.space, BUDGET.scaled(share), seed=seed) for share in FRONT_SHARES]
    else:
        assert "costs" in option_names(name), f"{name} looks for no front: name it under --sweeps"
        agents = [make_agent(name, problem.space, BUDGET, seed=seed, costs=["macs"])]
    points = []
    for number in range(trials):
        agent = agents[number % len(agents)]
        candidate = agent.ask(number)
        costs, loss = problem.space.cost_dict(candidate), float(problem.loss(np.array([candidate]))[0])
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=-loss, costs=costs))
        points.append([loss, costs["macs"]])
    return np.array(points)


def uniform(problem: Problem, share: float) -> float:
    """Return the loss of the uniform candidate at a share of the budget."""
    candidate = problem.space.project([1.0] * len(problem.space.groups), BUDGET.scaled(share))
    return float(problem.loss(np.array([candidate]))[0])


def covered(points: FloatArray, problem: Problem) -> float:
    """Return the hypervolume of loss and MACs, [n, 2]; a candidate below the least share earns nothing by that."""
    macs = BUDGET.resolve(problem.space.cost_dict(problem.space.dense))["macs"]
    scaled = points / [uniform(problem, LEAST), macs]
    scaled[:, 1] = np.maximum(scaled[:, 1], LEAST)
    return hypervolume(scaled, np.array([1.0, 1.1])) / (1.1 - LEAST)


if __name__ == "__main__":
    main()
