"""AdamW (Loshchilov and Hutter 2019), Muon, and the learning rate's way up and down."""

import math
from typing import Any, Final

import torch
from torch import nn

from dragoman.model.recipe import TrainingSettings
from dragoman.model.training.muon import Muon
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["MAX_WARMUP_SHARE", "learning_rate", "new_optimizers"]

MAX_WARMUP_SHARE: Final = 0.1
"""Of the training: a warm-up of so many steps would never end where there are few steps."""


def new_optimizers(
    model: TranslationModel | LanguageModel, settings: TrainingSettings, precision: torch.dtype
) -> list[torch.optim.Optimizer]:
    """The optimizers that together train every weight once.

    AdamW decays the matrices of linear layers only: not norms, biases or embeddings. With Muon (Jordan et al.
    2024) those matrices go to it, its steps scaled to those of AdamW (Liu et al. 2025), so that one learning
    rate serves both.

    Args:
        model: whose weights are trained.
        settings: which optimizer, its peak rate and decay.
        precision: what this machine computes matrix products fast in, for Muon's own.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    decayed = [parameter for parameter in model.parameters() if id(parameter) in matrices]
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrices]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        optimizers.append(Muon(decayed, settings.max_learning_rate, settings.weight_decay, precision))
    else:
        groups.append({"params": decayed, "weight_decay": settings.weight_decay})
    optimizers.append(
        torch.optim.AdamW(
            groups, lr=settings.max_learning_rate, betas=(settings.beta1, settings.beta2), fused=True
        )
    )
    return optimizers


def learning_rate(settings: TrainingSettings, step: int, progress: float) -> float:
    """The learning rate of a step.

    Args:
        settings: schedule, peak, end and warm-up.
        step: counted from 0.
        progress: share of the training that lies behind, in [0, 1]; what `cosine` follows, and what ends a warm-up
            that would be more than `MAX_WARMUP_SHARE` of it.
    """
    warmup = max((step + 1) / max(settings.warmup_steps, 1), progress / MAX_WARMUP_SHARE)
    warmup = min(1.0, warmup) if settings.warmup_steps else 1.0
    match settings.schedule:
        case "constant":
            return settings.max_learning_rate * warmup
        case "inverse_sqrt":
            decay = math.sqrt(max(settings.warmup_steps, 1) / max(step + 1, settings.warmup_steps, 1))
            return settings.max_learning_rate * warmup * decay
        case "cosine":
            height = settings.max_learning_rate - settings.min_learning_rate
            decay = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
            return (settings.min_learning_rate + height * decay) * warmup
