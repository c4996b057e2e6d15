from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.data.base import Batches, Inputs
from autoprune.evaluate import EvaluationFailed, Evaluator
from autoprune.nets import small_resnet
from autoprune.recalibrate import NothingRecalibrated, recalibrate
from autoprune.scores import DivergenceFromDense, accuracy
from autoprune.search_spaces import trace
from autoprune.search_spaces.errors import UserError
from autoprune.search_spaces.space import SearchSpace
from tests.autoprune.fakes import Constant, ConvNet, FakeSpace, ListBatches, conv_net, image_data, same_state, state_of

HALF = (3,)


def evaluator(**options: object) -> Evaluator:
    data = options.pop("data", None) or image_data()
    space = options.pop("space", None) or FakeSpace(conv_net())
    options.setdefault("calibration_samples", 64)
    return Evaluator(space, data, **options)  # type: ignore[arg-type]


def one_hot(classes: Sequence[int], num_classes: int = 3) -> Tensor:
    return F.one_hot(torch.tensor(classes), num_classes).float()


# -- scores ----------------------------------------------------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    model = Constant(one_hot([0, 1, 2, 0]), one_hot([1, 1]))
    batches = ListBatches(
        (torch.zeros(4, 1), torch.tensor([0, 1, 2, 2])),
        (torch.zeros(2, 1), torch.tensor([1, 0])),
    )
    assert accuracy(model, batches) == 4 / 6


def test_a_constant_network_is_right_for_one_class_only() -> None:
    model = Constant(torch.zeros(4, 3))
    assert accuracy(model, ListBatches((torch.zeros(4, 1), torch.tensor([0, 1, 2, 2])))) == 1 / 4


def test_top_k_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    batches = ListBatches((torch.zeros(4, 1), torch.tensor([0, 1, 2, 3])))
    assert accuracy(Constant(logits), batches, k=2) == 0.5


def test_accuracy_counts_pixels() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0, :3] = 1.0
    assert accuracy(Constant(logits), ListBatches((torch.zeros(1, 1), torch.ones(1, 1, 4).long()))) == 0.75


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    batches = ListBatches((torch.zeros(1, 1), torch.tensor([0])))
    score = DivergenceFromDense(Constant(p.log()), "fp32")
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert score(Constant(q.log() + 7.0), batches) == pytest.approx(-by_hand, abs=1e-6)
    assert score(Constant(p.log()), batches) == 0.0


def test_kl_notices_a_split_that_changes() -> None:
    one, other = (torch.ones(1, 1), torch.tensor([0])), (torch.zeros(1, 1), torch.tensor([0]))
    score = DivergenceFromDense(Constant(torch.rand(1, 3)), "fp32")
    score(Constant(torch.rand(1, 3)), ListBatches(one, other))
    for changed in (ListBatches(other, one), ListBatches(one), ListBatches(one, other, one)):
        with pytest.raises(UserError, match="has changed: its batch"):
            score(Constant(torch.rand(1, 3)), changed)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("score", ["accuracy", "kl"])
def test_outputs_that_are_not_finite_fail_the_evaluation(bad: float, score: str) -> None:
    space = FakeSpace(conv_net())

    def broken(candidate: tuple[int, ...]) -> nn.Module:
        net = space.materialise(candidate)
        assert isinstance(net, ConvNet)
        nn.init.constant_(net.head.bias, bad)
        return net

    with pytest.raises(EvaluationFailed, match="NaN or infinite"):
        evaluator(space=space, score=score, materialise=broken).evaluate(HALF)


def test_an_evaluation_that_failed_is_not_a_mistake_of_the_user() -> None:
    # The controller stops at a UserError, but goes on after a failed trial.
    assert not issubclass(EvaluationFailed, UserError)


