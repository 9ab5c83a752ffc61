"""From what the engine decoded to what callers see: texts, spelled tokens, figures for the metrics."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from dragoman.server.decoding.hypothesis import Decoded, FinishReason, Hypothesis, TokenScore, perplexity
from dragoman.server.decoding.text import OutputText, decode_text
from dragoman.server.engine.ticket import Ticket
from dragoman.server.models.served_model import ServedModel
from dragoman.server.requests.answer_room import AnswerRoom
from dragoman.server.requests.calls import Answer, OutputToken, Scored, TextAnswer
from dragoman.server.requests.pace import Pace
from dragoman.server.requests.traces import current_exemplar, timed

__all__ = ["SubmittedInput", "answer_to", "score_of", "text_of"]


@dataclass(slots=True)
class SubmittedInput:
    """An input that the engine has.

    Attributes:
        model: the model that answers it.
        token_ids: the input.
        stop: strings that end its answers.
        tickets: one for each sequence that answers it; several where several samples were asked for.
        room: the bytes that its answer may take of a message; None: they are not counted.
    """

    model: ServedModel
    token_ids: Sequence[int]
    stop: Sequence[str]
    tickets: list[Ticket]
    room: AnswerRoom | None = None

    @property
    def context_ids(self) -> Sequence[int]:
        """The tokens that the answer continues."""
        return () if self.model.manifest.facts.has_source else self.token_ids

    def new_text(self) -> OutputText:
        """An empty answer."""
        return OutputText(self.model.tokenizer, context_ids=self.context_ids, stop=self.stop)


async def answer_to(submitted: SubmittedInput, decoded: Sequence[Decoded], pace: Pace) -> Answer:
    """Returns the answer to an input, from one result for each of its tickets.

    Raises:
        AnswerTooLarge: it cannot be sent.
    """
    began_s = time.perf_counter()
    hypotheses = [hypothesis for each in decoded for hypothesis in each.hypotheses]
    if len(decoded) > 1:
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    texts = []
    with timed("detokenise"):
        for hypothesis in hypotheses:
            if submitted.room is not None:
                submitted.room.check()
            texts.append(_text_answer(submitted, hypothesis))
            await pace()
    answer = Answer(
        version=submitted.model.version,
        num_input_tokens=len(submitted.token_ids),
        texts=tuple(texts),
        source_tokens=_source_tokens(submitted, hypotheses),
    )
    _observe(submitted, answer.num_output_tokens, began_s)
    return answer


async def score_of(submitted: SubmittedInput, decoded: Sequence[Decoded], pace: Pace) -> Scored:
    """Returns how probable a text is, from the result of forcing it.

    Raises:
        AnswerTooLarge: it cannot be sent.
    """
    began_s = time.perf_counter()
    [result] = decoded
    if submitted.room is not None:
        submitted.room.check()
    await pace()
    hypothesis = result.best
    _observe(submitted, hypothesis.num_output_tokens, began_s)
    return Scored(
        version=submitted.model.version,
        log_probability=hypothesis.log_probability,
        perplexity=perplexity(hypothesis.log_probability, hypothesis.num_output_tokens),
        tokens=_OutputTokens(submitted.model, hypothesis),
    )


def _observe(submitted: SubmittedInput, num_output_tokens: int, began_s: float) -> None:
    """Count the answer's tokens, and the times that it took.

    It has been made of tokens since `began_s` on `time.perf_counter()`.
    """
    starts, firsts, lasts, num_first_tokens = [], [], [], 0
    for ticket in submitted.tickets:
        assert ticket.admitted_s is not None, "a finished sequence has been started"
        assert ticket.first_token_s is not None, "a finished sequence has tokens"
        assert ticket.finished_s is not None, "its result was awaited"
        starts.append(ticket.admitted_s)
        firsts.append(ticket.first_token_s)
        lasts.append(ticket.finished_s)
        num_first_tokens += ticket.num_first_tokens
    end = max(lasts)
    submitted.model.metrics.observe_answer(
        num_output_tokens,
        num_first_tokens,
        decoding_s=end - min(firsts),
        inference_s=end - min(starts),
        making_s=time.perf_counter() - began_s,
        exemplar=current_exemplar(),
    )


def _text_answer(submitted: SubmittedInput, hypothesis: Hypothesis) -> TextAnswer:
    text, finish_reason = text_of(submitted, hypothesis)
    return TextAnswer(
        text=text,
        finish_reason=finish_reason,
        num_output_tokens=hypothesis.num_output_tokens,
        log_probability=hypothesis.log_probability,
        score=hypothesis.score,
        tokens=_OutputTokens(submitted.model, hypothesis),
    )


def text_of(submitted: SubmittedInput, hypothesis: Hypothesis) -> tuple[str, FinishReason]:
    """Returns a hypothesis' text, and why it ended: a stop string may end it after the engine has."""
    if not (submitted.context_ids or submitted.stop):  # most answers
        return decode_text(submitted.model.tokenizer, hypothesis.token_ids), hypothesis.finish_reason
    text = submitted.new_text()
    text.finish(hypothesis.token_ids)
    # A stop string may also come complete with the last characters, which only the end sets free.
    return text.text, FinishReason.STOP_STRING if text.stopped else hypothesis.finish_reason


class _OutputTokens:
    """Tokens of a hypothesis, spelled when they are read.

    A call may have hundreds of thousands of them: kept, they would make each collection of garbage take 50 ms.
    """

    def __init__(self, model: ServedModel, hypothesis: Hypothesis) -> None:
        self._model = model
        self._hypothesis = hypothesis

    @property
    def ids(self) -> Sequence[int]:
        return self._hypothesis.with_end(self._model.manifest.special_tokens.end)

    @property
    def scores(self) -> Iterator[tuple[TokenScore, int | None]]:
        tokens, alignment = self._hypothesis.tokens, self._hypothesis.alignment
        # The end of sequence is not in the alignment.
        return itertools.zip_longest(tokens, alignment[: len(tokens)])

    def __iter__(self) -> Iterator[OutputToken]:
        for token, source_index in self.scores:
            yield _output_token(self._model.tokenizer, token, source_index)


def _output_token(tokenizer: Tokenizer, token: TokenScore, source_index: int | None) -> OutputToken:
    return OutputToken(
        token_id=token.token_id,
        token=_spelled(tokenizer, token.token_id),
        log_probability=token.log_probability,
        alternatives=tuple(
            (token_id, _spelled(tokenizer, token_id), log_probability)
            for token_id, log_probability in token.alternatives
        ),
        source_index=source_index,
    )


def _source_tokens(submitted: SubmittedInput, hypotheses: Sequence[Hypothesis]) -> tuple[str, ...]:
    if not any(hypothesis.alignment for hypothesis in hypotheses):
        return ()
    return tuple(_spelled(submitted.model.tokenizer, token_id) for token_id in submitted.token_ids)


def _spelled(tokenizer: Tokenizer, token_id: int) -> str:
    # A model may have room for more tokens than its vocabulary holds.
    return tokenizer.id_to_token(token_id) or ""
