"""The loss against the textbook's formula."""

import math

import pytest
import torch

from dragoman.model.batching import Batch, Pairs, Stream, in_order
from dragoman.model.loss import mean_loss, total_loss
from dragoman.model.tokenizer import BEGIN_ID, END_ID, PADDING_ID
from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

SOURCES = [[5, 6, 7, END_ID], [9, END_ID], [4, 5, END_ID]]
TARGETS = [[8, 8], [9, 10, 4, 5], [6]]


def new_model(task: str = "translation") -> TranslationModel | LanguageModel:
    torch.manual_seed(0)
    translates = task == "translation"
    dims = Dimensions(
        "translation" if translates else "generation", 11, 32, 4, 4, 48, 2 * translates, 2, 8 * translates, 8
    )
    return build_model(dims).eval()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_the_loss_is_that_of_each_token_alone(smoothing: float) -> None:
    model = new_model()
    [batch] = in_order(Pairs(SOURCES, TARGETS), 100)
    assert (batch.label_ids == PADDING_ID).any(), "the example should hold padding"
    expected = 0.0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        logits = model(torch.tensor([source]), torch.tensor([[BEGIN_ID, *target]]))[0]
        log_probabilities = logits.log_softmax(-1)
        for position, label in enumerate([*target, END_ID]):
            wanted = torch.full((11,), smoothing / 11)
            wanted[label] += 1 - smoothing
            expected -= float(wanted @ log_probabilities[position])
    assert float(total_loss(model, batch, label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-5)


def test_the_mean_loss_is_over_tokens_whatever_the_batches() -> None:
    model = new_model()
    model.train()
    in_one = mean_loss(model, Pairs(SOURCES, TARGETS), 100)
    one_by_one = mean_loss(model, Pairs(SOURCES, TARGETS), 1)
    assert in_one == pytest.approx(one_by_one, rel=1e-5)
    assert model.training, "the mode is as it was"


def test_a_model_that_knows_nothing_pays_the_vocabulary() -> None:
    model = new_model("generation")
    with torch.no_grad():
        model.embedding.token.weight.zero_()
    assert mean_loss(model, Stream([[4, 5, 6] * 9], 8), 64) == pytest.approx(math.log(11), rel=1e-5)


def test_gradients_of_parts_add_up_to_those_of_the_whole() -> None:
    pairs = Pairs(SOURCES, TARGETS)
    whole, parts = new_model(), new_model()
    [batch] = in_order(pairs, 100)
    torch.autograd.backward(total_loss(whole, batch))
    for part in in_order(pairs, 1):
        torch.autograd.backward(total_loss(parts, part))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_padding_has_no_gradient() -> None:
    model = new_model()
    [batch] = in_order(Pairs(SOURCES, TARGETS), 100)
    torch.autograd.backward(total_loss(model, batch))
    gradient = model.embedding.token.weight.grad
    assert gradient is not None
    ours = gradient[4:].clone()
    model.zero_grad()
    assert batch.source_ids is not None
    wider = Batch(
        *(torch.nn.functional.pad(t, (0, 3)) for t in (batch.source_ids, batch.input_ids, batch.label_ids))
    )
    torch.autograd.backward(total_loss(model, wider))
    assert model.embedding.token.weight.grad is not None
    torch.testing.assert_close(model.embedding.token.weight.grad[4:], ours, rtol=1e-4, atol=1e-5)
