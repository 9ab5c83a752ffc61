"""A decoder-only model as a folder that onnxruntime-genai loads: `model.onnx` and `genai_config.json`.

The builder of onnxruntime-genai does not know this architecture, so the graph is written here from the operators and
names that it uses on CPUs: `GroupQueryAttention` on a packed query, key and value, with lengths from the attention mask
and caches that past and present share, `SkipLayerNormalization`, and logits of the last token alone (the builder's
`prune_lm_head`: without it a prompt pays for the logits of all its tokens, and padded prompts are not for this graph).

int8 is what the builder's `--precision int8` does on CPUs: weights of all products, the projection included, as 8 bits
in blocks of 32 with a scale each (`MatMulNBits`, symmetric, rounded to the nearest), and accuracy level 4: activations
are quantised in blocks while it runs. Embeddings, norms and attention stay fp32.

References: onnxruntime_genai/models/builders/base.py; onnxruntime docs/ContribOperators.md.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import Tensor, nn

from dragoman.export.graph import Graph
from dragoman.export.onnx_graphs import to_onnx
from dragoman.model.attention import SelfAttention
from dragoman.model.tokenizer import BEGIN_ID, END_ID
from dragoman.model.transformer import Dimensions, LanguageModel
from dragoman.server.bundle.manifest import Precision

__all__ = ["genai_config", "genai_graph", "write_genai_model"]

_MODEL_NAME: Final = "model.onnx"
_BLOCK_SIZE: Final = 32
_ACCURACY_LEVEL: Final = 4
_FLOAT: Final = 1  # onnx.TensorProto.FLOAT


def write_genai_model(model: LanguageModel, precision: Precision, folder: Path) -> None:
    """Write graph and configuration to `folder`, which is made."""
    folder.mkdir(parents=True)
    proto = genai_graph(model)
    onnx.save(_quantized(proto) if precision == "int8" else proto, folder / _MODEL_NAME)
    (folder / "genai_config.json").write_text(json.dumps(genai_config(model.dims)), encoding="utf-8")


def genai_config(dims: Dimensions) -> dict[str, Any]:
    """What `genai_config.json` says: greedy, with one buffer for past and present."""
    return {
        "model": {
            "type": "decoder",  # any decoder of tokens; "gpt2" has key and value in one tensor
            "vocab_size": dims.vocabulary_size,
            "context_length": dims.max_target_tokens + 1,
            "bos_token_id": BEGIN_ID,
            "eos_token_id": END_ID,
            "pad_token_id": dims.padding_id,
            "decoder": {
                "filename": _MODEL_NAME,
                "session_options": {"provider_options": []},  # CPU
                "hidden_size": dims.width,
                "head_size": dims.head_size,
                "num_attention_heads": dims.num_heads,
                "num_key_value_heads": dims.num_kv_heads,
                "num_hidden_layers": dims.num_decoder_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "num_beams": 1, "past_present_share_buffer": True},
    }


def genai_graph(model: LanguageModel) -> onnx.ModelProto:
    """The decoder in fp32, of prompts and of single tokens."""
    dims = model.dims
    layer_parts = [f"{layer}.{part}" for layer in range(dims.num_decoder_layers) for part in ("key", "value")]
    batch, tokens, total, capacity = (
        torch.export.Dim(name) for name in ("batch_size", "sequence_length", "total_length", "capacity")
    )
    past = torch.zeros(3, dims.num_kv_heads, 11, dims.head_size)
    inputs = {
        "input_ids": torch.ones(3, 5, dtype=torch.int64),
        "attention_mask": torch.ones(3, 7, dtype=torch.int64),
        "position_ids": torch.ones(3, 5, dtype=torch.int64),
        **{f"past_key_values.{name}": past.clone() for name in layer_parts},
    }
    axes = {
        "input_ids": {0: batch, 1: tokens},
        "attention_mask": {0: batch, 1: total},
        "position_ids": {0: batch, 1: tokens},
        **{f"past_key_values.{name}": {0: batch, 2: capacity} for name in layer_parts},
    }
    outputs = ("logits", *(f"present.{name}" for name in layer_parts))
    return to_onnx(Graph("model", _Decoder(model), inputs, axes, outputs, variadic=True))


class _Decoder(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        # A tensor of its own: the quantiser takes initialisers alone, not the transpose of the embedding.
        self.projection = nn.Buffer(model.embedding.token.weight.detach().T.contiguous())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Token ids (B, T), mask (B, S), positions (B, T), key and value of each layer (B, Hkv, capacity, head) ->
        logits (B, 1, V) and the caches, with T more tokens that end at S.
        """
        input_ids, attention_mask, position_ids, *caches = tensors
        last = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        total = torch.tensor([attention_mask.shape[1]], dtype=torch.int32)
        present: list[Tensor] = []

        def attend(attention: SelfAttention, h: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
            heads, *new = torch.onnx.ops.symbolic_multi_out(
                "com.microsoft::GroupQueryAttention",
                (attention.query_key_value(h), None, None, *past, last, total),
                attrs={"num_heads": attention.num_heads, "kv_num_heads": attention.num_kv_heads},
                dtypes=(_FLOAT, _FLOAT, _FLOAT),
                shapes=((*h.shape[:2], attention.query_width), past[0].shape, past[1].shape),
                version=1,
            )
            present.extend(new)
            output: Tensor = attention.output(heads)
            return output

        layers = self.model.decoder_layers
        norms = [*(layer.around_self_attention.norm for layer in layers), self.model.decoder_norm]
        x = self.model.embedding(input_ids, position_ids)
        h = norms[0](x)
        for index, layer in enumerate(layers):
            past = caches[2 * index], caches[2 * index + 1]
            x, h = _add_and_norm(x, attend(layer.self_attention, h, past), layer.around_feed_forward.norm)
            x, h = _add_and_norm(x, layer.feed_forward(h), norms[index + 1])
        return (h[:, -1:] @ self.projection, *present)


def _add_and_norm(x: Tensor, update: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`SkipLayerNormalization`, which ONNX Runtime does not make of the two by itself: the sum and its norm."""
    assert isinstance(norm, nn.LayerNorm), "the graph is a pre-norm model's"
    statistics = (*x.shape[:2], 1)
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::SkipLayerNormalization",
        (x, update, norm.weight, norm.bias),
        attrs={"epsilon": norm.eps},
        dtypes=(_FLOAT, _FLOAT, _FLOAT, _FLOAT),
        shapes=(x.shape, statistics, statistics, x.shape),
        version=1,
    )
    return total, normed


def _quantized(proto: onnx.ModelProto) -> onnx.ModelProto:
    with _logging_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: PLC0415
    quantizer = MatMulNBitsQuantizer(
        proto, bits=8, block_size=_BLOCK_SIZE, is_symmetric=True, accuracy_level=_ACCURACY_LEVEL
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    return found


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """The quantiser's module, as it is imported, has the whole process log every step to the user's screen."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
