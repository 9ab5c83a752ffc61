"""A sequence while it is decoded: what the scheduler knows of it, its parameters, and what it has produced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dragoman.server.decoding.beam import BeamSearch
from dragoman.server.decoding.hypothesis import Decoded, Hypothesis, TokenScore
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.sampling import TokenChooser
from dragoman.server.decoding.stopping import StopCondition
from dragoman.server.engine import scheduler
from dragoman.server.execution.encoding import ModelInput

__all__ = ["LaneSequence"]


@dataclass(eq=False, slots=True, kw_only=True)
class LaneSequence(scheduler.Sequence):
    """A sequence with its input, parameters and what it has produced so far.

    Attributes:
        model_input: its input.
        id: by which the front that it came from knows it.
        front: that it came from.
        is_streamed: whether its tokens are reported as they come.
        num_reported_tokens: output tokens that reports to its front have had.
        token_ids: grows at the end only. With beam search it stays empty until the best answer is known.
        is_greedy: its next token is the most probable one, whatever that is, and nothing is returned of the others.
        is_plain: and nobody looks at the text on the way.
        stop: ends it early; made when it starts, as `chooser` and `search` are.
        chooser: None for a row of which the most probable token is always taken.
        search: with beam search.
        num_best: of each row's next tokens, how many the graph returns for it.
        needs_all: whether it looks at all log-probabilities.
        has_ended: all its tokens are chosen. `result` is there as well, or waits for an alignment.
        num_first_tokens: that came together at `first_token_s`, the end of sequence included.
    """

    model_input: ModelInput
    parameters: DecodingParameters
    id: int = 0
    front: Any = None
    is_streamed: bool = False
    num_reported_tokens: int = 0
    is_greedy: bool = False
    is_plain: bool = False
    token_ids: list[int] = field(default_factory=list)
    tokens: list[TokenScore] = field(default_factory=list)
    log_probability: float = 0.0
    stop: StopCondition | None = None
    chooser: TokenChooser | None = None
    search: BeamSearch | None = None
    num_best: int = 1
    needs_all: bool = True
    has_ended: bool = False
    result: Decoded | None = None
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
        call: scheduler.Call | None = None,
        cost: int = 0,
    ) -> "LaneSequence":
        """A sequence ready to be submitted.

        Args:
            input_ids: its input.
            parameters: how to decode it.
            deadline_s: on the clock that plans are made with.
            call: whose others take turns with those of other calls; None: it is a call of its own.
            cost: what it adds to a step, as `step_cost` says.
        """
        is_greedy = (
            parameters.num_alternatives is None
            and parameters.min_tokens == 0
            and parameters.beam_size == 1
            and not parameters.needs_chooser
        )
        return cls(
            num_input_tokens=len(input_ids),
            num_rows=parameters.beam_size,
            call=call or scheduler.Call(),
            cost=cost,
            deadline_s=deadline_s,
            model_input=ModelInput(input_ids),
            parameters=parameters,
            is_greedy=is_greedy,
            is_plain=is_greedy and not parameters.stop,
            num_best=max(1, parameters.num_alternatives or 0),
            needs_all=not is_greedy,
        )

    @property
    def input_ids(self) -> Sequence[int]:
        """The input's token ids."""
        return self.model_input.token_ids

    def complete(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Take these hypotheses, best first, as the answers: as many of them as were asked for."""
        self.result = Decoded(tuple(hypotheses[: self.parameters.num_hypotheses]))
        if self.search is not None:
            self.token_ids += self.result.best.token_ids
