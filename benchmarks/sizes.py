"""The shapes of models that benchmarks use: what each changes in the recipe multi30k."""

from collections.abc import Mapping
from typing import Final

__all__ = ["SIZES"]

_COMMON: Final = (
    "tokenizer.dropout=0",
    "training.r_drop=0",
    "training.accumulation_steps=1",
)
_SHAPE: Final = (
    "model.activation=relu",
    "model.norm=pre",
    "model.dropout=0.1",
    "model.attention_dropout=0.1",
    "training.label_smoothing=0.1",
    "training.optimizer=adamw",
)
SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "multi30k": _COMMON,
    "mini": (
        *_COMMON,
        *_SHAPE,
        "tokenizer.vocabulary_size=4000",
        "model.width=128",
        "model.num_heads=4",
        "model.feed_forward_width=512",
        "model.num_encoder_layers=2",
        "model.num_decoder_layers=2",
    ),
    "tiny": (
        *_COMMON,
        *_SHAPE,
        "tokenizer.vocabulary_size=8000",
        "model.width=256",
        "model.num_heads=4",
        "model.feed_forward_width=1024",
        "model.num_encoder_layers=3",
        "model.num_decoder_layers=3",
    ),
    "base": (
        *_COMMON,
        *_SHAPE,
        "tokenizer.vocabulary_size=32000",
        "model.width=512",
        "model.num_heads=8",
        "model.feed_forward_width=2048",
        "model.num_encoder_layers=6",
        "model.num_decoder_layers=6",
    ),
}
