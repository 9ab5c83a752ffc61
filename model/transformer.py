"""The Transformer (Vaswani et al. 2017): embedding, positions, layers, stacks and the two models of them.

Read from top to bottom. `TranslationModel` is the encoder-decoder of the paper's figure 1; `LanguageModel` is
its decoder alone, without cross-attention. Both expose the pieces (`embedding`, layers, `logits`) that the
exporter recombines into one-step graphs, so that there is one definition of the weights and the mathematics.

Layers take the attention as a function of the normalised input: training passes attention over whole
sequences, export passes attention over a cache.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dragoman.model.attention import CrossAttention, SelfAttention
from dragoman.model.dropout import Dropout

__all__ = ["DecoderLayer", "Dimensions", "EncoderLayer", "LanguageModel", "TranslationModel", "build_model"]

Task = Literal["translation", "generation"]
Attend = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swiglu": functional.silu,  # of the gate
}


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """All that is needed, with the weights, to rebuild a model."""

    task: Task
    vocabulary_size: int
    width: int
    num_heads: int
    num_kv_heads: int
    feed_forward_width: int
    num_encoder_layers: int  # 0 for generation
    num_decoder_layers: int
    max_source_tokens: int  # 0 for generation
    max_target_tokens: int  # the context length for generation
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    attention_dropout: float = 0.0  # of the attention's weights
    padding_id: int = 0

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_size % 8:  # what fused attention kernels work in; known now, not after hours of training
            raise ValueError(
                f"width {self.width} / num_heads {self.num_heads} gives heads of {self.head_size}, "
                "which is not a multiple of 8"
            )

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """The table of section 3.5: (length, width), sines on even columns, cosines on odd ones."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


class Embedding(nn.Module):
    """Token embedding scaled by sqrt(width) (section 3.4) plus the positional encoding (section 3.5)."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.token = nn.Embedding(dims.vocabulary_size, dims.width, padding_idx=dims.padding_id)
        self.scale = math.sqrt(dims.width)
        length = max(dims.max_source_tokens, dims.max_target_tokens) + 1  # one more for the begin token
        self.register_buffer("position", sinusoidal_positions(length, dims.width), persistent=False)
        self.position: Tensor
        self.dropout = Dropout(dims.dropout)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids (...), positions broadcastable to it -> (..., width)."""
        return self.dropout(
            self.token(token_ids) * self.scale + functional.embedding(positions, self.position)
        )


