"""Greedy decoding and scoring in plain PyTorch: the reference that every exported graph is held against."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from dragoman.model.batching import pad_right
from dragoman.model.incremental import DecodingBatch, check_inputs, decoding_batches, rows_by_length
from dragoman.model.tokenizer import BEGIN_ID, END_ID, WITHOUT_TEXT
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["Hypothesis", "greedy_decode", "score"]

_MAX_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What one input was decoded to."""

    token_ids: list[int]  # with the end token, when it was reached within the limit
    log_probability: float  # of all `token_ids`, under the model's own distribution
    margins: list[float]  # a figure a token: gap of the two best permitted logits; a tiny one is a tie

    @property
    def finished(self) -> bool:
        """Whether the model ended the sequence itself."""
        return self.token_ids[-1:] == [END_ID]


@torch.inference_mode()
def greedy_decode(
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    max_tokens: int,
    min_tokens: int = 0,
) -> list[Hypothesis]:
    """Take the likeliest token at each step, of those that have a text.

    Args:
        model: in evaluation mode.
        inputs: ids as `tokenizer.encode` gives them: sources, or prompts, which start with the begin token.
        max_tokens: limit of output tokens, the end token included. The model's own limit holds as well:
            `max_target_tokens` and the end token, or what the prompt leaves of the context.
        min_tokens: the end token is not permitted before this many others.

    Returns:
        One hypothesis an input, in their order.

    Raises:
        ValueError: an input is empty or longer than the model's limit.
    """
    hypotheses: dict[int, Hypothesis] = {}
    for batch in decoding_batches(model, inputs, max_tokens, _MAX_ROWS):
        hypotheses |= zip(batch.rows, _decode(batch, min_tokens), strict=True)
    return [hypotheses[row] for row in range(len(inputs))]


@torch.inference_mode()
def score(
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Log-probability of each token of `outputs`, given its input and the tokens before it (teacher forcing).

    Outputs are taken as they are: add the end token to have it scored.

    Raises:
        ValueError: an input is empty, or an input or output is longer than the model's limit.
    """
    check_inputs(model, inputs)
    translates = isinstance(model, TranslationModel)
    prefixes = [[BEGIN_ID]] * len(inputs) if translates else inputs
    read = [[*prefix, *output][:-1] for prefix, output in zip(prefixes, outputs, strict=True)]
    longest = max(map(len, read), default=0)
    if longest > model.dims.max_target_tokens + translates:
        raise ValueError(f"{longest} tokens to score, over the model's limit {model.dims.max_target_tokens}")
    device = model.embedding.token.weight.device
    scores: dict[int, list[float]] = {}
    for rows in rows_by_length([len(tokens) for tokens in read], _MAX_ROWS, same_length=False):
        target_ids = pad_right([read[row] for row in rows]).to(device)
        if isinstance(model, TranslationModel):
            logits = model(pad_right([inputs[row] for row in rows]).to(device), target_ids)
        else:
            logits = model(target_ids)
        for row, log_probabilities in zip(rows, logits.float().log_softmax(dim=-1), strict=True):
            start = len(prefixes[row]) - 1
            output = torch.tensor(outputs[row], device=device, dtype=torch.long)
            window = log_probabilities[start : start + len(output)]
            scores[row] = window.gather(-1, output[:, None])[:, 0].tolist()
    return [scores[row] for row in range(len(inputs))]


def _decode(batch: DecodingBatch, min_tokens: int) -> Iterator[Hypothesis]:
    """Extend each row of `batch` until all have ended or its limit is reached."""
    decoder, token_ids, num_rows = batch.decoder, batch.first, len(batch.rows)
    unfinished = torch.ones(num_rows, dtype=torch.bool, device=decoder.device)
    chosen, log_probabilities, margins = [], [], []
    for step in range(batch.max_steps):
        logits = decoder.read(token_ids)  # (B, vocabulary)
        permitted = logits.clone()
        permitted[:, WITHOUT_TEXT] = -math.inf
        if step < min_tokens:
            permitted[:, END_ID] = -math.inf
        best = permitted.topk(2, dim=-1)
        token = permitted.argmax(dim=-1)  # of equal logits the first, which topk does not promise
        chosen.append(token)
        log_probabilities.append(logits.log_softmax(dim=-1).gather(-1, token[:, None])[:, 0])
        margins.append(best.values[:, 0] - best.values[:, 1])
        unfinished &= token != END_ID
        if not unfinished.any():
            break
        token_ids = token[:, None]
    columns = [
        torch.stack(c, dim=1).tolist() if c else [[]] * num_rows for c in (chosen, log_probabilities, margins)
    ]
    for row_tokens, row_log_probabilities, row_margins in zip(*columns, strict=True):
        length = row_tokens.index(END_ID) + 1 if END_ID in row_tokens else len(row_tokens)
        yield Hypothesis(row_tokens[:length], sum(row_log_probabilities[:length]), row_margins[:length])
