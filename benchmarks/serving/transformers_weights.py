"""A decoder-only model's weights as those of Hugging Face's GPT2LMHeadModel, which then computes the same function.

GPT-2 learns its positions: here they are the sinusoidal table. It does not scale embeddings: here they are scaled
beforehand, so that the projection, which uses them as they are, cannot be tied to them and is a matrix of its own.
Its linear layers hold the transpose. Reference: transformers/models/gpt2/modeling_gpt2.py.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dragoman.model.tokenizer import BEGIN_ID, END_ID
from dragoman.model.transformer import Dimensions, LanguageModel

__all__ = ["gpt2_config", "gpt2_weights"]


def gpt2_config(dims: Dimensions) -> dict[str, Any]:
    """What a `GPT2Config` is built from, for a pre-norm model with GELU and as many key heads as heads."""
    return {
        "vocab_size": dims.vocabulary_size,
        "n_positions": dims.max_target_tokens + 1,
        "n_embd": dims.width,
        "n_layer": dims.num_decoder_layers,
        "n_head": dims.num_heads,
        "n_inner": dims.feed_forward_width,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": dims.padding_id,
    }


def gpt2_weights(model: LanguageModel) -> dict[str, NDArray[np.float32]]:
    """Name in the state of a `GPT2LMHeadModel` -> array, float32."""
    return {name: tensor.detach().contiguous().numpy() for name, tensor in _named(model)}


def _named(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    embedding = model.embedding
    yield "transformer.wte.weight", embedding.token.weight * embedding.scale
    yield "transformer.wpe.weight", embedding.position
    yield "lm_head.weight", embedding.token.weight
    assert isinstance(model.decoder_norm, nn.LayerNorm), "GPT-2 is pre-norm"
    yield from _norm("transformer.ln_f", model.decoder_norm)
    for index, layer in enumerate(model.decoder_layers):
        path = f"transformer.h.{index}"
        yield from _norm(f"{path}.ln_1", layer.around_self_attention.norm)
        yield from _linear(f"{path}.attn.c_attn", layer.self_attention.query_key_value)
        yield from _linear(f"{path}.attn.c_proj", layer.self_attention.output)
        yield from _norm(f"{path}.ln_2", layer.around_feed_forward.norm)
        yield from _linear(f"{path}.mlp.c_fc", layer.feed_forward.expand)
        yield from _linear(f"{path}.mlp.c_proj", layer.feed_forward.contract)


def _linear(path: str, linear: nn.Linear) -> Iterator[tuple[str, Tensor]]:
    yield f"{path}.weight", linear.weight.T
    yield f"{path}.bias", linear.bias


def _norm(path: str, norm: nn.LayerNorm) -> Iterator[tuple[str, Tensor]]:
    yield f"{path}.weight", norm.weight
    yield f"{path}.bias", norm.bias
