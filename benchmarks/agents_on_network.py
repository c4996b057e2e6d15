"""All agents on a real network at equal evaluations: the best score each finds, and how soon another one has it.

    OMP_NUM_THREADS=1 python benchmarks/agents_on_network.py

Fashion-MNIST, residual nets of `autoprune.nets` (3 epochs, kept in --work; seed k searches on net k % --nets). Every
agent asks and is told --trials times; scores are accuracy on 2,000 samples of the search split after compensation
(1,000 calibration samples, units ranked by `rebuild`). A subnet's score does not depend on who asks, so it is computed
once and kept in --work; a stopped benchmark goes on where it was. Agents that take a table get the one that a search
measures before its first trial; what it costs stands in docs/kl-table.md.

For every budget: the best score after --trials, mean ± standard deviation over seeds; then how many evaluations the
agent --against needs to reach what the others reach with all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from autoprune.agents import AGENTS, Trial, make_agent, option_names
from autoprune.data import load_data
from autoprune.evaluate import Evaluator
from autoprune.files import write_json
from autoprune.importance import collect
from autoprune.models import ModelSource
from autoprune.prior import LEVELS, SAMPLES, as_table
from autoprune.profiling import measure_table
from autoprune.search_spaces import Budget, Candidate, trace
from autoprune.search_spaces.types import FloatArray
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"


class Judge:
    """A network whose subnets are scored once, in this process or an earlier one."""

    def __init__(self, net: int, work: Path) -> None:
        weights = work / f"resnet-{net}.safetensors"
        if not weights.exists():
            source = ModelSource(SPEC, {"seed": net})
            print(train_dense(source, DATA, weights, settings={"epochs": 3, "lr": 0.1}, seed=net))
        data = load_data(DATA, search_size=2000, batch_size=500)
        model = ModelSource(SPEC, {"seed": net}, str(weights)).build().eval()
        self.space = trace(model, data.example(1))
        collect(self.space, "rebuild", data, num_samples=1024)
        self._evaluator = Evaluator(self.space, data, importance="rebuild", calibration_samples=1000)
        self._path = work / f"scores-{net}.json"
        self._scores: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.table = as_table(measure_table(self._evaluator, levels=LEVELS, samples=SAMPLES))

    def score(self, candidate: Candidate) -> float:
        key = ",".join(map(str, candidate))
        if key not in self._scores:
            self._scores[key] = self._evaluator.evaluate(candidate)
        return self._scores[key]

    def save(self) -> None:
        write_json(self._path, self._scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="*", default=list(AGENTS))
    parser.add_argument("--budget", action="append")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--against", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/proxy_quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    judges = [Judge(net, options.work) for net in range(min(options.nets, options.seeds))]
    for budget in options.budget or ["macs=0.25x", "macs=0.12x"]:
        print(f"\n{budget}, {options.trials} trials, {options.seeds} seeds, {len(judges)} networks\n")
        print("| agent | best after a tenth | best after all |\n|---|---|---|")
        curves: dict[str, list[FloatArray]] = {}
        for name in options.agents:
            curves[name] = [
                search(name, judges[seed % len(judges)], budget, seed, options.trials) for seed in range(options.seeds)
            ]
            tenth = [curve[options.trials // 10 - 1] for curve in curves[name]]
            print(f"| `{name}` | {spread(tenth)} | {spread([curve[-1] for curve in curves[name]])} |", flush=True)
        for name in options.agents:
            if options.against in curves and name != options.against:
                print(f"{options.against} reaches {name}: {evaluations(curves[options.against], curves[name])}")


def search(name: str, judge: Judge, budget: str, seed: int, trials: int) -> FloatArray:
    """Best score after each trial, [trials]."""
    takes = "table" in option_names(name)
    agent = make_agent(name, judge.space, Budget.parse(budget), seed=seed, **({"table": judge.table} if takes else {}))
    scores = []
    for number in range(trials):
        candidate = agent.ask(number)
        scores.append(judge.score(candidate))
        costs = judge.space.cost_dict(candidate)
        agent.tell(Trial(number=number, candidate=candidate, state="complete", score=scores[-1], costs=costs))
    judge.save()
    best: FloatArray = np.maximum.accumulate(scores)
    return best


def evaluations(fast: list[FloatArray], slow: list[FloatArray]) -> str:
    """How many trials the one needed for the last score of the other, seed by seed."""
    needed = [int(np.argmax(a >= b[-1])) + 1 if a[-1] >= b[-1] else None for a, b in zip(fast, slow, strict=True)]
    reached = [each for each in needed if each is not None]
    return f"{len(reached)} of {len(needed)} seeds, after {sorted(reached)} evaluations"


def spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values) if len(values) > 1 else 0:.2f}"


if __name__ == "__main__":
    main()
