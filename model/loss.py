"""Cross-entropy over the tokens there are, padding left out before the vocabulary-wide product."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from model.batching import Batch, Examples
from model.tokenizer import PADDING_ID
from model.transformer import LanguageModel, TranslationModel

__all__ = ["mean_loss", "total_loss"]


def total_loss(
    model: TranslationModel | LanguageModel, batch: Batch, *, label_smoothing: float = 0.0
) -> Tensor:
    """Summed cross-entropy in nats (a scalar) of the labels of `batch`, which lies on the model's device.

    Label smoothing is that of Szegedy et al. 2016, as in Vaswani et al. 2017, section 5.4.
    """
    if isinstance(model, TranslationModel):
        assert batch.source_ids is not None
        states = model.states(batch.source_ids, batch.input_ids)
    else:
        states = model.states(batch.input_ids)
    states, labels = states.flatten(0, 1), batch.label_ids.flatten()  # (B * T, width), (B * T)
    real = labels != PADDING_ID
    if not real.all():
        states, labels = states[real], labels[real]
    logits = model.logits(states).float()
    return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


@torch.inference_mode()
def mean_loss(model: TranslationModel | LanguageModel, examples: Examples, batch_tokens: int) -> float:
    """Cross-entropy in nats a token over all `examples`, in evaluation mode, without smoothing."""
    device = model.embedding.token.weight.device
    total, num_labels = 0.0, 0
    with _evaluating(model):
        for batch in examples.in_order(batch_tokens):
            total += float(total_loss(model, batch.to(device)))
            num_labels += batch.num_labels
    return total / num_labels


@contextlib.contextmanager
def _evaluating(model: TranslationModel | LanguageModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
