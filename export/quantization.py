"""Static int8: every product with a weight is one operator, `Int8Linear`, with scales fixed at export.

    xq = QuantizeLinear(x)                    unsigned 8 bits, one scale and zero point for each product
    y = MatMulIntegerToFloat(xq, wq) + bias   weights in 7 signed bits, one scale for each column

The range of each product's input is measured while the model reads some validation examples, so nothing depends on
what else is in a batch, and nothing has to be looked for at run time (ADR 12).

Seven bits, not eight, for the weights: CPUs without VNNI add pairs of 8-bit products in 16 bits, and 2 * 255 * 63 still
fits where 2 * 255 * 127 saturates silently (onnxruntime docs, "Quantize ONNX models", on U8S8). Integer products are
then exact, and so equal, on every machine.

Activations of a few channels are much larger than the rest and would take the range for themselves. Where a
normalisation feeds a product and nothing else, its weights are divided by what the product's are multiplied with, so
that both are easy to quantise (SmoothQuant, Xiao et al. 2023, equation 4).
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dragoman.export.operators import int8_linear
from dragoman.model.decoding import greedy_decode
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["MAX_WEIGHT", "Int8Linear", "Range", "quantized"]

MAX_WEIGHT = 63
_Model = TranslationModel | LanguageModel
_SMALLEST_RANGE = 1e-6
_MIGRATION = 0.5  # how much of the outliers goes to the weights; the paper's alpha


@dataclass
class Range:
    """What was seen of a product's input: for each channel the smallest and the largest value."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Range":
        """That of x (..., channels)."""
        flat = x.detach().float().flatten(0, -2)
        return cls(flat.amin(dim=0), flat.amax(dim=0))

    def widen(self, other: "Range") -> None:
        """Take in what else was seen."""
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)

    def divided_by(self, factors: Tensor) -> "Range":
        """That of the input divided by positive `factors` (channels)."""
        return Range(self.low / factors, self.high / factors)

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs())


def quantized(model: _Model, inputs: Sequence[Sequence[int]]) -> _Model:
    """A copy of `model` for export, whose products with weights are integer ones.

    Args:
        model: stays as it is.
        inputs: what it reads while the ranges are measured: token ids of sources, which it translates, or of
            whole documents.

    The copy cannot be run in PyTorch: its products are symbols for ONNX Runtime.
    """
    ranges = _observed_ranges(model, inputs)
    twin = copy.deepcopy(model).eval()
    for norm, names in _smoothable(twin):
        _smooth(twin, norm, names, ranges)
    linears = {name: module for name, module in twin.named_modules() if isinstance(module, nn.Linear)}
    for name, linear in linears.items():
        parent = twin.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Int8Linear(linear.weight, linear.bias, ranges[name]))
    output = Int8Linear(twin.embedding.token.weight, None, ranges[_LOGITS])
    twin.logits = lambda x: output(twin.decoder_norm(x))  # type: ignore[method-assign]
    return twin


_LOGITS = "decoder_norm"
"""Not a linear layer of its own: the product of the last states with the embedding."""


@torch.inference_mode()
def _observed_ranges(model: _Model, inputs: Sequence[Sequence[int]]) -> dict[str, Range]:
    ranges: dict[str, Range] = {}

    def widen(name: str, x: Tensor) -> None:
        seen = Range.of(x)
        if name in ranges:
            ranges[name].widen(seen)
        else:
            ranges[name] = seen

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: widen(name, given[0])

    with _hooks(model, before, lambda _, __, states: widen(_LOGITS, states)):
        if isinstance(model, TranslationModel):
            greedy_decode(model, inputs, model.dims.max_target_tokens + 1)
        else:
            for token_ids in inputs:
                model(torch.tensor([token_ids]))
    return ranges


@contextlib.contextmanager
def _hooks(
    model: _Model,
    before_linear: Callable[[str], Callable[[nn.Module, tuple[Tensor, ...]], None]],
    after_norm: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(before_linear(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    handles.append(model.decoder_norm.register_forward_hook(after_norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _smoothable(model: _Model) -> Iterator[tuple[nn.LayerNorm, list[str]]]:
    """Normalisations whose output goes into products alone, and the names of those."""
    if model.dims.norm != "pre":  # the residual stream reads the same output
        return
    stacks = {"decoder_layers": model.decoder_layers}
    if isinstance(model, TranslationModel):
        stacks["encoder_layers"] = model.encoder_layers  # type: ignore[assignment]
        assert isinstance(model.encoder_norm, nn.LayerNorm)
        yield (
            model.encoder_norm,
            [f"decoder_layers.{i}.cross_attention.key_value" for i in range(len(model.decoder_layers))],
        )
    for stack, layers in stacks.items():
        for index, layer in enumerate(layers):
            name = f"{stack}.{index}"
            yield layer.around_self_attention.norm, [f"{name}.self_attention.query_key_value"]
            yield layer.around_feed_forward.norm, [f"{name}.feed_forward.expand"]
            if hasattr(layer, "cross_attention"):
                yield layer.around_cross_attention.norm, [f"{name}.cross_attention.query"]


@torch.no_grad()
def _smooth(model: _Model, norm: nn.LayerNorm, names: Sequence[str], ranges: dict[str, Range]) -> None:
    linears = [cast("nn.Linear", model.get_submodule(name)) for name in names]
    weights = torch.stack([linear.weight.abs().amax(dim=0) for linear in linears]).amax(dim=0)
    activations = ranges[names[0]].magnitude
    factors = activations.clamp(min=_SMALLEST_RANGE) ** _MIGRATION / weights.clamp(min=_SMALLEST_RANGE) ** (
        1 - _MIGRATION
    )
    norm.weight.div_(factors)
    norm.bias.div_(factors)
    for name, linear in zip(names, linears, strict=True):
        linear.weight.mul_(factors)
        ranges[name] = ranges[name].divided_by(factors)


class Int8Linear(nn.Module):
    """x (..., K) -> (..., N) for ONNX Runtime."""

    weight: Tensor
    column_scales: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, seen: Range) -> None:
        super().__init__()
        weight = weight.detach().float().T  # (K, N)
        columns = (weight.abs().amax(dim=0) / MAX_WEIGHT).clamp(min=_SMALLEST_RANGE)
        # Zero is always within the range, so that it stays exact.
        low, high = min(0.0, float(seen.low.min())), max(0.0, float(seen.high.max()))
        scale = max(high - low, _SMALLEST_RANGE) / 255
        self.register_buffer(
            "weight", (weight / columns).round().clamp(-MAX_WEIGHT, MAX_WEIGHT).to(torch.int8)
        )
        self.register_buffer("column_scales", columns)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(round(-low / scale), dtype=torch.uint8))
        self.register_buffer("bias", torch.zeros_like(columns) if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """A symbol, for tracing alone."""
        weights = (self.scale, self.zero_point, self.weight, self.column_scales, self.bias)
        return int8_linear(x, weights, self.weight.shape[1])
