"""Any number of texts through a bundle in the calling thread, by the rules of a call.

A call is refused whole. Here each text is judged on its own: a text that breaks a rule gets a `Refusal` in the place of
its answer. Options are the same for all texts, and are checked once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dragoman.common.cpu import cpu_limit_cores
from dragoman.common.text import clean_text, is_blank
from dragoman.files.answers import AnswerRow, AnswerText, Outcome, Refusal
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.hypothesis import FinishReason, Hypothesis
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine import scheduler
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.lane import Lane
from dragoman.server.engine.offline import OfflineLane
from dragoman.server.engine.sequence import LaneSequence
from dragoman.server.engine.worker import facts_of, prepared
from dragoman.server.errors import FieldViolation, InvalidRequest
from dragoman.server.execution.backend import Backend
from dragoman.server.models.loader import load_checked_backend
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.metrics import Metrics
from dragoman.server.requests.answers import SubmittedInput, text_of
from dragoman.server.requests.calls import Call
from dragoman.server.requests.option_texts import (
    check_option_texts,
    check_prefixes,
    stop_strings,
    suppressed_texts,
)
from dragoman.server.requests.options import DEFAULT_OPTIONS, Options, Room, check_options
from dragoman.server.requests.parameters import decoding_parameters, most_tokens
from dragoman.server.requests.text_rules import (
    abilities_of,
    check_inputs,
    check_prefix_lengths,
    check_task,
    room_for_output,
    too_long,
)

__all__ = ["WINDOW_ROWS", "OfflineModel", "OfflineRules", "TextBatch"]

WINDOW_ROWS = 2048
"""Texts that are worth submitting together: sorted by length, those that are encoded in one run are about as long."""

_FINISH_REASONS = {each: each.name.lower() for each in FinishReason}
"""As clients have them."""


@dataclass(eq=False)
class TextBatch:
    """Texts that were submitted together.

    Attributes:
        results: one for each text; final once `is_complete`.
        num_missing: texts whose sequences run or wait.
    """

    results: list[Outcome]
    num_missing: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every text has its result."""
        return not self.num_missing


@dataclass(eq=False, slots=True)
class _OpenText:
    """A text whose sequences run or wait; `num_missing` of them have no result."""

    batch: TextBatch
    place: int
    submitted: SubmittedInput
    sequences: list[LaneSequence]
    num_missing: int


class OfflineRules:
    """A loaded bundle, and the options that all texts are answered with.

    Attributes:
        served: the model, as the rules of calls see it. Its engine has no lane.
        options: how every text is decoded.
        prefix: what every answer begins with; "" for nothing.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: EngineSettings,
        *,
        task: str,
        options: Options = DEFAULT_OPTIONS,
        prefix: str = "",
    ) -> None:
        """Load the graphs of `bundle` and check them as a server does. Check the options.

        Raises:
            BundleError: the bundle is corrupt, or gives other answers than it did when it was made.
            InvalidRequest: the model is for another task, or an option breaks a rule.
            ResourceUnavailable: there is no memory for the lanes.
        """
        self.settings, self.options, self.prefix = settings, options, prefix
        self.backend: Backend = prepared(load_checked_backend(bundle, settings), settings.prefix_cache_bytes)
        facts = facts_of(self.backend, settings)
        metrics = Metrics(cpu_limit_cores()).for_model(bundle.name, bundle.manifest.task)
        self.served = ServedModel.of(
            name=bundle.name,
            version=bundle.version,
            manifest=bundle.manifest,
            tokenizer=bundle.tokenizer,
            engine=EngineClient(facts, settings),
            metrics=metrics,
        )
        check_task(self.served, task)
        self._prefix_ids = self._checked_prefix()
        room, has_source = room_for_output(self.served, 0), bundle.manifest.facts.has_source
        # Prompts leave different rooms, and samples have different seeds.
        is_same = has_source and not options.is_sampled
        self._same_parameters = self._parameters(room, 0) if is_same else None

    def _checked_prefix(self) -> tuple[int, ...]:
        """Check the options and the prefix; returns the prefix's tokens."""
        model, options, room = self.served, self.options, room_for_output(self.served, 0)
        prefixes = [self.prefix] if self.prefix else []
        call = Call(model="", version="", task=model.manifest.task, inputs=["-"], prefixes=prefixes)
        violations = check_inputs(model, call, 1) + check_options(options, room, abilities_of(model))
        if violations:
            raise InvalidRequest(violations)
        encoded = [each.ids for each in model.tokenizer.encode_batch_fast(prefixes, add_special_tokens=False)]
        violations = check_prefix_lengths(encoded, most_tokens(options, room))
        violations += check_option_texts(model, options)
        violations += check_prefixes(model, options, prefixes, encoded)
        if violations:
            raise InvalidRequest(violations)
        self.stop, self.suppressed = stop_strings(model, options), suppressed_texts(model, options)
        return tuple(encoded[0]) if encoded else ()

    def is_blank(self, text: str) -> bool:
        """Whether `text` holds nothing that this model could answer."""
        return is_blank(text) and not (self.served.manifest.facts.takes_blank_inputs and clean_text(text))

    def refusals(self, texts: Sequence[str]) -> dict[int, Refusal]:
        """The texts that cannot be inputs, as far as their characters say it, by their place."""
        call = Call(model="", version="", task=self.served.manifest.task, inputs=texts)
        if not check_inputs(self.served, call, len(texts)):
            return {}
        each_alone = ((place, replace(call, inputs=[text])) for place, text in enumerate(texts))
        found = ((place, check_inputs(self.served, alone, 1)) for place, alone in each_alone)
        return {place: Refusal(violations[0].description) for place, violations in found if violations}

    def parameters(self, token_ids: Sequence[int], index: int) -> tuple[DecodingParameters, ...] | Refusal:
        """How each of the sequences that answer the input number `index` is decoded, or why there are none."""
        model = self.served
        violations: list[FieldViolation] = list(too_long("inputs", 0, len(token_ids), model.max_input_tokens))
        if violations:
            return Refusal(violations[0].description)
        if self._same_parameters is not None:
            return self._same_parameters
        room = room_for_output(model, len(token_ids))
        # What a prompt leaves decides whether `min_tokens` can be.
        if violations := check_options(self.options, room, abilities_of(model)):
            return Refusal(violations[0].description)
        return self._parameters(room, index)

    def _parameters(self, room: Room, index: int) -> tuple[DecodingParameters, ...]:
        return decoding_parameters(
            self.options,
            room,
            index,
            prefix=self._prefix_ids,
            stop=self.stop,
            suppressed_texts=self.suppressed,
        )


