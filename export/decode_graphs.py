"""The graphs that produce tokens.

    decode        feeds one token a row: log-probabilities of the next one, if `needs_all` (1) is not 0, and the
                  `num_best` (1) best of them
    decode_steps  feeds one token a row and then, three times, the most probable next one: four tokens a row in one
                  call, with their log-probabilities; for small models, whose steps are over before Python is ready
                  for the next one (ADR 15)

Caches stay in place: every step's are outputs, bound to the memory of those that come in.
"""

import torch
from torch import Tensor, nn

from dragoman.export.graph import DynamicAxes, Graph, cache_dtype
from dragoman.export.operators import best_tokens, cross_attention, self_attention
from dragoman.export.quantization import Int8Linear
from dragoman.model.transformer import DecoderLayer, LanguageModel, TranslationModel
from dragoman.server.bundle.graph_names import (
    CACHE_KINDS,
    LAST,
    OWN,
    SOURCE,
    CacheKind,
    cache_kind,
    cache_names,
    output_name,
    step_name,
)

__all__ = ["MAX_STEP_WEIGHTS", "NUM_STEPS", "decode_graphs"]

NUM_STEPS = 4
"""Of `decode_steps`. A row that ends in the first of them is computed for nobody in the rest."""
MAX_STEP_WEIGHTS = 2_500_000
"""With more weights a step takes several times what Python takes, and what is computed for nobody costs more."""


def decode_graphs(model: TranslationModel | LanguageModel) -> tuple[Graph, ...]:
    """`decode`, and `decode_steps` for a small model that will run on a CPU."""
    inputs, axes = _inputs(model)
    # What no step appends to, a source's last token, is no output.
    caches = [name for name in inputs if cache_kind(name) in {OWN, SOURCE}]
    outputs = ("log_probabilities", "best", "best_token_ids", *map(output_name, caches))
    decode_inputs = {"num_best": torch.tensor([_NUM_BEST]), "needs_all": torch.tensor([1]), **inputs}
    decode_axes: dict[str, DynamicAxes] = {"num_best": {}, "needs_all": {}, **axes}
    decode = Graph(
        "decode", _Decode(model, tuple(decode_inputs)), decode_inputs, decode_axes, outputs, variadic=True
    )
    if cache_dtype(model) == torch.float16 or _num_step_weights(model) > MAX_STEP_WEIGHTS:
        return (decode,)
    parts = ("token_ids", "log_probabilities", *map(output_name, caches))
    outputs = tuple(step_name(step, part) for step in range(NUM_STEPS) for part in parts)
    return decode, Graph(
        "decode_steps", _DecodeSteps(model, tuple(inputs)), inputs, axes, outputs, variadic=True
    )


_NUM_BEST = 4  # of the traced example


def _num_step_weights(model: TranslationModel | LanguageModel) -> int:
    """Weights that a row's step is multiplied with; what a source's keys and values take is paid for by `encode`."""
    products = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if name.startswith("decoder_layers.")
        and isinstance(module, nn.Linear | Int8Linear)
        and not name.endswith("cross_attention.key_value")
    )
    return products + model.embedding.token.weight.numel()


def _inputs(model: TranslationModel | LanguageModel) -> tuple[dict[str, Tensor], dict[str, DynamicAxes]]:
    """Sample inputs by name, and the axes that may have any length."""
    dims, num_rows, dtype = model.dims, 3, cache_dtype(model)
    rows = torch.export.Dim("rows")
    heads, size = dims.num_kv_heads, dims.head_size
    shapes = {
        OWN: (num_rows, heads, 11, size),
        SOURCE: (num_rows, heads, 9, size),
        LAST: (num_rows, 1, heads * size),
    }
    axes: dict[CacheKind, DynamicAxes] = {
        OWN: {0: rows, 2: torch.export.Dim("capacity")},
        SOURCE: {0: rows, 2: torch.export.Dim("source_capacity")},
        LAST: {0: rows},
    }
    inputs: dict[str, Tensor] = {
        "token_ids": torch.ones(num_rows, dtype=torch.int64),
        "lengths": torch.tensor([4, 0, 7], dtype=torch.int32),
    }
    dynamic: dict[str, DynamicAxes] = {"token_ids": {0: rows}, "lengths": {0: rows}}
    kinds: tuple[CacheKind, ...] = (OWN,)
    if isinstance(model, TranslationModel):
        kinds = CACHE_KINDS
        inputs["source_lengths"] = torch.tensor([9, 2, 5], dtype=torch.int32)
        dynamic["source_lengths"] = {0: rows}
    for name in cache_names(dims.num_decoder_layers, *kinds):
        kind = cache_kind(name)
        assert kind is not None
        inputs[name] = torch.zeros(shapes[kind], dtype=dtype)
        dynamic[name] = axes[kind]
    return inputs, dynamic


class _Decode(nn.Module):
    def __init__(self, model: TranslationModel | LanguageModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of `input_names` -> what `best_tokens` returns, caches as they are now."""
        given = dict(zip(self.input_names, tensors, strict=True))
        logits, caches = self._step(given)
        best = best_tokens(logits, given["num_best"], given["needs_all"], _NUM_BEST)
        return (*best, *caches.values())

    def _step(self, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        lengths = given["lengths"]
        x = self.model.embedding(given["token_ids"], lengths.to(torch.int64))
        caches: dict[str, Tensor] = {}
        for index, layer in enumerate(self.model.decoder_layers):

            def attend_self(h: Tensor, layer: DecoderLayer = layer, i: int = index) -> Tensor:
                attention = layer.self_attention
                past = given[f"key_{i}"], given[f"value_{i}"]
                heads, caches[f"key_{i}"], caches[f"value_{i}"] = self_attention(
                    attention, attention.query_key_value(h), past, lengths
                )
                return attention.output(heads)

            def attend_source(h: Tensor, layer: DecoderLayer = layer, i: int = index) -> Tensor:
                attention = layer.cross_attention
                last = given[f"last_cross_key_{i}"], given[f"last_cross_value_{i}"]
                past = given[f"cross_key_{i}"], given[f"cross_value_{i}"]
                heads, caches[f"cross_key_{i}"], caches[f"cross_value_{i}"] = cross_attention(
                    attention, attention.query(h), last, past, given["source_lengths"]
                )
                return attention.output(heads)

            x = layer(x, attend_self, attend_source if "source_lengths" in given else None)
        return self.model.logits(x).float(), caches


class _DecodeSteps(_Decode):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As `_Decode`; for each step the tokens (B), their log-probabilities (B), caches as they are then."""
        given = dict(zip(self.input_names, tensors, strict=True))
        outputs: list[Tensor] = []
        for _ in range(NUM_STEPS):
            logits, caches = self._step(given)
            _, *best = best_tokens(
                logits, torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1
            )
            log_probabilities, token_ids = (part[:, 0] for part in best)
            outputs += [token_ids, log_probabilities, *caches.values()]
            given |= {"token_ids": token_ids, "lengths": given["lengths"] + 1, **caches}
        return tuple(outputs)
