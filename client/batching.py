"""Many texts as several calls: the number of texts of each call, and the time that is left.

A server limits the texts of a call (`server.max_inputs`, 128 by default; fewer where each text has many hypotheses)
and the bytes of a message. The client does not know these limits. Where a call is refused for its size, the client
tries half as many texts. It remembers a limit on the number of texts for later calls. It does not remember a limit on
bytes, because later texts may be shorter.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from dragoman.client import messages
from dragoman.client.errors import InvalidRequestError, MessageTooLargeError
from dragoman.client.results import DecodingOptions, PriorityName
from dragoman.common.errors import UsageError
from dragoman.v1 import generation_pb2, translation_pb2

__all__ = [
    "MAX_BYTES",
    "MAX_TEXTS",
    "Batches",
    "KnownSizes",
    "score_text_batches",
    "score_translation_batches",
    "translate_batches",
]

MAX_TEXTS = 128
"""Most texts of one call: what a server takes by default."""

MAX_BYTES = 2 * 1024 * 1024
"""Most bytes of one call's texts, but for a single text: half of what a server takes by default."""

Key = tuple[str, str, int, int | None]
"""The limit depends on these: the model's name, its version, the hypotheses of a text, the alternatives to a token."""

KnownSizes = dict[Key, int]
"""Most texts of one call, as far as a server has refused more."""

_Request_co = TypeVar("_Request_co", covariant=True)


class Batches(Generic[_Request_co]):
    """The calls that some texts take, one after another, within one deadline.

        for request in batches:
            try:
                response = method(request, timeout=batches.time_left_s)
            except InvalidRequestError as error:
                batches.refuse(error)
            else:
                batches.accept()

    A batch that is refused for its size comes again, smaller.

    Attributes:
        first: The index of the batch's first text among all.
        timeout_s: The time for all calls together, in seconds.
    """

    def __init__(
        self,
        request: Callable[[slice], _Request_co],
        *texts: Sequence[str],
        timeout_s: float,
        known: KnownSizes,
        key: Key,
    ) -> None:
        """Plan the calls for `texts`: one list, or several whose texts belong together.

        `request` makes the message of the texts at some indexes; `key` is where `known` has their number.
        """
        self.first = 0
        self.timeout_s = timeout_s
        self._request = request
        self._num_bytes = [sum(map(_num_bytes, together)) for together in zip(*texts, strict=True)]
        self._end_s = time.monotonic() + timeout_s
        self._known = known
        self._key = key
        self._max_texts = known.get(key, MAX_TEXTS)
        self._size = 0
        self._is_over = False

    @property
    def time_left_s(self) -> float:
        """The rest of the time for all, in seconds; never below 0."""
        return max(0.0, self._end_s - time.monotonic())

    def __iter__(self) -> Iterator[_Request_co]:
        """The request of the next call. Of no texts there is one call, which the server refuses."""
        while not self._is_over:
            self._size = self._next_size()
            yield self._request(slice(self.first, self.first + self._size))

    def accept(self) -> None:
        """The batch was answered."""
        self.first += self._size
        if self.first >= len(self._num_bytes):
            self.end()

    def refuse(self, error: InvalidRequestError, *, has_begun: bool = False) -> None:
        """The batch was refused. Where it was too large, half of it comes next.

        `has_begun` says that the caller has a part of the answer already, so that the call cannot be repeated.

        Raises:
            InvalidRequestError: half of the batch would be refused as well; indexes are those among all texts.
        """
        is_number = bool(error.violations) and all(map(messages.names_list, error.violations))
        is_bytes = isinstance(error, MessageTooLargeError) or (
            bool(error.violations) and all(map(messages.names_answer_size, error.violations))
        )
        if has_begun or self._size < 2 or not (is_number or is_bytes):
            self.end()
            raise (messages.with_shifted_indexes(error, self.first) if self.first else error) from error
        self._max_texts = self._size // 2
        if is_number:
            self._known[self._key] = self._max_texts

    def end(self) -> None:
        """No further batch comes, whatever is left."""
        self._is_over = True

    def _next_size(self) -> int:
        size = num_bytes = 0
        for num_bytes_more in self._num_bytes[self.first : self.first + self._max_texts]:
            num_bytes += num_bytes_more
            if size and num_bytes > MAX_BYTES:
                break
            size += 1
        return size


