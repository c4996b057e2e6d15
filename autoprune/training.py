"""The parts of a training step: settings, learning rate, loss, optimiser, averaged weights.

Sources: Hinton et al. 2015, arXiv:1503.02531, sec. 2 (distillation with temperature; the factor T^2 keeps gradients
at the scale of the cross entropy); Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine); He et al. 2019,
arXiv:1812.01187, sec. 3.1 (linear warm-up, no weight decay on biases and norms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoprune.distributed import Team
from autoprune.precision import PRECISIONS, device_of
from autoprune.running import logits_of
from autoprune.scores import divergence
from autoprune.search_spaces.errors import UserError, unknown

OPTIMIZERS = {"sgd": 0.05, "adamw": 3e-3}
"""Name -> learning rate where none is given: for fine-tuning at batches of 64 to 256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTune:
    """How a network is fine-tuned, or trained from scratch.

    Attributes:
        epochs: passes over the training split; 0 leaves the network as it is.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: learning rate at its peak; None for 0.05 (sgd) or 0.003 (adamw). From scratch, sgd wants about 0.1.
        momentum: of sgd, in [0, 1); unused by adamw.
        weight_decay: on weights of two or more dimensions; norms and biases have none.
        warmup_epochs: linear rise of the learning rate from 0; then a cosine down to 0. May be a fraction.
        kd_weight: share of the teacher's divergence in the loss, in [0, 1]; unused without a teacher.
        temperature: of the softmax outputs compared with the teacher's, > 0.
        label_smoothing: of the cross entropy, in [0, 1).
        clip_norm: upper limit on the norm of all gradients together; None for none.
        ema: decay a step of averaged weights, in (0, 1), which are then the ones scored and returned; None for none.
        batch_size: of training; None for what the data comes in.
        precision: "auto", "fp32" or "bf16".

    Raises:
        UserError: a value is outside its range.
    """

    epochs: int = 5
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.5
    kd_weight: float = 0.9
    temperature: float = 4.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    batch_size: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for name, least in (("epochs", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UserError(f"`{name}` must be a whole number of at least {least}, but got {value!r}.")
        self._check("lr", "0 < lr", lambda value: value > 0)
        self._check("momentum", "0 <= momentum < 1", lambda value: 0 <= value < 1)
        self._check("weight_decay", "weight_decay >= 0", lambda value: value >= 0)
        self._check("warmup_epochs", "warmup_epochs >= 0", lambda value: value >= 0)
        self._check("kd_weight", "0 <= kd_weight <= 1", lambda value: 0 <= value <= 1)
        self._check("temperature", "temperature > 0", lambda value: value > 0)
        self._check("label_smoothing", "0 <= label_smoothing < 1", lambda value: 0 <= value < 1)
        self._check("clip_norm", "clip_norm > 0", lambda value: value > 0)
        self._check("ema", "0 < ema < 1", lambda value: 0 < value < 1)

    def _check(self, name: str, rule: str, holds: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if value is None and name in ("lr", "clip_norm", "ema"):
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not holds(value):
            raise UserError(f"`{rule}` must hold for fine-tuning, but got {name}={value!r}.")

    @property
    def peak_lr(self) -> float:
        """The learning rate at its peak."""
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are set, for TOML or JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FineTune:
        """Undo `to_dict`; UserError for a name that is no setting."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("setting of fine-tuning", name, names)
        return cls(**values)


def learning_rate(settings: FineTune, step: int, steps_per_epoch: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then half a cosine; after the last step it would be 0."""
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return settings.peak_lr * (step + 1) / warmup
    done = min((step - warmup) / (total - warmup), 1.0)
    return settings.peak_lr * (1 + math.cos(math.pi * done)) / 2


def training_loss(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None, settings: FineTune) -> Tensor:
    """``(1 - kd_weight) CE + kd_weight T^2 KL(teacher || student)``; plain cross entropy without a teacher.

    Args:
        logits, teacher_logits: [N, C, ...], float32.
        targets: class indices [N, ...].
        settings: weights of the two and the temperature T.
    """
    entropy = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
    if teacher_logits is None:
        return entropy
    T = settings.temperature
    towards = divergence(F.log_softmax(teacher_logits / T, dim=1), F.log_softmax(logits / T, dim=1)).mean()
    return (1 - settings.kd_weight) * entropy + settings.kd_weight * T**2 * towards


def make_optimizer(model: nn.Module, settings: FineTune) -> torch.optim.Optimizer:
    """Return the optimiser over the parameters that require gradients.

    Raises:
        UserError: none does.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("No parameter of the model requires gradients: nothing can be trained. Unfreeze some of them.")
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.peak_lr)
    return torch.optim.SGD(groups, lr=settings.peak_lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


class _Logits(nn.Module):
    """A network reduced to its class scores: what else it returns takes no part in the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return logits_of(self.model(*args, **kwargs))


def together(model: nn.Module, team: Team) -> nn.Module:
    """Return what to call in training, so that `backward` gives every process the mean of all gradients.

    On GPUs, BatchNorm layers of `model` are replaced by ones that use the statistics of all processes; on a CPU torch
    has none such. Every process must begin with the same weights.

    With `find_unused_parameters`, parameters that the loss does not depend on are allowed (heads that serve in
    training only), and the order in which gradients are summed does not depend on the steps before: without it, torch
    sorts them anew after the first step of a process, and one that goes on from a checkpoint would round differently.
    """
    if team.world == 1:
        return model
    on_gpu = device_of(model).type == "cuda"
    if on_gpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(
        _Logits(model),
        device_ids=[device_of(model)] if on_gpu else None,
        find_unused_parameters=True,
        init_sync=False,  # the state was shared, or will be before the first step
    )


def make_average(model: nn.Module) -> AveragedModel:
    """Return a copy of `model` to be kept by `update_average`.

    Its BatchNorm statistics are those of the trained network until they are recalibrated: an average of statistics is
    not the statistic of averaged weights.
    """
    return AveragedModel(model)


def update_average(average: AveragedModel, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards those of `model` after `step` (from 0).

    The first steps use a smaller decay, (1 + step) / (10 + step), so that a short training is not stuck at its start.
    """
    average.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    average.update_parameters(model)