class FeedForward(nn.Module):
    """Position-wise feed-forward network (section 3.3); SwiGLU as in Shazeer 2020."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.gated = dims.activation == "swiglu"
        self.activation = _ACTIVATIONS[dims.activation]
        self.expand = nn.Linear(dims.width, dims.feed_forward_width * (2 if self.gated else 1))
        self.contract = nn.Linear(dims.feed_forward_width, dims.width)
        self.dropout = Dropout(dims.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), each position on its own."""
        hidden = self.expand(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * hidden
        else:
            hidden = self.activation(hidden)
        return self.contract(self.dropout(hidden))


class Residual(nn.Module):
    """x + f(norm(x)) (pre-norm, Xiong et al. 2020) or norm(x + f(x)) (post-norm, the paper)."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.pre = dims.norm == "pre"
        self.norm = nn.LayerNorm(dims.width)
        self.dropout = Dropout(dims.dropout)

    def forward(self, x: Tensor, sublayer: Attend) -> Tensor:
        """Apply `sublayer` to x (..., width) around the residual connection."""
        if self.pre:
            # Under autocast the sublayer gives bf16; adding unlike types is 15 times slower than converting first.
            return x + self.dropout(sublayer(self.norm(x))).to(x.dtype)
        normed: Tensor = self.norm(x + self.dropout(sublayer(x)).to(x.dtype))
        return normed


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.self_attention = SelfAttention(
            dims.width, dims.num_heads, dims.num_kv_heads, dims.attention_dropout
        )
        self.feed_forward = FeedForward(dims)
        self.around_self_attention = Residual(dims)
        self.around_feed_forward = Residual(dims)

    def forward(self, x: Tensor, attend_self: Attend) -> Tensor:
        """x (B, S, width); `attend_self` maps the sublayer's input to the attention's output."""
        x = self.around_self_attention(x, attend_self)
        return self.around_feed_forward(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention where there is an encoder, feed-forward network."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        attention = (dims.width, dims.num_heads, dims.num_kv_heads, dims.attention_dropout)
        self.self_attention = SelfAttention(*attention)
        self.around_self_attention = Residual(dims)
        if dims.num_encoder_layers:
            self.cross_attention = CrossAttention(*attention)
            self.around_cross_attention = Residual(dims)
        self.feed_forward = FeedForward(dims)
        self.around_feed_forward = Residual(dims)

    def forward(self, x: Tensor, attend_self: Attend, attend_source: Attend | None = None) -> Tensor:
        """x (B, T, width); the two functions map a sublayer's input to the attention's output."""
        x = self.around_self_attention(x, attend_self)
        if attend_source is not None:
            x = self.around_cross_attention(x, attend_source)
        return self.around_feed_forward(x, self.feed_forward)


class _Transformer(nn.Module):
    """What both models share: the embedding, tied to the output (section 3.4), and the decoder stack."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.dims = dims
        self.embedding = Embedding(dims)
        layers = nn.ModuleList(DecoderLayer(dims) for _ in range(dims.num_decoder_layers))
        self.decoder_layers = cast("Sequence[DecoderLayer]", layers)  # a ModuleList forgets what it holds
        self.decoder_norm = nn.LayerNorm(dims.width) if dims.norm == "pre" else nn.Identity()

    def logits(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary) with the embedding's own matrix."""
        return functional.linear(self.decoder_norm(x), self.embedding.token.weight)

    def initialise(self) -> None:
        """Glorot for projections; embeddings of deviation width^-0.5, so that scaled ones have 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        weight = self.embedding.token.weight
        nn.init.normal_(weight, std=self.dims.width**-0.5)
        with torch.no_grad():
            weight[self.dims.padding_id].zero_()


class LanguageModel(_Transformer):
    """Decoder-only: predicts each token from those before it."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__(dims)
        self.initialise()

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids (B, T) -> logits (B, T, vocabulary). Padding, if any, stands to the right."""
        return self.logits(self.states(token_ids))

    def states(self, token_ids: Tensor) -> Tensor:
        """token_ids (B, T) -> the last layer's states (B, T, width), which `logits` reads."""
        x = self.embedding(token_ids, torch.arange(token_ids.shape[1], device=token_ids.device))
        for layer in self.decoder_layers:
            x = layer(x, lambda h, attention=layer.self_attention: attention(h, causal=True))
        return x


class TranslationModel(_Transformer):
    """Encoder-decoder of figure 1, one embedding matrix for source, target and output."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__(dims)
        layers = nn.ModuleList(EncoderLayer(dims) for _ in range(dims.num_encoder_layers))
        self.encoder_layers = cast("Sequence[EncoderLayer]", layers)
        self.encoder_norm = nn.LayerNorm(dims.width) if dims.norm == "pre" else nn.Identity()
        self.initialise()

    def encode(self, source_ids: Tensor, source_allowed: Tensor) -> Tensor:
        """source_ids (B, S), source_allowed boolean (B, 1, 1, S) -> memory (B, S, width)."""
        x = self.embedding(source_ids, torch.arange(source_ids.shape[1], device=source_ids.device))
        for layer in self.encoder_layers:
            x = layer(x, lambda h, attention=layer.self_attention: attention(h, source_allowed))
        return self.encoder_norm(x)

    def decode(self, target_ids: Tensor, memory: Tensor, source_allowed: Tensor) -> Tensor:
        """target_ids (B, T), memory (B, S, width) -> the last layer's states (B, T, width)."""
        x = self.embedding(target_ids, torch.arange(target_ids.shape[1], device=target_ids.device))
        for layer in self.decoder_layers:
            x = layer(
                x,
                lambda h, attention=layer.self_attention: attention(h, causal=True),
                lambda h, attention=layer.cross_attention: attention(h, memory, source_allowed),
            )
        return x

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """source_ids (B, S) and target_ids (B, T), padded to the right -> logits (B, T, vocabulary)."""
        return self.logits(self.states(source_ids, target_ids))

    def states(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """As `forward`, up to the last layer's states (B, T, width), which `logits` reads."""
        source_allowed = (source_ids != self.dims.padding_id)[:, None, None, :]
        return self.decode(target_ids, self.encode(source_ids, source_allowed), source_allowed)


def build_model(dims: Dimensions) -> TranslationModel | LanguageModel:
    """The model of `dims.task` with fresh weights (seed torch first)."""
    return TranslationModel(dims) if dims.task == "translation" else LanguageModel(dims)