class OfflineModel:
    """Answers texts with one lane, in the calling thread.

    Batches may be submitted while others run, so that no row is empty between batches.
    """

    def __init__(self, rules: OfflineRules) -> None:
        """Reserve the lane's rows.

        Raises:
            ResourceUnavailable: there is no memory for the rows.
        """
        self._rules = rules
        self._num_slots = rules.settings.slots_per_lane
        self._lane = OfflineLane(Lane(rules.backend, self._num_slots))
        self._open: dict[LaneSequence, _OpenText] = {}
        self._call = scheduler.Call()  # one for all: sequences keep their order

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._lane.has_work

    @property
    def wants_texts(self) -> bool:
        """Whether rows may be empty soon unless more batches are submitted."""
        return self._lane.num_waiting_rows < self._num_slots

    def submit(self, *batches: tuple[Sequence[str | None], int]) -> list[TextBatch]:
        """Queue batches of texts, the longest text of all first: texts of like length are encoded together.

        Each batch comes with the number of its first text, by which seeds of samples differ.
        """
        queued: list[tuple[list[int], TextBatch, int, int]] = []
        submitted = []
        for texts, first in batches:
            batch = TextBatch([None] * len(texts))
            places, encoded = self._encoded(texts, batch)
            queued += ((ids, batch, place, first + place) for place, ids in zip(places, encoded, strict=True))
            submitted.append(batch)
        for ids, batch, place, index in sorted(queued, key=lambda each: -len(each[0])):
            self._submit(batch, place, ids, index)
        return submitted

    def _encoded(self, texts: Sequence[str | None], batch: TextBatch) -> tuple[list[int], list[list[int]]]:
        """The places of the texts that can be answered, and their tokens. Others get their result."""
        rules = self._rules
        places = [place for place, text in enumerate(texts) if text is not None and not rules.is_blank(text)]
        asked = [text for place in places if (text := texts[place]) is not None]
        refused = rules.refusals(asked) if asked else {}
        for at, refusal in refused.items():
            batch.results[places[at]] = refusal
        if refused:
            places = [place for at, place in enumerate(places) if at not in refused]
            asked = [text for at, text in enumerate(asked) if at not in refused]
        return places, [each.ids for each in rules.served.tokenizer.encode_batch_fast(asked)]

    def _submit(self, batch: TextBatch, place: int, token_ids: list[int], index: int) -> None:
        """Queue the sequences that answer an input, or refuse it."""
        parameters = self._rules.parameters(token_ids, index)
        if isinstance(parameters, Refusal):
            batch.results[place] = parameters
            return
        sequences = [LaneSequence.create(token_ids, each, call=self._call) for each in parameters]
        submitted = SubmittedInput(self._rules.served, token_ids, self._rules.stop, tickets=[])
        text = _OpenText(batch, place, submitted, sequences, len(sequences))
        batch.num_missing += 1
        for sequence in sequences:
            self._open[sequence] = text
        self._lane.submit(*sequences)

    def step(self) -> None:
        """Take a step; batches whose last answer came with it are complete."""
        for sequence in self._lane.step():
            text = self._open.pop(sequence)
            text.num_missing -= 1
            if not text.num_missing:
                text.batch.results[text.place] = _answer(text)
                text.batch.num_missing -= 1


def _answer(text: _OpenText) -> AnswerRow:
    decoded = [each.result for each in text.sequences]
    hypotheses = [hypothesis for each in decoded if each is not None for hypothesis in each.hypotheses]
    if len(decoded) > 1:
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    return AnswerRow(tuple(_answer_text(text.submitted, each) for each in hypotheses))


def _answer_text(submitted: SubmittedInput, hypothesis: Hypothesis) -> AnswerText:
    text, finish_reason = text_of(submitted, hypothesis)
    score, log_probability = float(hypothesis.score), float(hypothesis.log_probability)
    return AnswerText(text, score, log_probability, _FINISH_REASONS[finish_reason])
