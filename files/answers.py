"""Answers as plain rows, which processes can send each other."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, Unpack

from dragoman.client import messages as client_messages
from dragoman.client.results import DecodingOptions
from dragoman.common.errors import UsageError
from dragoman.server.fronts.grpc.dragoman_v1 import messages as server_messages
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options

__all__ = [
    "NUM_SLOTS",
    "AnswerRow",
    "AnswerText",
    "Outcome",
    "Refusal",
    "engine_options",
    "has_hypotheses",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row has no answer."""

    reason: str


class AnswerText(NamedTuple):
    """One hypothesis."""

    text: str
    score: float
    log_probability: float
    finish_reason: str


class AnswerRow(NamedTuple):
    """The answer to one row: its hypotheses, best first."""

    hypotheses: tuple[AnswerText, ...]

    @property
    def best(self) -> AnswerText:
        """The first one."""
        return self.hypotheses[0]


Outcome: TypeAlias = AnswerRow | Refusal | None
"""What became of a row. None: it has no text."""


NUM_SLOTS = 64
"""Rows that are decoded together: nobody waits for a single answer of a table."""


def has_hypotheses(options: DecodingOptions) -> bool:
    """Whether answers have a column for several hypotheses."""
    return (options.get("num_hypotheses") or 1) > 1


def engine_options(**options: Unpack[DecodingOptions]) -> Options:
    """Returns options as a server gets them. Numbers pass through the types of the protocol, so that answers agree.

    Raises:
        UsageError: an option has a value that its field cannot hold, or asks for figures of single tokens.
        TypeError: an option is unknown or of the wrong type.
    """
    for name in ("num_alternatives", "alignment"):
        if options.get(name) not in {None, False}:
            raise UsageError(f"{name} = {options.get(name)}: tables have no columns for single tokens")
    request = client_messages.translate_request([], model="", version="", options=options)
    received = server_messages.options(request.options)
    if received is DEFAULT_OPTIONS:
        return received
    # Lists are the message's own, which no process can send.
    lists = ("stop", "suppressed_texts", "suppressed_token_ids")
    given: dict[str, Any] = {name: getattr(received, name) for name in Options.__slots__}
    return Options(**given | {name: tuple(given[name]) for name in lists})
