"""Compare agents and time projection on real spaces with a made-up score: what docs/agents.md quotes.

    python benchmarks/compare_agents.py
    python benchmarks/compare_agents.py --overhead

The loss of a candidate is a separable quadratic, sum over groups of weight * (1 - keep ratio)^2, with log-normal
weights per problem. It tells whether an agent learns which groups matter, not how it fares on a network. Times are CPU
time of one thread. With `--overhead` only the times to ask and tell are taken, on a made-up chain of 60 layers, also
with costs beside the score.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torchvision

from autoprune.agents import AGENTS, Agent, Trial, make_agent, option_names
from autoprune.agents.kl import sample
from autoprune.agents.table import Table
from autoprune.search_spaces import SearchSpace, trace
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.projection import check_budget
from autoprune.search_spaces.types import Candidate, FloatArray
from tests.fakes import FakeSpace, chain_space

MODELS = ("resnet18", "mobilenet_v2")
BUDGETS = ("macs=0.5x", "macs=0.25x")
TOLD = (100, 299, 1000)
"""299: the last time that `gp` fits its process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--problems", type=int, default=8, help="weights and seed k for k below this")
    parser.add_argument("--overhead", action="store_true", help="only how long it takes to ask and to tell")
    parser.add_argument("--agents", nargs="*", default=list(AGENTS), choices=list(AGENTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.overhead:
        overhead(arguments.agents)
        return
    spaces = {name: trace(getattr(torchvision.models, name)(), torch.randn(1, 3, 224, 224)) for name in MODELS}
    print(
        f"best loss / loss of the uniform candidate after {arguments.trials} trials, "
        f"mean ± standard deviation over {arguments.problems} problems"
    )
    for model, space in spaces.items():
        for budget in BUDGETS:
            for agent in arguments.agents:
                losses = [best_loss(agent, space, budget, seed, arguments.trials) for seed in range(arguments.problems)]
                print(
                    f"{model:15}{len(space.groups):3} groups  {budget:12}{agent:10}"
                    f"{np.mean(losses):.3f} ± {np.std(losses):.3f}",
                    flush=True,
                )
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


def loss(space: SearchSpace | FakeSpace, candidate: Candidate, weights: FloatArray) -> float:
    cut = 1 - np.array(list(space.keep_ratios(candidate).values()))
    return float((weights * cut**2).sum())


def play(agent: Agent, space: SearchSpace, weights: FloatArray, num_trials: int) -> list[Candidate]:
    for number in range(num_trials):
        candidate = agent.ask(number)
        score = -loss(space, candidate, weights)
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=score))
    return [trial.candidate for trial in agent.trials]


def overhead(agents: list[str]) -> None:
    """Print the milliseconds to ask (median of 5) and to tell (mean of 50) after some numbers of trials."""
    space, budget = chain_space([64] * 60, step=8, size=1), Budget.parse("macs=0.5x")
    source = make_agent("random", space, budget, seed=1, costs=["macs"])
    weights = np.exp(np.random.default_rng(0).normal(size=len(space.groups)))
    trials = []
    for number in range(max(TOLD)):
        candidate = source.ask(number)
        score, costs = -loss(space, candidate, weights), space.cost_dict(candidate)
        trials.append(Trial(number=number, candidate=candidate, state="complete", score=score, costs=costs))
    print(f"milliseconds to ask + tell after {TOLD} trials, {len(space.groups)} groups")
    for name in agents:
        for costs_told in ([], ["macs"]):
            if costs_told and "costs" not in option_names(name):
                continue
            options = {"costs": costs_told} if costs_told else {}
            times = [ask_tell_ms(make_agent(name, space, budget, seed=0, **options), trials[:told]) for told in TOLD]
            columns = "   ".join(f"{ask:7.1f} + {tell:4.1f}" for ask, tell in times)
            print(f"{name + (' front' if costs_told else ''):17}{columns}", flush=True)
    print(f"milliseconds for 100,000 states of kl's chains on resnet50, 1,000 chains: {sample_ms():.0f}")


def ask_tell_ms(agent: Agent, trials: list[Trial]) -> tuple[float, float]:
    for trial in trials[:-50]:
        agent.tell(trial)
    start = time.thread_time()
    for trial in trials[-50:]:
        agent.tell(trial)
    tell = 1e3 * (time.thread_time() - start) / 50
    asked = []
    for number in range(len(trials), len(trials) + 5):
        start = time.thread_time()
        agent.ask(number)
        asked.append(1e3 * (time.thread_time() - start))
    return float(np.median(asked)), tell


def sample_ms() -> float:
    """Return the milliseconds that 1,000 chains take for 100 steps on resnet50's space, median of 5."""
    space = trace(torchvision.models.resnet50(), torch.randn(1, 3, 224, 224))
    budget = Budget.parse("macs=0.5x")
    limits, table = check_budget(space, budget), Table.stand_in(space)
    start = np.repeat(np.array([space.project([1.0] * len(space.groups), budget)]), 1_000, axis=0)
    temperature = float(table.predict(start[:1])[0]) / len(space.groups)
    times = []
    for seed in range(5):
        began = time.thread_time()
        rng = np.random.default_rng(seed)
        sample(space, limits, table, temperature, start=start, num_steps=100, rng=rng)
        times.append(1e3 * (time.thread_time() - began))
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