def test_scoring_leaves_a_network_that_keeps_tensors_trainable() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = nn.Linear(4, 3), torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            if not self.table.dim():
                self.table = torch.linspace(0, 1, 3)
            logits: Tensor = self.layer(x)
            return logits * self.table

    model = Keeping()
    accuracy(model, ListBatches((torch.rand(2, 4), torch.tensor([0, 1]))))
    model(torch.rand(2, 4)).sum().backward()
    assert model.layer.weight.grad is not None


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3]), r"has 3 outputs, so class indices must be 0 to 2, but the search split holds 3"),
        (torch.tensor([0, -1]), r"holds -1"),
        (torch.tensor([0.0, 1.0]), r"must be class indices \(int64\) of shape \[2\].*float32"),
        (torch.tensor([[0], [1]]), r"of shape \[2\] .*got \(2, 1\)"),
        ({"boxes": torch.zeros(2)}, r"but got dict"),
    ],
)
def test_targets_that_do_not_fit(targets: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy(Constant(torch.zeros(2, 3)), ListBatches((torch.zeros(2, 1), targets)))


def test_outputs_that_are_no_class_scores() -> None:
    class Boxes(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": x}

    with pytest.raises(UserError, match=r"must return class scores.*returned a dict"):
        accuracy(Boxes(), ListBatches((torch.zeros(2, 1), torch.tensor([0, 1]))))


def test_an_empty_split() -> None:
    with pytest.raises(UserError, match="no batch"):
        accuracy(Constant(torch.zeros(2, 3)), ListBatches())


def test_top_five_needs_more_classes() -> None:
    with pytest.raises(UserError, match="Top-5 accuracy needs more than 5 classes, but the model has 3"):
        accuracy(Constant(torch.zeros(2, 3)), ListBatches((torch.zeros(2, 1), torch.tensor([0, 1]))), k=5)


def test_an_unknown_score() -> None:
    with pytest.raises(UserError, match=r"Unknown score 'acuracy'. Did you mean 'accuracy'\?"):
        evaluator(score="acuracy")


# -- the evaluator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("score", ["accuracy", "kl", "top5"])
def test_the_dense_model_stays_as_it_is(score: str, precision: str) -> None:
    net = conv_net()
    net.bn2.train()  # a mode of the user's, to be put back
    before, layouts = state_of(net), [tensor.stride() for tensor in net.state_dict().values()]
    scorer = evaluator(space=FakeSpace(net), score=score, precision=precision)
    scorer.evaluate(HALF)
    scorer.score_dense  # noqa: B018
    scorer.subnet(HALF)
    assert same_state(before, state_of(net))
    assert layouts == [tensor.stride() for tensor in net.state_dict().values()]
    assert [module.training for module in net.modules()].count(True) == 1
    assert net.bn2.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_dense_model_of_a_real_space_stays_as_it_is(precision: str) -> None:
    net = small_resnet(6, widths=(4, 8), blocks=(1, 1)).eval()
    scorer = evaluator(space=trace(net, image_data().example()), score="kl", precision=precision)
    before, space = state_of(net), scorer.space
    assert isinstance(space, SearchSpace)
    assert scorer.evaluate(space.dense) <= 0
    assert scorer.evaluate(space.candidate(0.5)) == scorer.score(scorer.subnet(space.candidate(0.5))) < 0
    assert same_state(before, state_of(net))
    theirs = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in scorer.subnet(space.dense).state_dict().values()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_candidate_has_the_same_score(precision: str) -> None:
    def scores(first: bool) -> list[float]:
        scorer = evaluator(score="kl", precision=precision)
        torch.rand(3 if first else 5)  # the global generator is in different states
        order = [(1,), HALF, (5,)] if first else [(5,), (1,), HALF, HALF]
        found = {candidate: scorer.evaluate(candidate) for candidate in order}
        return [found[candidate] for candidate in [(1,), HALF, (5,)]]

    assert scores(True) == scores(False)


def test_scores_are_those_of_the_subnet() -> None:
    scorer = evaluator(score="kl")
    assert scorer.score(scorer.subnet(HALF)) == scorer.evaluate(HALF)
    assert scorer.evaluate(HALF) < scorer.score_dense == 0.0


def test_a_subnet_has_storage_of_its_own() -> None:
    net = conv_net()
    subnet = evaluator(space=FakeSpace(net)).subnet(HALF)
    theirs = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in subnet.state_dict().values()}
    assert not any(module.training for module in subnet.modules())


def test_recalibration_is_part_of_the_evaluation() -> None:
    data, space = image_data(), FakeSpace(conv_net())
    with_it = evaluator(score="kl", data=data, space=space)
    without = evaluator(score="kl", data=data, space=space, calibration_samples=0)
    sliced = space.materialise(HALF)
    assert without.evaluate(HALF) == without.score(sliced)
    recalibrate(sliced, data.calibration(64))
    assert with_it.evaluate(HALF) == with_it.score(sliced) != without.score(space.materialise(HALF))
    assert with_it.describe()["recalibrated_layers"] == 2
    assert without.describe()["recalibrated_layers"] == 0


def test_only_the_search_split_is_scored() -> None:
    class Refuse(ListBatches):
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("the test split was read")

    data = replace(image_data(), test=Refuse())
    other_search = replace(data, search=image_data(seed=5).search)
    one, other = evaluator(score="kl", data=data), evaluator(score="kl", data=other_search)
    assert one.evaluate(HALF) != other.evaluate(HALF)


def test_a_network_without_norms_says_that_nothing_is_recalibrated() -> None:
    class Space(FakeSpace):
        def materialise(self, candidate: tuple[int, ...], importance: str = "l2", *, share: bool = False) -> nn.Module:
            return self.model

    space = Space(conv_net())
    space.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6))
    with pytest.warns(NothingRecalibrated, match="no BatchNorm"):
        scorer = evaluator(space=space)
    assert scorer.describe()["recalibrated_layers"] == 0
    assert 0 <= scorer.evaluate(HALF) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator(space=space, calibration_samples=0)


