"""What bounds save: share of all samples evaluated, by bound, order and what counts. Fashion-MNIST, a residual net.

    OMP_NUM_THREADS=1 python benchmarks/bounds.py --weights dense.safetensors

Random candidates of one budget after another, in the order in which a search would meet them (compensated, units
ranked by `rebuild`). Each is evaluated in full once; from its outputs bounded searches are replayed. With exact bounds
front, or winner, are asserted to be those of full evaluation. Then the same candidates go through the real evaluator,
with exact bounds (the same front, asserted) and with races, and the processor time is compared. Without --weights the
dense network is trained first (3 epochs, kept in --work). Some minutes on one core.

What counts: *front*, of the score and the costs named, as a search has it; *within 1 %*, the same with a tolerance;
*winner*, the best score at any cost.

Exact bounds, by the order of samples: *split*, as they lie; *dense*, by the dense network's margin (accuracy) or
entropy (kl); *used*, by the uniform candidate's margin or divergence (for the worst class: slice by slice); *learnt*,
by the mean loss of the trials so far that ran to the end, from the third on. *Best first* is the order *used*, but the
candidates come best first: what could at most be won by a better order of candidates.

*Race*: the statistical bound, mean of --studies studies; *wrong cuts*, of all its cuts, and *lost*, which share of the
candidates that were better than their incumbent was cut. No audits. *Skip*: exact bounds and the heuristic, the prior
of 3 levels as table, a tenth audited; *wrong skips* as before.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.agents import make_agent
from autoprune.agents.base import Trial
from autoprune.bounds import Cut, Staircase
from autoprune.data import load_data
from autoprune.evaluate import Evaluator
from autoprune.front import front
from autoprune.heuristic import Heuristic
from autoprune.importance import collect
from autoprune.models import ModelSource
from autoprune.prior import LEVELS, SAMPLES, as_table
from autoprune.profiling import measure_table
from autoprune.progress import RichProgress
from autoprune.prunings import is_audited
from autoprune.races import Races
from autoprune.scores import divergence, predictions
from autoprune.search_spaces import Budget, SearchSpace, trace
from autoprune.search_spaces.types import Candidate, FloatArray, IntArray
from autoprune.statistical import AUDIT, ERROR, PairedTest, draw_order, weights
from autoprune.train import train_dense
from benchmarks.op_table import LatencyTable

SPEC = "autoprune.nets:fashion_resnet"
DATA = "fashion-mnist"
BATCH = 128
COUNTS: dict[str, tuple[list[str], float]] = {
    "front: MACs": (["macs"], 0.0),
    "front: MACs within 1 %": (["macs"], 0.01),
    "front: MACs, latency": (["macs", "latency"], 0.0),
    "front: MACs, latency within 1 %": (["macs", "latency"], 0.01),
    "winner": ([], math.inf),
}
"""What counts: costs and tolerance of the staircase."""


@dataclass(frozen=True)
class Score:
    """Losses of the candidates [n, N], their score as a function of it, orders of samples by name.

    Attributes:
        slices: of each sample, for the score of the worst class; else None.
    """

    name: str
    losses: FloatArray
    orders: dict[str, IntArray]
    slices: IntArray | None = None

    def bounds(self, losses: FloatArray, order: IntArray) -> FloatArray:
        """Upper bound of the score after each batch, [batches]; the last is the score."""
        ends = [*range(BATCH, len(losses), BATCH), len(losses)]
        if self.slices is None:
            found = -losses[order].cumsum()[np.array(ends) - 1] / len(losses)
            found[-1] = -math.fsum(losses.tolist()) / len(losses)
            return found
        sizes, of = np.bincount(self.slices), self.slices[order]
        wrong = [np.bincount(of[:end], weights=losses[order][:end], minlength=len(sizes)) for end in ends]
        return np.array([((sizes - each) / sizes).min() for each in wrong])

    def values(self) -> FloatArray:
        """Scores, [n]."""
        order = np.arange(self.losses.shape[1])
        return np.array([self.bounds(losses, order)[-1] for losses in self.losses])


@dataclass
class Replay:
    """A bounded search, replayed.

    Attributes:
        order: numbers of the trials that ran to the end so far -> the order of samples.
        study: seed of a study with races; None: exact bounds.
        predict: a candidate's predicted loss, by its number, for the heuristic.
        wrong, better: candidates that score more than their incumbent: cut or skipped, audits left out; and all.
    """

    score: Score
    costs: Sequence[Mapping[str, float]]
    counts: str
    order: Callable[[Sequence[int]], IntArray]
    study: int | None = None
    predict: Callable[[Candidate], float] | None = None
    wrong: int = 0
    better: int = 0

    def run(self) -> list[Trial]:
        names, tolerance = COUNTS[self.counts]
        stairs, trials, done = Staircase(names, tolerance), [], []
        heuristic = None if self.predict is None else Heuristic(self.predict)
        for number, cost in enumerate(self.costs):
            incumbent = stairs.incumbent(cost)
            trial, score = self._judge(number, incumbent, done, dict(cost))
            is_better = incumbent is not None and score > (incumbent.score or 0.0)
            if heuristic is not None and incumbent is not None and heuristic.skips((number,), incumbent):
                if is_audited(0, number, AUDIT):
                    trial = replace(trial, pruning="heuristic", audit=not is_better)
                else:
                    trial = replace(trial, state="cut", score=None, evaluated=0.0, pruning="heuristic")
                heuristic.learn(trial)
            self.better += is_better
            self.wrong += is_better and trial.state == "cut"
            done += [number] if trial.state == "complete" else []
            stairs.add(trial)
            trials.append(trial)
        return trials

    def _judge(
        self, number: int, incumbent: Trial | None, done: list[int], cost: dict[str, float]
    ) -> tuple[Trial, float]:
        """The trial of a candidate, and its score in full."""
        losses, order = self.score.losses[number], self.order(done)
        race = None
        if incumbent is not None and self.study is not None:
            theirs = self.score.losses[incumbent.number]
            weight = weights(theirs, self.order([]).tolist())
            order = draw_order(weight, self.study, number)
            race = PairedTest(theirs[order], weight[order], ERROR)
        bounds = self.score.bounds(losses, order)
        trial = Trial(number=number, candidate=(number,), state="complete", score=float(bounds[-1]), costs=cost)
        if incumbent is not None and incumbent.score is not None:
            for batch, bound in enumerate(bounds[:-1]):
                lost = race is not None and race.add(losses[order][BATCH * batch : BATCH * (batch + 1)].tolist())
                if bound <= incumbent.score or lost:
                    evaluated = BATCH * (batch + 1) / len(losses)
                    return replace(trial, state="cut", score=float(bound), evaluated=evaluated), float(bounds[-1])
        return trial, float(bounds[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--budget", action="append")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--studies", type=int, default=20, help="with races, each with other random orders")
    parser.add_argument("--work", type=Path, default=Path("runs/bounds"))
    options = parser.parse_args()
    weights_file = options.weights or options.work / "dense.safetensors"
    if not weights_file.exists():
        settings = {"epochs": 3, "lr": 0.1}
        print(train_dense(ModelSource(SPEC), DATA, weights_file, settings=settings, progress=RichProgress()))
    torch.set_num_threads(1)
    model = ModelSource(SPEC, weights=str(weights_file)).build().eval()
    data = load_data(DATA, batch_size=BATCH)
    space = trace(model, data.example())
    collect(space, "rebuild", data, num_samples=1024)
    space.add_cost("latency", LatencyTable.measure(space, threads=1).predictor(space))
    evaluator = Evaluator(space, data, score="accuracy", importance="rebuild", recovery="compensate")
    table = as_table(measure_table(evaluator, levels=LEVELS, samples=SAMPLES))
    targets = torch.cat([labels for _, labels in data.search])
    for limit in options.budget or ["macs=0.25x", "macs=0.5x"]:
        agent = make_agent("random", space, Budget.parse(limit), seed=0)
        candidates = [agent.ask(number) for number in range(options.candidates)]
        costs = [space.cost_dict(candidate) for candidate in candidates]
        uniform, dense = outputs(evaluator, agent.uniform()), outputs(evaluator, None)
        start = time.process_time()
        found = torch.stack([outputs(evaluator, candidate) for candidate in candidates])
        seconds = time.process_time() - start
        print(f"\n{limit}, {options.candidates} random candidates, {len(targets):,} samples in batches of {BATCH}\n")
        columns = ["score: best, median", "counts", "split", "dense", "used", "learnt", "best first", "race",
                   "wrong cuts, lost", "skip", "wrong skips"]  # fmt: skip
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        losses = table.predict(np.array(candidates))
        for score in scores(found, uniform, dense, targets):
            for counts in COUNTS:
                print_row(score, counts, costs, losses, options.studies)
        for name, share, took, cut in real(evaluator, space, candidates, costs, agent.uniform()):
            print(f"\nAccuracy, front: MACs, {name}: {took:.0f} s of processor time, recovery and sorting included, "
                  f"{cut} cut, {share:.2f} of the samples; {seconds:.0f} s in full.")  # fmt: skip


def print_row(score: Score, counts: str, costs: list[dict[str, float]], predicted: FloatArray, studies: int) -> None:
    """Replay a score in every way; assert what is proved."""
    values = score.values()
    names, _ = COUNTS[counts]
    full = [Trial(number=n, candidate=(n,), state="complete", score=v, costs=c)
            for n, (v, c) in enumerate(zip(values.tolist(), costs, strict=True))]  # fmt: skip
    fixed = {name: (lambda done, order=order: order) for name, order in score.orders.items()}
    used = fixed["used"]

    def learnt(done: Sequence[int]) -> IntArray:
        base = score.orders["used"]
        return base if len(done) < 3 else base[np.argsort(-score.losses[done].mean(0)[base], kind="stable")]

    cells = []
    for name in ("split", "dense", "used", "learnt"):
        order = learnt if name == "learnt" else fixed.get(name)
        if order is None or (name == "learnt" and score.slices is not None):
            cells.append("–")
            continue
        trials = Replay(score, costs, counts, order).run()
        if "within" not in counts:
            assert [t.number for t in front(trials, names)] == [t.number for t in front(full, names)]
        cells.append(f"{share_of(trials):.2f}")
    first = np.argsort(-values, kind="stable")
    best_first = Score(score.name, score.losses[first], score.orders, score.slices)
    cells.append(f"{share_of(Replay(best_first, [costs[n] for n in first], counts, used).run()):.2f}")
    if score.slices is None:
        races = [Replay(score, costs, counts, used, study=seed) for seed in range(studies)]
        played = [race.run() for race in races]
        wrong, cut = sum(race.wrong for race in races), sum(t.state == "cut" for trials in played for t in trials)
        lost = wrong / sum(race.better for race in races)
        share = np.mean([share_of(trials) for trials in played])
        cells += [f"**{share:.2f}**", f"{wrong} of {cut}, {100 * lost:.1f} %"]
    else:
        cells += ["–", "–"]
    skipping = Replay(score, costs, counts, used, predict=lambda candidate: float(predicted[candidate[0]]))
    trials = skipping.run()
    skipped = sum(trial.pruning == "heuristic" and trial.audit is None for trial in trials)
    cells += [f"{share_of(trials):.2f}", f"{skipping.wrong} of {skipped}"]
    median = sorted(values)[len(values) // 2]
    print(f"| {score.name}: {max(values):.3f}, {median:.3f} | {counts} | {' | '.join(cells)} |", flush=True)


def share_of(trials: Sequence[Trial]) -> float:
    return sum(trial.evaluated for trial in trials) / len(trials)


def scores(found: Tensor, uniform: Tensor, dense: Tensor, targets: Tensor) -> list[Score]:
    """Accuracy (minus the share of wrong answers), minus the divergence, and the accuracy of the worst class."""
    split = np.arange(len(targets))
    wrong = (found.argmax(2) != targets).double().numpy()
    hard = -margin(uniform, targets).numpy()
    by = {"split": split, "dense": margin(dense, targets).argsort(stable=True).numpy(), "used": hard_first(hard)}
    far = np.stack([divergence(dense, out).double().clamp(min=0).numpy() for out in found])
    entropy = (dense.exp() * dense).sum(1).argsort(stable=True).numpy()
    by_kl = {"split": split, "dense": entropy, "used": hard_first(divergence(dense, uniform).numpy())}
    classes = targets.numpy()
    slice_wrong = np.bincount(classes, weights=hard >= 0) / np.bincount(classes)
    by_slice = {"split": split, "used": np.lexsort((-hard, classes, -slice_wrong[classes]))}
    return [Score("accuracy - 1", wrong, by), Score("kl", far, by_kl), Score("worst class", wrong, by_slice, classes)]


def hard_first(hardness: FloatArray) -> IntArray:
    return np.argsort(-hardness, kind="stable")


def outputs(evaluator: Evaluator, candidate: Candidate | None) -> Tensor:
    """Log probabilities on the search split, [N, C]; of the dense network for None."""
    network = evaluator.space.model if candidate is None else evaluator.network(candidate, share=True)
    found = predictions(network, evaluator.data.search, evaluator.precision)
    return torch.cat([F.log_softmax(logits, dim=1) for _, _, logits in found])


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """Right class above the best other, [N]: small is hard."""
    right = outputs.gather(1, targets[:, None])
    return (right - outputs.scatter(1, targets[:, None], -math.inf).amax(1, keepdim=True))[:, 0]


def real(
    evaluator: Evaluator,
    space: SearchSpace,
    candidates: Sequence[Candidate],
    costs: Sequence[dict[str, float]],
    uniform: Candidate,
) -> list[tuple[str, float, float, int]]:
    """The same through the evaluator: name, share of samples, processor seconds, trials cut."""
    rows = []
    for name in ("exact", "race"):
        start = time.process_time()
        order = evaluator.hardest_first(uniform)
        assert order is not None
        evaluator.use_order(order)
        stairs, trials = Staircase(["macs"]), []
        with tempfile.TemporaryDirectory() as folder:
            races = Races(evaluator, order, Path(folder), audit=0.0)
            for number, (candidate, cost) in enumerate(zip(candidates, costs, strict=True)):
                incumbent = stairs.incumbent(cost)
                if name == "race":
                    found = races(number, candidate, incumbent)
                elif incumbent is None or incumbent.score is None:
                    found = evaluator.evaluate(candidate)
                else:
                    found = evaluator.evaluate_above(candidate, incumbent.score)
                cut = found if isinstance(found, Cut) else None
                trial = Trial(number=number, candidate=candidate, state="cut" if cut else "complete",
                              score=found.bound if isinstance(found, Cut) else found, costs=cost,
                              evaluated=cut.evaluated if cut else 1.0)  # fmt: skip
                stairs.add(trial)
                trials.append(trial)
        rows.append((name, share_of(trials), time.process_time() - start, sum(t.state == "cut" for t in trials)))
    return rows


if __name__ == "__main__":
    main()