def translate_batches(
    texts: str | Sequence[str],
    target_prefixes: str | Sequence[str],
    *,
    model: str,
    version: str,
    options: DecodingOptions,
    timeout_s: float,
    known: KnownSizes,
    priority: PriorityName = "normal",
) -> Batches[translation_pb2.TranslateRequest]:
    """The calls that translate `texts`.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: an argument that no message can hold, or not as many prefixes as texts.
    """
    inputs = messages.checked_texts(texts, "texts")
    prefixes = messages.checked_texts(target_prefixes, "target_prefixes")
    if prefixes and len(prefixes) != len(inputs):
        raise UsageError(f"target_prefixes: {len(prefixes)} prefixes do not belong to {len(inputs)} texts")

    def request(batch: slice) -> translation_pb2.TranslateRequest:
        return messages.translate_request(
            inputs[batch],
            model=model,
            version=version,
            options=_options_from(options, batch.start),
            target_prefixes=prefixes[batch],
            priority=priority,
        )

    request(slice(0, 0))  # what is wrong with the options is said before anything is sent
    num_hypotheses = max(options.get("beam_size") or 1, options.get("num_hypotheses") or 1)
    key = (model, version, num_hypotheses, options.get("num_alternatives"))
    return Batches(request, inputs, timeout_s=timeout_s, known=known, key=key)


def score_translation_batches(
    sources: str | Sequence[str],
    targets: str | Sequence[str],
    *,
    model: str,
    version: str,
    num_alternatives: int,
    timeout_s: float,
    known: KnownSizes,
    priority: PriorityName = "normal",
) -> Batches[translation_pb2.ScoreTranslationsRequest]:
    """The calls that score pairs.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: an argument that no message can hold, or not as many targets as sources.
    """
    from_texts, to_texts = (
        messages.checked_texts(sources, "sources"),
        messages.checked_texts(targets, "targets"),
    )
    if len(from_texts) != len(to_texts):
        raise UsageError(f"{len(from_texts)} sources and {len(to_texts)} targets are no pairs")

    def request(batch: slice) -> translation_pb2.ScoreTranslationsRequest:
        return messages.score_translations_request(
            from_texts[batch],
            to_texts[batch],
            model=model,
            version=version,
            num_alternatives=num_alternatives,
            priority=priority,
        )

    key = (model, version, 1, num_alternatives)
    return Batches(request, from_texts, to_texts, timeout_s=timeout_s, known=known, key=key)


def score_text_batches(
    texts: str | Sequence[str],
    *,
    model: str,
    version: str,
    num_alternatives: int,
    timeout_s: float,
    known: KnownSizes,
    priority: PriorityName = "normal",
) -> Batches[generation_pb2.ScoreTextsRequest]:
    """The calls that score texts.

    Raises:
        TypeError: an argument is of the wrong type.
        UsageError: an argument that no message can hold.
    """
    scored = messages.checked_texts(texts, "texts")

    def request(batch: slice) -> generation_pb2.ScoreTextsRequest:
        return messages.score_texts_request(
            scored[batch],
            model=model,
            version=version,
            num_alternatives=num_alternatives,
            priority=priority,
        )

    key = (model, version, 1, num_alternatives)
    return Batches(request, scored, timeout_s=timeout_s, known=known, key=key)


def _options_from(options: DecodingOptions, first: int) -> DecodingOptions:
    """The options of a call whose first text is number `first`: text number i is drawn with seed + i."""
    seed = options.get("seed")
    return options if seed is None or not first else {**options, "seed": (seed + first) % 2**64}


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