# -- functions of the user's -----------------------------------------------------------------------------------------


def test_a_score_of_the_users() -> None:
    seen: list[bool] = []

    def largest_logit(model: nn.Module, batches: Batches) -> Tensor:
        seen.append(model.training or torch.is_grad_enabled())
        noise = torch.rand(()).item()  # drawn from the global generator: must not make scores differ
        return torch.stack([model(inputs).max() for inputs, _ in batches]).max() + noise

    scorer = evaluator(score=largest_logit)
    assert scorer.evaluate(HALF) == scorer.evaluate(HALF)
    assert seen == [False, False]
    assert scorer.describe()["score"].endswith("largest_logit")


def test_a_score_that_is_no_number_or_not_finite() -> None:
    with pytest.raises(UserError, match="must return a number, higher is better, but it returned 'good'"):
        evaluator(score=lambda model, batches: "good").evaluate(HALF)
    with pytest.raises(EvaluationFailed, match="is nan"):
        evaluator(score=lambda model, batches: math.nan).evaluate(HALF)


def test_errors_of_the_users_score_are_not_hidden() -> None:
    def broken(model: nn.Module, batches: Batches) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        evaluator(score=broken).evaluate(HALF)


def test_a_recalibration_of_the_users_may_change_anything() -> None:
    net, calls = conv_net(), []

    def wreck(model: nn.Module, inputs: Sequence[Inputs]) -> int:
        calls.append(sum(len(batch) for batch in inputs))
        for tensor in model.state_dict().values():
            tensor.zero_()
        return 1

    before = state_of(net)
    evaluator(space=FakeSpace(net), recalibrate=wreck).evaluate(HALF)
    assert calls == [64]
    assert same_state(before, state_of(net))


def test_inputs_of_several_tensors() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            logits: Tensor = self.layer(a + b)
            return logits

    x, targets = torch.rand(5, 4), torch.arange(5) % 3
    scores = [accuracy(Sum().requires_grad_(False), ListBatches((i, targets))) for i in ((x, x), {"a": x, "b": x})]
    assert all(0 <= score <= 1 for score in scores)
