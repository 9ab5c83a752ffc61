"""From a call's options to what the engine decodes by: parameters for each sequence of an input."""

import secrets

from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options, Room

__all__ = ["decoding_parameters", "most_tokens"]

_SEED_BITS = 64
_SAME_NAMES = (
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "beam_size",
    "length_penalty",
    "coverage_penalty",
    "patience",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
"""Options that are parameters as they are; one that is left out has the default of `DecodingParameters`."""


def decoding_parameters(
    options: Options,
    room: Room,
    index: int,
    *,
    prefix: tuple[int, ...] = (),
    stop: tuple[str, ...] = (),
    suppressed_texts: tuple[str, ...] = (),
) -> tuple[DecodingParameters, ...]:
    """Returns the parameters of input number `index`, one for each sequence; `options` break no rule.

    A given seed is the first input's and the next one's is one more: equal texts in a call differ.
    """
    max_tokens = most_tokens(options, room)
    if options is DEFAULT_OPTIONS:
        return (DecodingParameters(max_tokens=max_tokens, prefix=prefix),)
    seed, num_samples = 0, 1
    if options.is_sampled:
        given_seed = secrets.randbits(_SEED_BITS) if options.seed is None else options.seed + index
        seed, num_samples = given_seed % 2**_SEED_BITS, options.num_hypotheses or 1
    given = {name: value for name in _SAME_NAMES if (value := getattr(options, name)) is not None}
    suppressed_token_ids = tuple(options.suppressed_token_ids)
    return tuple(
        DecodingParameters(
            max_tokens=max_tokens,
            seed=seed,
            sample=sample,
            num_hypotheses=1 if options.is_sampled else options.num_hypotheses or 1,
            suppressed_token_ids=suppressed_token_ids,
            suppressed_texts=suppressed_texts,
            stop=stop,
            prefix=prefix,
            num_alternatives=_num_alternatives(options),
            align=options.alignment,
            **given,
        )
        for sample in range(num_samples)
    )


def most_tokens(options: Options, room: Room) -> int:
    """Returns the most tokens that an answer in `room` may have."""
    return min(room.limit if options.max_tokens is None else options.max_tokens, room.left)


def _num_alternatives(options: Options) -> int | None:
    """An alignment is part of each token of an answer, so it needs the tokens."""
    return 0 if options.alignment and options.num_alternatives is None else options.num_alternatives
