"""The graphs of a bundle, recombined from the model's own layers.

    translation   encode: source tokens -> cross-attention keys and values of every decoder layer
                  decode: one token for each of B rows, against caches that stay in place
                  decode_steps: several tokens a row in one call; small models only
                  align:  source and whole target -> where each target token looks; for who asks only
    generation    extend: some more tokens of one prompt, appended to one row's caches in place
                  decode, decode_steps: as above, without cross-attention

Only the attention differs from `dragoman.model.transformer`: it becomes operators (`dragoman.export.operators`) that
take one length a row, so that rows of any age share a step without masks or copies, and that append to a cache in
place where past and present are bound to one buffer.
"""

import torch
from torch import Tensor, nn

from dragoman.export.decode_graphs import decode_graphs
from dragoman.export.graph import Graph, cache_dtype
from dragoman.export.operators import encoder_attention, group_query, multi_head, source_caches
from dragoman.model.attention import (
    CrossAttention,
    SelfAttention,
    explicit_attention,
    merge_heads,
    split_heads,
)
from dragoman.model.transformer import LanguageModel, TranslationModel
from dragoman.server.bundle.graph_names import LAST, OWN, SOURCE, cache_names, output_name

__all__ = ["generation_graphs", "translation_graphs"]


def translation_graphs(model: TranslationModel) -> tuple[Graph, ...]:
    """`encode`, `decode`, perhaps `decode_steps`, and `align` of an encoder-decoder model."""
    dims = model.dims
    rows, length = torch.export.Dim("rows"), torch.export.Dim("source")
    encode = Graph(
        "encode",
        _Encode(model),
        {
            "source_ids": torch.ones(3, 7, dtype=torch.int64),
            "source_lengths": torch.tensor([7, 3, 5], dtype=torch.int32),
        },
        {"source_ids": {0: rows, 1: length}, "source_lengths": {0: rows}},
        cache_names(dims.num_decoder_layers, SOURCE, LAST),
    )
    align = Graph(
        "align",
        _Align(model),
        {**encode.inputs, "target_ids": torch.ones(3, 5, dtype=torch.int64)},
        {**encode.dynamic_axes, "target_ids": {0: rows, 1: torch.export.Dim("target")}},
        ("attention",),
    )
    return encode, *decode_graphs(model), align


def generation_graphs(model: LanguageModel) -> tuple[Graph, ...]:
    """`extend`, `decode` and perhaps `decode_steps` of a decoder-only model."""
    return _extend_graph(model), *decode_graphs(model)


def _extend_graph(model: LanguageModel) -> Graph:
    dims = model.dims
    caches = cache_names(dims.num_decoder_layers, OWN)
    capacity = torch.export.Dim("capacity")
    shape = (1, dims.num_kv_heads, 11, dims.head_size)
    return Graph(
        "extend",
        _Extend(model),
        {
            "token_ids": torch.ones(1, 3, dtype=torch.int64),
            "lengths": torch.tensor([4], dtype=torch.int32),
            **{name: torch.zeros(shape, dtype=cache_dtype(model)) for name in caches},
        },
        {
            "token_ids": {1: torch.export.Dim("tokens")},
            "lengths": {},
            **{name: {2: capacity} for name in caches},
        },
        tuple(map(output_name, caches)),
        variadic=True,
    )


class _Encode(nn.Module):
    def __init__(self, model: TranslationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_ids: Tensor, source_lengths: Tensor) -> tuple[Tensor, ...]:
        """source_ids (B, S), source_lengths (B) -> for each decoder layer keys and values, whole and last."""
        memory = _encoded(self.model, source_ids, source_lengths)
        outputs: list[Tensor] = []
        for decoder_layer in self.model.decoder_layers:
            attention = decoder_layer.cross_attention
            outputs += source_caches(attention, attention.key_value(memory), source_lengths)
        return tuple(outputs)


def _encoded(model: TranslationModel, source_ids: Tensor, source_lengths: Tensor) -> Tensor:
    """The encoder's output (B, S, width)."""
    x = model.embedding(source_ids, torch.arange(source_ids.shape[1]))
    for layer in model.encoder_layers:
        x = layer(x, lambda h, a=layer.self_attention: _attend_both_ways(a, h, source_lengths))
    return model.encoder_norm(x)


class _Align(nn.Module):
    """The layer before the last says best which source token a target token comes from (Garg et al. 2019)."""

    def __init__(self, model: TranslationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_ids: Tensor, source_lengths: Tensor, target_ids: Tensor) -> Tensor:
        """source_ids (B, S), source_lengths (B), target_ids (B, T) -> the heads' mean weights (B, T, S)."""
        memory = _encoded(self.model, source_ids, source_lengths)
        positions = torch.arange(source_ids.shape[1])
        allowed = (positions < source_lengths[:, None])[:, None, None]
        x = self.model.embedding(target_ids, torch.arange(target_ids.shape[1]))
        seen: list[Tensor] = []

        def attend_self(attention: SelfAttention, h: Tensor) -> Tensor:
            return attention.output(multi_head(attention, *attention.project(h)))

        def attend_source(attention: CrossAttention, h: Tensor) -> Tensor:
            # In single precision, which is what a caller is told.
            query = split_heads(attention.query(h), attention.num_heads).float()
            key, value = (
                split_heads(part, attention.num_kv_heads).float() for part in attention.project_memory(memory)
            )
            heads, weights = explicit_attention(query, key, value, allowed)
            seen.append(weights.mean(dim=1))
            return attention.output(merge_heads(heads).to(h.dtype))

        layers = self.model.decoder_layers
        for layer in layers[: max(1, len(layers) - 1)]:
            x = layer(
                x,
                lambda h, a=layer.self_attention: attend_self(a, h),
                lambda h, a=layer.cross_attention: attend_source(a, h),
            )
        return seen[-1]


class _Extend(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """token_ids (1, T), lengths (1), key and value of each layer -> the caches with T more tokens in them.

        One row: beside a past, the operator takes more than one new token only for a batch of one.
        """
        token_ids, lengths, *caches = tensors
        num_tokens = token_ids.shape[1]
        x = self.model.embedding(token_ids, lengths.to(torch.int64)[:, None] + torch.arange(num_tokens))
        last = lengths + (num_tokens - 1)
        outputs: list[Tensor] = []

        def attend(attention: SelfAttention, h: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
            heads, *new = group_query(attention, attention.query_key_value(h), past, last)
            outputs.extend(new)
            return attention.output(heads)

        for index, layer in enumerate(self.model.decoder_layers):
            past = caches[2 * index], caches[2 * index + 1]
            x = layer(x, lambda h, a=layer.self_attention, p=past: attend(a, h, p))
        return tuple(outputs)


def _attend_both_ways(attention: SelfAttention, h: Tensor, lengths: Tensor) -> Tensor:
    return attention.output(encoder_attention(attention, attention.query_key_value(h), lengths))
