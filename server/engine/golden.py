"""Does a loaded bundle still give the answers it gave where it was made?

Another onnxruntime, another CPU or a graph optimiser's bug shows here, before the first caller sees it.
"""

from dragoman.server.bundle.manifest import GoldenExample
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.errors import BundleError, shown
from dragoman.server.execution.backend import Backend

__all__ = ["check_golden_examples"]

_MAX_ROWS = 32

_MAX_LOG_PROBABILITY_ERROR = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-2}
"""Per token. Integer products are exact everywhere, but a rounding of their inputs may fall the other way. A logit of
fp16 between 16 and 32 is one of numbers that stand 0.016 apart."""


def check_golden_examples(backend: Backend) -> None:
    """Decode the bundle's golden examples, together in one batch, and compare.

    Raises:
        BundleError: naming the first example whose tokens or log-probability disagree.
    """
    bundle = backend.bundle
    tokenizer = bundle.tokenizer
    examples = bundle.manifest.golden_examples
    if not examples:  # of a bundle in the making: `Bundle.read` wants some
        return
    without_text = set(bundle.manifest.special_tokens.without_text)
    inputs = []
    for token_ids, example in zip(bundle.golden_inputs(), examples, strict=True):
        _check_length(bundle, example, len(token_ids))
        # A release that still chose tokens without a text may have recorded some: they are followed.
        prefix = example.token_ids if without_text & set(example.token_ids) else ()
        inputs.append((token_ids, DecodingParameters(max_tokens=example.max_tokens, prefix=prefix)))
    allowed = _MAX_LOG_PROBABILITY_ERROR[bundle.manifest.precision]
    finished = decode_offline(backend, inputs, num_slots=min(len(inputs), _MAX_ROWS))
    for example, result in zip(examples, (each.best for each in finished), strict=True):
        if result.token_ids != example.token_ids:
            now, before = (shown(tokenizer.decode(ids)) for ids in (result.token_ids, example.token_ids))
            raise BundleError(
                f"{bundle.path}: golden example {shown(example.text)} now gives {now}, not {before}"
            )
        error = abs(result.log_probability - example.log_probability)
        if not error <= allowed * result.num_output_tokens:  # nor where it is NaN
            raise BundleError(
                f"{bundle.path}: golden example {shown(example.text)} now has log-probability "
                f"{result.log_probability:.4f}, not {example.log_probability:.4f}"
            )


def _check_length(bundle: Bundle, example: GoldenExample, num_tokens: int) -> None:
    limits = bundle.manifest.limits
    room = limits.max_source_tokens
    if not bundle.manifest.facts.has_source:
        room = min(room, limits.max_context_tokens - example.max_tokens)
    if not 0 < num_tokens <= room:
        raise BundleError(
            f"{bundle.path}: golden example {shown(example.text)} has {num_tokens} tokens; "
            f"by the manifest's limits it may have 1 to {room}"
        )
