"""What a graph is before it is written, and the names and types that graphs share."""

import dataclasses

import torch
from torch import Tensor, nn

from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["DynamicAxes", "Graph", "cache_dtype"]

DynamicAxes = dict[int, torch.export.Dim]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A module with all that `torch.onnx.export` needs: names, sample inputs, dynamic axes."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic_axes: dict[str, DynamicAxes]
    outputs: tuple[str, ...]
    variadic: bool = False  # the module takes its tensors as one `*tensors`


def cache_dtype(model: TranslationModel | LanguageModel) -> torch.dtype:
    """Of keys and values: what the normalisations compute in, quantised products or not."""
    return model.decoder_layers[0].around_feed_forward.norm.weight.dtype
