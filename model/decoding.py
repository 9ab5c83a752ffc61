"""Greedy decoding and scoring in plain PyTorch: the reference that every exported graph is held against.

The rows of a batch always stand at the same position, so the cache is a plain concatenation: sources of
different lengths are padded (the encoder's mask hides it), prompts only share a batch with prompts of the
same length.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.attention import CrossAttention, SelfAttention
from model.batching import pad_right
from model.tokenizer import BEGIN_ID, END_ID
from model.transformer import LanguageModel, TranslationModel

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
    """Take the likeliest token at each step.

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
    _check_inputs(model, inputs)
    hypotheses: dict[int, Hypothesis] = {}
    for rows in _batches([len(tokens) for tokens in inputs], same_length=isinstance(model, LanguageModel)):
        batch = [inputs[row] for row in rows]
        if isinstance(model, TranslationModel):
            max_steps = min(max_tokens, model.dims.max_target_tokens + 1)
            decoder, first = _Decoder(model, batch), torch.full((len(batch), 1), BEGIN_ID)
        else:
            max_steps = min(max_tokens, model.dims.max_target_tokens - len(batch[0]))
            decoder, first = _Decoder(model, []), torch.tensor(batch)
        hypotheses |= zip(rows, _decode(decoder, first, max_steps, min_tokens), strict=True)
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
    _check_inputs(model, inputs)
    translates = isinstance(model, TranslationModel)
    prefixes = [[BEGIN_ID]] * len(inputs) if translates else inputs
    read = [[*prefix, *output][:-1] for prefix, output in zip(prefixes, outputs, strict=True)]
    longest = max(map(len, read), default=0)
    if longest > model.dims.max_target_tokens + translates:
        raise ValueError(f"{longest} tokens to score, over the model's limit {model.dims.max_target_tokens}")
    device = model.embedding.token.weight.device
    scores: dict[int, list[float]] = {}
    for rows in _batches([len(tokens) for tokens in read], same_length=False):
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


class _Decoder:
    """A batch of rows at one position, with the keys and values of all they have read."""

    def __init__(self, model: TranslationModel | LanguageModel, sources: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.device = model.embedding.token.weight.device
        self.position = 0
        self.past: dict[int, tuple[Tensor, Tensor]] = {}
        self.source: list[tuple[Tensor, Tensor]] = []
        self.source_allowed: Tensor | None = None
        if isinstance(model, TranslationModel):
            source_ids = pad_right(sources).to(self.device)
            self.source_allowed = (source_ids != model.dims.padding_id)[:, None, None, :]
            memory = model.encode(source_ids, self.source_allowed)
            self.source = [layer.cross_attention.project_memory(memory) for layer in model.decoder_layers]

    def read(self, token_ids: Tensor) -> Tensor:
        """The next tokens (B, T) of all rows -> logits (B, vocabulary) for the one after them."""
        positions = torch.arange(self.position, self.position + token_ids.shape[1], device=self.device)
        x = self.model.embedding(token_ids.to(self.device), positions)
        for index, layer in enumerate(self.model.decoder_layers):
            attend_source = None
            if self.source:
                attend_source = functools.partial(self._attend_source, index, layer.cross_attention)
            x = layer(x, functools.partial(self._attend_self, index, layer.self_attention), attend_source)
        self.position += token_ids.shape[1]
        logits: Tensor = self.model.logits(x[:, -1])
        return logits.float()

    def _attend_self(self, index: int, attention: SelfAttention, h: Tensor) -> Tensor:
        query, key, value = attention.project(h)
        if index in self.past:
            past_key, past_value = self.past[index]
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
        self.past[index] = key, value
        # Several tokens are only ever read at the start, where a square causal mask is right.
        return attention.output(attention.attend(query, key, value, None, causal=h.shape[1] > 1))

    def _attend_source(self, index: int, attention: CrossAttention, h: Tensor) -> Tensor:
        key, value = self.source[index]
        return attention.output(attention.attend(attention.query(h), key, value, self.source_allowed))


def _decode(decoder: _Decoder, token_ids: Tensor, max_steps: int, min_tokens: int) -> Iterator[Hypothesis]:
    """Read `token_ids` (B, T), then extend each row until all have ended or `max_steps` are done."""
    num_rows = token_ids.shape[0]
    unfinished = torch.ones(num_rows, dtype=torch.bool, device=decoder.device)
    chosen, log_probabilities, margins = [], [], []
    for step in range(max_steps):
        logits = decoder.read(token_ids)  # (B, vocabulary)
        permitted = logits.clone()
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


def _batches(lengths: Sequence[int], *, same_length: bool) -> Iterator[list[int]]:
    """Indices in order of length, at most `_MAX_ROWS` at a time."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = itertools.groupby(order, key=(lambda row: lengths[row]) if same_length else lambda _: 0)
    for _, run in runs:
        rows = list(run)
        yield from (rows[start : start + _MAX_ROWS] for start in range(0, len(rows), _MAX_ROWS))


def _check_inputs(model: TranslationModel | LanguageModel, inputs: Sequence[Sequence[int]]) -> None:
    dims = model.dims
    limit = dims.max_source_tokens if isinstance(model, TranslationModel) else dims.max_target_tokens
    for tokens in inputs:
        if not tokens:
            raise ValueError("an input holds no token")
        if len(tokens) > limit:
            raise ValueError(f"an input of {len(tokens)} tokens is over the model's limit {limit}")
