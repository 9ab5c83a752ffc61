"""One optimizer step: forward, backward, clipping, update."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dragoman.model.batching import Batch
from dragoman.model.loss import total_loss
from dragoman.model.recipe import TrainingSettings
from dragoman.model.training.distributed import World, gathered
from dragoman.model.training.optimizer import new_optimizers
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["TrainingStep"]


class _Loss(nn.Module):
    """Model and loss as one module, the form in which data-parallel wrappers take them."""

    def __init__(self, model: TranslationModel | LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, label_smoothing: float, r_drop: float) -> Tensor:
        return total_loss(self.model, batch, label_smoothing=label_smoothing, r_drop=r_drop)


class TrainingStep:
    """Holds the optimizers of `model`, which it trains in place."""

    def __init__(
        self,
        model: TranslationModel | LanguageModel,
        settings: TrainingSettings,
        precision: torch.dtype,
        world: World | None = None,
    ) -> None:
        self._model, self._settings, self._precision = model, settings, precision
        self._world = world or World(device=model.embedding.token.weight.device)
        layers: list[nn.Module] = [*getattr(model, "encoder_layers", []), *model.decoder_layers]
        self._loss = self._world.join_in(_Loss(model), layers, settings.parallel)
        self.optimizers = new_optimizers(model, settings, precision)

    def run(
        self, parts: Sequence[Batch], rate: float, *, progress: float = 1.0, num_labels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Learn from `parts`, at learning rate `rate`.

        Args:
            parts: batches whose gradients are summed; of several processes, this one's share of each.
            rate: the learning rate.
            progress: share of the training that lies behind, in [0, 1].
            num_labels: tokens that all processes predict in this step; those of `parts` if there is one process.

        Returns:
            This process's share of the mean loss (nats a token), and the gradient's global norm before
            clipping; neither is read yet, which would wait for a GPU.
        """
        num_labels = num_labels or sum(part.num_labels for part in parts)
        device, settings = self._world.device, self._settings
        r_drop = settings.r_drop if progress >= settings.r_drop_from else 0.0
        loss = torch.zeros((), device=device)
        for number, part in enumerate(parts, start=1):
            if isinstance(self._loss, nn.parallel.DistributedDataParallel):
                self._loss.require_backward_grad_sync = number == len(parts)
            with torch.autocast(device.type, self._precision, enabled=self._precision != torch.float32):
                share = self._loss(part.to(device), settings.label_smoothing, r_drop) / num_labels
            # Data-parallel wrappers divide the sum over processes by their number.
            (share * self._world.size).backward()
            loss += share.detach()
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), settings.max_gradient_norm or math.inf)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return loss, gathered(norm)

    def plain_loss(self, batch: Batch) -> Tensor:
        """Summed cross-entropy of a batch without smoothing, through the weights as they lie over the processes."""
        loss: Tensor = self._loss(batch.to(self._world.device), 0.0, 0.0)
        return loss
