"""What exact bounds save: share of all samples evaluated, by their order. Fashion-MNIST, a residual net.

    OMP_NUM_THREADS=1 python benchmarks/bounds.py --weights dense.safetensors

Random candidates of one budget after another, in the order in which a search would meet them (compensated, units
ranked by `rebuild`). Each is evaluated in full once; from its outputs the bounded evaluation is replayed in several
orders, and front and winner are asserted to be those of full evaluation. Then the same candidates go through the real
evaluator with bounds, whose front must be the same, and the processor time is compared. Without --weights the dense
network is trained first (3 epochs, kept in --work). Some minutes on one core.

Orders: *split*, as the samples lie; *dense*, by the dense network's margin (accuracy) or entropy (kl); *uniform*, what
autoprune uses, by the uniform candidate's margin or loss; *trials*, by the mean loss of the trials so far that ran to
the end, five at most, the order of *dense* before. *Winner only* is the order *uniform* with alpha the best score at
any cost: the winner is the same, the front need not be.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.bounds import Cut, Staircase
from autoprune.data import load_data
from autoprune.evaluate import Evaluator
from autoprune.front import front
from autoprune.importance import collect
from autoprune.models import ModelSource
from autoprune.progress import RichProgress
from autoprune.scores import divergence, predictions
from autoprune.search_spaces import Budget, trace
from autoprune.train import train_dense

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"
BATCH = 128
LEARN_FROM = 5

Order = Callable[[Sequence[int]], Tensor]
"""Numbers of the trials that ran to the end so far -> the order of the samples."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--budget", action="append")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("runs/bounds"))
    options = parser.parse_args()
    weights = options.weights or options.work / "dense.safetensors"
    if not weights.exists():
        print(train_dense(ModelSource(SPEC), DATA, weights, settings={"epochs": 3, "lr": 0.1}, progress=RichProgress()))
    torch.set_num_threads(1)
    model = ModelSource(SPEC, weights=str(weights)).build().eval()
    data = load_data(DATA, batch_size=BATCH)
    space = trace(model, data.example())
    collect(space, "rebuild", data, num_samples=1024)
    evaluators = {
        score: Evaluator(space, data, score=score, importance="rebuild", recovery="compensate")
        for score in ("accuracy", "kl")
    }
    targets = torch.cat([labels for _, labels in data.search])
    for limit in options.budget or ["macs=0.25x", "macs=0.5x"]:
        agent = make_agent("random", space, Budget.parse(limit), seed=0)
        candidates = [agent.uniform(), *(agent.ask(number) for number in range(options.candidates))]
        costs = [space.cost_dict(candidate) for candidate in candidates]
        start = time.process_time()
        outputs = [_outputs(evaluators["kl"], candidate) for candidate in candidates]
        full_seconds = (time.process_time() - start) * (len(candidates) - 1) / len(candidates)
        dense = _outputs(evaluators["kl"], None)
        print(f"\n{limit}, {options.candidates} random candidates, {len(targets):,} samples in batches of {BATCH}\n")
        print("| score | best, median | split | dense | trials | uniform | winner only | run to the end |")
        print("|---|---|---|---|---|---|---|---|")
        for score in evaluators:
            if score == "accuracy":
                losses = [(out.argmax(1) != targets).double() for out in outputs]
                keys = [_margin(dense, targets), _margin(outputs[0], targets)]
                values = [1 - float(loss.mean()) for loss in losses[1:]]
            else:
                losses = [divergence(dense, out).double().clamp(min=0) for out in outputs]
                keys = [(dense.exp() * dense).sum(1), -losses[0]]
                values = [-float(loss.mean()) for loss in losses[1:]]
            plain, by_dense, by_uniform = torch.arange(len(targets)), *(key.argsort(stable=True) for key in keys)
            learnt = _learnt(losses[1:], keys[0], by_dense)
            orders = [_fixed(plain), _fixed(by_dense), learnt, _fixed(by_uniform)]
            replays = [_replay(losses[1:], costs[1:], order) for order in orders]
            winner = _replay(losses[1:], [{"macs": 0.0}] * options.candidates, orders[-1])
            full = [Trial(number=n, candidate=(n,), state="complete", score=v, costs=costs[n + 1])
                    for n, v in enumerate(values)]  # fmt: skip
            for trials in replays:
                assert [t.number for t in front(trials, ["macs"])] == [t.number for t in front(full, ["macs"])]
            assert values[front(winner, ["macs"])[0].number] == max(values)
            cells = [f"{sum(t.evaluated for t in trials) / len(trials):.2f}" for trials in (*replays, winner)]
            done = sum(trial.state == "complete" for trial in replays[-1])
            median = sorted(values)[len(values) // 2]
            print(f"| {score} | {max(values):.3f}, {median:.3f} | {' | '.join(cells)} | {done} of {len(values)} |")
            if score == "accuracy":
                expected = [t.number for t in front(full, ["macs"])]
        evaluator = evaluators["accuracy"]
        start = time.process_time()
        order = evaluator.hardest_first(candidates[0])
        assert order is not None
        evaluator.use_order(order)
        real = _real(evaluator, candidates[1:], costs[1:])
        seconds = time.process_time() - start
        assert [t.number for t in front(real, ["macs"])] == expected
        print(f"\nAccuracy, processor time with recovery: {full_seconds:.0f} s in full, {seconds:.0f} s with bounds, "
              f"sorting included; {sum(t.state == 'cut' for t in real)} cut.")  # fmt: skip


def _outputs(evaluator: Evaluator, candidate: tuple[int, ...] | None) -> Tensor:
    """Log probabilities on the search split, [N, C]; of the dense network for None."""
    network = evaluator.space.model if candidate is None else evaluator.network(candidate, share=True)
    found = predictions(network, evaluator.data.search, evaluator.precision)
    return torch.cat([F.log_softmax(logits, dim=1) for _, _, logits in found])


def _margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """Right class above the best other, [N]: small is hard."""
    right = outputs.gather(1, targets[:, None])
    return (right - outputs.scatter(1, targets[:, None], -math.inf).amax(1, keepdim=True))[:, 0]


def _fixed(order: Tensor) -> Order:
    return lambda _: order


def _learnt(losses: Sequence[Tensor], ties: Tensor, before: Tensor) -> Order:
    """Mean loss over the first trials that ran to the end; ties by the dense network."""

    def order(done: Sequence[int]) -> Tensor:
        if len(done) < LEARN_FROM:
            return before
        mean = torch.stack([losses[number] for number in done[:LEARN_FROM]]).mean(0)
        by_ties = ties.argsort(stable=True)
        return by_ties[mean[by_ties].argsort(descending=True, stable=True)]

    return order


def _replay(losses: Sequence[Tensor], costs: Sequence[dict[str, float]], order: Order) -> list[Trial]:
    """The trials of a bounded search, from the losses [N] of every candidate; scores are minus mean losses."""
    stairs, trials, done = Staircase(["macs"]), [], []
    for number, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        alpha, num_samples = stairs.alpha(cost), len(loss)
        sorted_losses = loss[order(done)]
        seen, total = 0, 0.0
        for part in sorted_losses.split(BATCH):
            seen, total = seen + len(part), total + float(part.sum())
            if alpha is not None and -total / num_samples <= alpha:
                break
        cut = seen < num_samples
        score = -total / num_samples if cut else -math.fsum(loss.tolist()) / num_samples
        trial = Trial(number=number, candidate=(number,), state="cut" if cut else "complete", score=score, costs=cost,
                      evaluated=seen / num_samples)  # fmt: skip
        done += [] if cut else [number]
        stairs.add(trial)
        trials.append(trial)
    return trials


def _real(
    evaluator: Evaluator, candidates: Sequence[tuple[int, ...]], costs: Sequence[dict[str, float]]
) -> list[Trial]:
    """The same through the evaluator."""
    stairs, trials = Staircase(["macs"]), []
    for number, (candidate, cost) in enumerate(zip(candidates, costs, strict=True)):
        alpha = stairs.alpha(cost)
        found = evaluator.evaluate(candidate) if alpha is None else evaluator.evaluate_above(candidate, alpha)
        score, evaluated = (found.bound, found.evaluated) if isinstance(found, Cut) else (found, 1.0)
        state = "cut" if isinstance(found, Cut) else "complete"
        trial = Trial(number=number, candidate=candidate, state=state, score=score, costs=cost, evaluated=evaluated)
        stairs.add(trial)
        trials.append(trial)
    return trials


if __name__ == "__main__":
    main()
