"""Cross-entropy over the tokens there are, padding left out before the vocabulary-wide product."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dragoman.model.batching import Batch, Examples, in_order
from dragoman.model.cross_entropy import linear_cross_entropy, linear_cross_entropy_twice
from dragoman.model.tokenizer import PADDING_ID
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["evaluating", "mean_loss", "sum_losses", "total_loss"]


def total_loss(
    model: TranslationModel | LanguageModel,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    r_drop: float = 0.0,
) -> Tensor:
    """Summed cross-entropy in nats of the labels of `batch`, which lies on the model's device.

    Label smoothing is that of Szegedy et al. 2016, as in Vaswani et al. 2017, section 5.4. With `r_drop` the
    batch goes through the model twice, each time with dropout of its own (Liang et al. 2021).
    """
    num_passes = 2 if r_drop else 1
    input_ids = batch.input_ids.repeat(num_passes, 1)
    if isinstance(model, TranslationModel):
        assert batch.source_ids is not None
        states = model.states(batch.source_ids.repeat(num_passes, 1), input_ids)
    else:
        states = model.states(input_ids)
    # (passes * B * T, width), (B * T)
    states, labels = states.flatten(0, 1), batch.label_ids.flatten()
    real = (labels != PADDING_ID).nonzero()[:, 0]
    if len(real) < len(labels):
        states = states[torch.cat([real + number * len(labels) for number in range(num_passes)])]
        labels = labels[real]
    states, weight = model.decoder_norm(states), model.embedding.token.weight
    if r_drop:
        return linear_cross_entropy_twice(states, weight, labels, label_smoothing, r_drop)
    return linear_cross_entropy(states, weight, labels, label_smoothing)


def mean_loss(model: TranslationModel | LanguageModel, examples: Examples, batch_tokens: int) -> float:
    """Cross-entropy in nats a token over all `examples`, in evaluation mode, without smoothing."""
    device = model.embedding.token.weight.device
    batches = in_order(examples, batch_tokens)
    total, num_labels = sum_losses(model, batches, lambda batch: total_loss(model, batch.to(device)))
    return total / num_labels


@torch.no_grad()
def sum_losses(
    model: TranslationModel | LanguageModel, batches: Iterable[Batch], loss: Callable[[Batch], Tensor]
) -> tuple[float, int]:
    """`loss` over all `batches`, with `model` in evaluation mode, and how many labels they have."""
    total, num_labels = 0.0, 0
    with evaluating(model):
        for batch in batches:
            total += float(loss(batch))
            num_labels += batch.num_labels
    return total, num_labels


@contextlib.contextmanager
def evaluating(model: TranslationModel | LanguageModel) -> Iterator[None]:
    """Evaluation mode for the block, and afterwards the mode there was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
