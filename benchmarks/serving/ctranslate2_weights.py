"""A model's weights under the names, and in the layout, of CTranslate2's `TransformerSpec` and, for a decoder-only
model, `TransformerDecoderModelSpec`.

Both are the Transformer of Vaswani et al. 2017 with one packed matrix for a self-attention's query, key and value
and one for a cross-attention's key and value; CTranslate2 scales embeddings by sqrt(width) unless told otherwise,
counts positions from 0 and normalises with an epsilon of 1e-5, all of which is Dragoman's way as well. So nothing
is computed here, only named. Reference: ctranslate2/specs/transformer_spec.py.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dragoman.model.attention import CrossAttention, SelfAttention
from dragoman.model.transformer import DecoderLayer, Dimensions, EncoderLayer, LanguageModel, TranslationModel

__all__ = [
    "ctranslate2_generator_shape",
    "ctranslate2_generator_weights",
    "ctranslate2_shape",
    "ctranslate2_weights",
]

Named = Iterator[tuple[str, Tensor]]

_ACTIVATIONS: Final = {"relu": "RELU", "gelu": "GELU", "swiglu": "SWISH"}


def ctranslate2_shape(model: TranslationModel | LanguageModel) -> dict[str, Any]:
    """What a `TransformerSpec` is built from.

    Raises:
        ValueError: CTranslate2's encoder-decoder cannot express the model.
    """
    dims = model.dims
    if dims.task != "translation":
        raise ValueError(f"a model for {dims.task} is no encoder-decoder: this benchmark has no peer for it")
    if dims.num_kv_heads != dims.num_heads:
        raise ValueError(
            f"CTranslate2's encoder-decoder has no {dims.num_kv_heads} key heads for {dims.num_heads} heads"
        )
    return {**_common_shape(dims), "num_layers": [dims.num_encoder_layers, dims.num_decoder_layers]}


def ctranslate2_generator_shape(dims: Dimensions) -> dict[str, Any]:
    """What a `TransformerDecoderModelSpec` is built from, for a model with as many key heads as heads."""
    return {**_common_shape(dims), "num_layers": dims.num_decoder_layers}


def _common_shape(dims: Dimensions) -> dict[str, Any]:
    return {
        "num_heads": dims.num_heads,
        "pre_norm": dims.norm == "pre",
        "activation": _ACTIVATIONS[dims.activation],
        "gated": dims.activation == "swiglu",
        "vocabulary_size": dims.vocabulary_size,
    }


def ctranslate2_weights(model: TranslationModel) -> dict[str, NDArray[np.float32]]:
    """Attribute path in a `TransformerSpec` -> array, float32."""
    named = [*_embeddings(model, "encoder.embeddings.0"), *_embeddings(model, "decoder.embeddings")]
    named += [*_final_norm("encoder", model.encoder_norm), *_final_norm("decoder", model.decoder_norm)]
    for index, encoder_layer in enumerate(model.encoder_layers):
        named += _layer(f"encoder.layer.{index}", encoder_layer)
    for index, decoder_layer in enumerate(model.decoder_layers):
        named += _layer(f"decoder.layer.{index}", decoder_layer)
    return _arrays([*named, ("decoder.projection.weight", model.embedding.token.weight)])


def ctranslate2_generator_weights(model: LanguageModel) -> dict[str, NDArray[np.float32]]:
    """Attribute path in a `TransformerDecoderModelSpec` -> array, float32."""
    named = [*_embeddings(model, "decoder.embeddings"), *_final_norm("decoder", model.decoder_norm)]
    for index, layer in enumerate(model.decoder_layers):
        named += _layer(f"decoder.layer.{index}", layer)
    return _arrays([*named, ("decoder.projection.weight", model.embedding.token.weight)])


def _arrays(named: Iterable[tuple[str, Tensor]]) -> dict[str, NDArray[np.float32]]:
    return {path: tensor.detach().contiguous().numpy() for path, tensor in named}


def _embeddings(model: TranslationModel | LanguageModel, path: str) -> Named:
    """One matrix serves source, target and output."""
    yield f"{path}.weight", model.embedding.token.weight
    yield f"{path.split('.', maxsplit=1)[0]}.position_encodings.encodings", model.embedding.position


def _final_norm(side: str, norm: nn.Module) -> Named:
    if isinstance(norm, nn.LayerNorm):  # a post-norm stack ends with its last layer's
        yield from _norm(f"{side}.layer_norm", norm)


def _layer(path: str, layer: EncoderLayer | DecoderLayer) -> Named:
    attention: SelfAttention | CrossAttention = layer.self_attention
    yield from _norm(f"{path}.self_attention.layer_norm", layer.around_self_attention.norm)
    yield from _linear(f"{path}.self_attention.linear.0", layer.self_attention.query_key_value)
    yield from _linear(f"{path}.self_attention.linear.1", attention.output)
    if isinstance(layer, DecoderLayer) and hasattr(layer, "cross_attention"):
        attention = layer.cross_attention
        yield from _norm(f"{path}.attention.layer_norm", layer.around_cross_attention.norm)
        yield from _linear(f"{path}.attention.linear.0", attention.query)
        yield from _linear(f"{path}.attention.linear.1", attention.key_value)
        yield from _linear(f"{path}.attention.linear.2", attention.output)
    feed_forward = layer.feed_forward
    yield from _norm(f"{path}.ffn.layer_norm", layer.around_feed_forward.norm)
    if feed_forward.gated:
        weights, biases = feed_forward.expand.weight.chunk(2), feed_forward.expand.bias.chunk(2)
        for name, weight, bias in zip(("linear_0", "linear_0_noact"), weights, biases, strict=True):
            yield f"{path}.ffn.{name}.weight", weight
            yield f"{path}.ffn.{name}.bias", bias
    else:
        yield from _linear(f"{path}.ffn.linear_0", feed_forward.expand)
    yield from _linear(f"{path}.ffn.linear_1", feed_forward.contract)


def _linear(path: str, linear: nn.Linear) -> Named:
    yield f"{path}.weight", linear.weight
    yield f"{path}.bias", linear.bias


def _norm(path: str, norm: nn.LayerNorm) -> Named:
    yield f"{path}.gamma", norm.weight
    yield f"{path}.beta", norm.bias
