"""One step of decoding in plain PyTorch, with the keys and values of all that was read before.

The rows of a batch always stand at the same position, so the cache is a plain concatenation: sources of
different lengths are padded (the encoder's mask hides it), prompts only share a batch with prompts of the
same length.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dragoman.model.attention import CrossAttention, SelfAttention
from dragoman.model.batching import pad_right
from dragoman.model.tokenizer import BEGIN_ID
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["DecodingBatch", "IncrementalDecoder", "check_inputs", "decoding_batches", "rows_by_length"]


class IncrementalDecoder:
    """A batch of rows at one position, with the keys and values of all they have read.

    There may be several rows a source, as in beam search; they stand together, as many for each source, and
    share the keys and values of their source.
    """

    def __init__(self, model: TranslationModel | LanguageModel, sources: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.device = model.embedding.token.weight.device
        self.position = 0
        self._past: list[tuple[Tensor, Tensor]] = []  # a layer each: (rows, position, Hkv * head)
        self._source: list[tuple[Tensor, Tensor]] = []  # a layer each: (sources, S, Hkv * head)
        self._source_allowed: Tensor | None = None  # (sources, 1, 1, S)
        if isinstance(model, TranslationModel):
            source_ids = pad_right(sources).to(self.device)
            self._source_allowed = (source_ids != model.dims.padding_id)[:, None, None, :]
            memory = model.encode(source_ids, self._source_allowed)
            self._source = [layer.cross_attention.project_memory(memory) for layer in model.decoder_layers]

    def read(self, token_ids: Tensor) -> Tensor:
        """The next tokens (rows, T) -> logits (rows, vocabulary) for the one after them."""
        positions = torch.arange(self.position, self.position + token_ids.shape[1], device=self.device)
        x = self.model.embedding(token_ids.to(self.device), positions)
        for index, layer in enumerate(self.model.decoder_layers):
            attend_source = None
            if self._source:
                attend_source = functools.partial(self._attend_source, index, layer.cross_attention)
            x = layer(x, functools.partial(self._attend_self, index, layer.self_attention), attend_source)
        self.position += token_ids.shape[1]
        logits: Tensor = self.model.logits(x[:, -1])
        return logits.float()

    def select_rows(self, rows: Tensor) -> None:
        """Go on with `rows` (N), in their order; a row may be left out or come several times."""
        self._past = [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in self._past]

    def select_sources(self, sources: Tensor) -> None:
        """Keep the keys and values of `sources` (N) only; `select_rows` then drops the rows of the others."""
        if self._source_allowed is not None:
            self._source_allowed = self._source_allowed.index_select(0, sources)
            self._source = [
                (key.index_select(0, sources), value.index_select(0, sources)) for key, value in self._source
            ]

    def _attend_self(self, index: int, attention: SelfAttention, h: Tensor) -> Tensor:
        query, key, value = attention.project(h)
        if index < len(self._past):
            past_key, past_value = self._past[index]
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
            self._past[index] = key, value
        else:
            self._past.append((key, value))
        # Several tokens are only ever read at the start, where a square causal mask is right.
        return attention.output(attention.attend(query, key, value, None, causal=h.shape[1] > 1))

    def _attend_source(self, index: int, attention: CrossAttention, h: Tensor) -> Tensor:
        key, value = self._source[index]
        query = attention.query(h)
        # All rows of a source look at the same keys: to the kernel they are positions of one row.
        heads = attention.attend(
            query.reshape(len(key), -1, query.shape[-1]), key, value, self._source_allowed
        )
        return attention.output(heads.reshape(query.shape))


@dataclasses.dataclass(frozen=True)
class DecodingBatch:
    """Inputs that are decoded together, at the start."""

    rows: list[int]  # which inputs
    decoder: IncrementalDecoder  # a row an input; nothing is read yet
    first: Tensor  # (inputs, T): what it reads first
    max_steps: int  # tokens that may be decoded after `first`


def decoding_batches(
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    max_tokens: int,
    max_rows: int,
) -> Iterator[DecodingBatch]:
    """Put `inputs` of like length into batches of at most `max_rows`, each to be decoded before the next.

    The model's own limit of tokens holds beside `max_tokens`: `max_target_tokens` and the end token, or what
    the prompt leaves of the context.

    Raises:
        ValueError: an input is empty or longer than the model's limit.
    """
    check_inputs(model, inputs)
    translates = isinstance(model, TranslationModel)
    for rows in rows_by_length([len(tokens) for tokens in inputs], max_rows, same_length=not translates):
        batch = [inputs[row] for row in rows]
        if translates:
            decoder, first = IncrementalDecoder(model, batch), torch.full((len(batch), 1), BEGIN_ID)
            max_steps = min(max_tokens, model.dims.max_target_tokens + 1)
        else:
            decoder, first = IncrementalDecoder(model, []), torch.tensor(batch)
            max_steps = min(max_tokens, model.dims.max_target_tokens - len(batch[0]))
        yield DecodingBatch(rows, decoder, first, max_steps)


def rows_by_length(lengths: Sequence[int], max_rows: int, *, same_length: bool) -> Iterator[list[int]]:
    """Indices in order of length, at most `max_rows` at a time."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = itertools.groupby(order, key=(lambda row: lengths[row]) if same_length else lambda _: 0)
    for _, run in runs:
        rows = list(run)
        yield from (rows[start : start + max_rows] for start in range(0, len(rows), max_rows))


def check_inputs(model: TranslationModel | LanguageModel, inputs: Sequence[Sequence[int]]) -> None:
    """Raise ValueError when an input is empty or longer than the model's limit."""
    dims = model.dims
    limit = dims.max_source_tokens if isinstance(model, TranslationModel) else dims.max_target_tokens
    for tokens in inputs:
        if not tokens:
            raise ValueError("an input holds no token")
        if len(tokens) > limit:
            raise ValueError(f"an input of {len(tokens)} tokens is over the model's limit {limit}")
