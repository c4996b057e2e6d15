"""Compare agents and time projection on real spaces with a made-up score: what docs/agents.md quotes.

    python benchmarks/compare_agents.py

The loss of a candidate is a separable quadratic, sum over groups of weight * (1 - keep ratio)^2, with log-normal
weights per problem. It tells whether an agent learns which groups matter, not how it fares on a network. Times are CPU
time of one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torchvision

from autoprune.agents import AGENTS, Agent, Trial, make_agent
from autoprune.search_spaces import SearchSpace, trace
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.types import Candidate, FloatArray

MODELS = ("resnet18", "mobilenet_v2")
BUDGETS = ("macs=0.5x", "macs=0.25x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--problems", type=int, default=8, help="weights and seed k for k below this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spaces = {name: trace(getattr(torchvision.models, name)(), torch.randn(1, 3, 224, 224)) for name in MODELS}
    print(
        f"best loss / loss of the uniform candidate after {arguments.trials} trials, "
        f"mean ± standard deviation over {arguments.problems} problems"
    )
    for model, space in spaces.items():
        for budget in BUDGETS:
            for agent in AGENTS:
                losses = [best_loss(agent, space, budget, seed, arguments.trials) for seed in range(arguments.problems)]
                print(
                    f"{model:15}{len(space.groups):3} groups  {budget:12}{agent:10}"
                    f"{np.mean(losses):.3f} ± {np.std(losses):.3f}",
                    flush=True,
                )
    print("milliseconds to ask, median of 10")
    for model, space in spaces.items():
        for agent in AGENTS:
            times = [ask_ms(agent, space, "macs=0.5x", told) for told in (60, 300)]
            print(f"{model:15}{agent:10}{times[0]:6.1f} after 60 trials {times[1]:6.1f} after 300")
    print("milliseconds to project random wishes, median and largest of 50")
    for model in (*MODELS, "resnet50", "efficientnet_b0", "densenet121"):
        space = spaces.get(model) or trace(getattr(torchvision.models, model)(), torch.randn(1, 3, 224, 224))
        for budget in ("macs=0.5x", "macs=0.5x,params=0.6x"):
            middle, most = project_ms(space, Budget.parse(budget))
            print(f"{model:17}{len(space.groups):4} groups  {budget:24}{middle:5.1f}{most:6.1f}")


def best_loss(name: str, space: SearchSpace, budget: str, seed: int, num_trials: int) -> float:
    """Return the lowest loss of `num_trials`, as a share of the uniform candidate's."""
    weights = np.exp(np.random.default_rng(1000 + seed).normal(size=len(space.groups)))
    agent = make_agent(name, space, Budget.parse(budget), seed=seed)
    best = min(loss(space, candidate, weights) for candidate in play(agent, space, weights, num_trials))
    return best / loss(space, agent.uniform(), weights)


def loss(space: SearchSpace, candidate: Candidate, weights: FloatArray) -> float:
    cut = 1 - np.array(list(space.keep_ratios(candidate).values()))
    return float((weights * cut**2).sum())


def play(agent: Agent, space: SearchSpace, weights: FloatArray, num_trials: int) -> list[Candidate]:
    for number in range(num_trials):
        candidate = agent.ask(number)
        score = -loss(space, candidate, weights)
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score))
    return [trial.candidate for trial in agent.trials]


def ask_ms(name: str, space: SearchSpace, budget: str, told: int) -> float:
    agent = make_agent(name, space, Budget.parse(budget), seed=0)
    source = make_agent("random", space, Budget.parse(budget), seed=1)
    for number in range(told):
        agent.tell(Trial(number=number, candidate=source.ask(number), state="complete", score=number % 7))
    times = []
    for number in range(told, told + 10):
        start = time.thread_time()
        agent.ask(number)
        times.append(1e3 * (time.thread_time() - start))
    return float(np.median(times))


def project_ms(space: SearchSpace, budget: Budget) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    times = []
    for _ in range(50):
        wishes = rng.random(len(space.groups)).tolist()
        start = time.thread_time()
        space.project(wishes, budget)
        times.append(1e3 * (time.thread_time() - start))
    return float(np.median(times)), max(times)


if __name__ == "__main__":
    main()
