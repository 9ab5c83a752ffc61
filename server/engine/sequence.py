"""A sequence while it is decoded: what the scheduler knows of it, its parameters, and what it has produced."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dragoman.server.decoding.beam import BeamSearch
from dragoman.server.decoding.hypothesis import Finished, TokenScore
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.sampling import TokenChooser
from dragoman.server.decoding.stopping import StopCondition
from dragoman.server.engine import scheduler
from dragoman.server.execution.rows import Source

__all__ = ["RunningSequence"]


@dataclass(eq=False, slots=True, kw_only=True)
class RunningSequence(scheduler.Sequence):
    """A sequence with its input, parameters and what it has produced so far.

    Attributes:
        source: its input.
        token_ids: grows at the end only. With beam search it stays empty until the best answer is known.
        stream: whether somebody reads `token_ids` while they grow.
        is_greedy: its next token is the most probable one, whatever that is, and nothing is told of the others.
        is_plain: and nobody looks at the text on the way.
        chooser: None for a row of which the most probable token is always taken.
        search: with beam search, from its start on.
        num_best: of each row's next tokens, how many it wants to be told.
        needs_all: whether it looks at all log-probabilities.
        num_first_tokens: that came together at `first_token_s`, the end of sequence included.
    """

    source: Source
    parameters: DecodingParameters
    stop: StopCondition | None = None
    stream: bool = False
    is_greedy: bool = False
    is_plain: bool = False
    token_ids: list[int] = field(default_factory=list)
    tokens: list[TokenScore] = field(default_factory=list)
    log_probability: float = 0.0
    chooser: TokenChooser | None = None
    search: BeamSearch | None = None
    num_best: int = 1
    needs_all: bool = True
    result: Finished | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    num_first_tokens: int = 1

    @classmethod
    def create(
        cls,
        input_ids: Sequence[int],
        parameters: DecodingParameters,
        *,
        deadline_s: float | None = None,
        stop: StopCondition | None = None,
        stream: bool = False,
        call: scheduler.Call | None = None,
    ) -> "RunningSequence":
        """A sequence ready to be submitted.

        Args:
            input_ids: its input.
            parameters: how to decode it.
            deadline_s: on the clock that plans are made with.
            stop: may end it early.
            stream: whether somebody reads `token_ids` while they grow.
            call: whose others take turns with those of other calls; None: it is a call of its own.
        """
        is_greedy = (
            parameters.num_alternatives is None
            and parameters.min_tokens == 0
            and parameters.beam_size == 1
            and not TokenChooser.is_needed(parameters)
        )
        return cls(
            num_input_tokens=len(input_ids),
            num_rows=parameters.beam_size,
            call=call or scheduler.Call(),
            deadline_s=deadline_s,
            source=Source(input_ids),
            parameters=parameters,
            stop=stop,
            stream=stream,
            is_greedy=is_greedy,
            is_plain=is_greedy and stop is None,
            num_best=max(1, parameters.num_alternatives or 0),
            needs_all=not is_greedy,
        )

    @property
    def input_ids(self) -> Sequence[int]:
        """The input's token ids."""
        return self.source.token_ids

    @property
    def num_tokens(self) -> int:
        """Tokens chosen so far, ends of sequence included; with beam search one, until the answers are known."""
        if self.result is not None:
            return sum(hypothesis.num_output_tokens for hypothesis in self.result.hypotheses)
        return max(1, len(self.token_ids))
