"""Do all systems compute the same model? Their answers against PyTorch's, before anything is timed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from benchmarks.serving.ctranslate2_system import CTranslate2
from benchmarks.serving.subject import BEAM_SIZE, FIXED_STEPS, Subject
from benchmarks.serving.systems import Workload

from dragoman.export.verification import TIE
from dragoman.model.beam_search import beam_search
from dragoman.model.decoding import Hypothesis, greedy_decode
from dragoman.model.tokenizer import END_ID
from dragoman.model.transformer import TranslationModel
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.execution.backend import Backend

__all__ = ["MIN_FP32_SHARE", "Agreement", "check_agreement", "compare"]

MIN_FP32_SHARE: Final = 0.99
_MAX_FP32_ERROR: Final = (
    1e-3  # random weights may say one token again and again: equal tokens alone prove little
)
_NUM_SLOTS: Final = 64


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a system's answers compare with PyTorch's in fp32.

    Attributes:
        decoding: greedy, or by which beam search.
        num_equal: answers that are the same token for token.
        num_ties: answers that part from PyTorch's where its two best logits were closer than `TIE`.
        max_log_probability_error: largest difference of a token's mean log-probability over equal answers.
    """

    system: str
    precision: str
    decoding: str
    num_inputs: int
    num_equal: int
    num_ties: int
    max_log_probability_error: float

    @property
    def equal_share(self) -> float:
        return self.num_equal / self.num_inputs

    @property
    def holds(self) -> bool:
        """Whether the figures of this system are figures of the same model."""
        return self.precision != "fp32" or (
            self.equal_share >= MIN_FP32_SHARE and self.max_log_probability_error <= _MAX_FP32_ERROR
        )


def check_agreement(
    subject: Subject, num_inputs: int, backends: Sequence[Backend], peers: Sequence[CTranslate2]
) -> list[Agreement]:
    """Decode the first inputs of the split with everything: whole answers, or 32 tokens with random weights."""
    trained = subject.answer_tokens is None
    found = []
    for beam_size in (1, BEAM_SIZE) if trained else (1,):
        workload = Workload(
            "greedy" if beam_size == 1 else f"beam {beam_size}",
            subject.inputs[:num_inputs],
            max_tokens=subject.dims.max_target_tokens + 1 if trained else FIXED_STEPS,
            min_tokens=0 if trained else FIXED_STEPS,
            beam_size=beam_size,
        )
        found += _check(subject, workload, backends, peers)
    return found


def _check(
    subject: Subject, workload: Workload, backends: Sequence[Backend], peers: Sequence[CTranslate2]
) -> list[Agreement]:
    reference = _reference(subject.model, workload)
    found = []
    parameters = DecodingParameters(
        max_tokens=workload.max_tokens, min_tokens=workload.min_tokens, beam_size=workload.beam_size
    )
    for backend in backends:
        given = [(ids, parameters) for ids in workload.inputs]
        answers = [each.best for each in decode_offline(backend, given, num_slots=_NUM_SLOTS)]
        precision = backend.bundle.manifest.precision
        token_ids = [answer.with_end(END_ID) for answer in answers]
        sums = [answer.log_probability for answer in answers]
        found.append(compare("dragoman", precision, workload.name, token_ids, sums, reference))
    for peer in peers:
        peer.prepare(peer.settings(workload)[0])
        theirs = peer.decode(workload)
        found.append(
            compare(
                peer.name,
                peer.precision,
                workload.name,
                theirs.token_ids,
                theirs.log_probabilities,
                reference,
            )
        )
    return found


def _reference(model: TranslationModel, workload: Workload) -> list[Hypothesis]:
    if workload.beam_size == 1:
        return greedy_decode(model, workload.inputs, workload.max_tokens, min_tokens=workload.min_tokens)
    found = beam_search(model, workload.inputs, workload.max_tokens, beam_size=workload.beam_size)
    # A search has no margin at which it might have gone the other way: nothing of it counts as a tie.
    return [
        Hypothesis(best.token_ids, best.log_probability, [math.inf] * len(best.token_ids)) for [best] in found
    ]


def compare(
    system: str,
    precision: str,
    decoding: str,
    answers: Sequence[list[int]],
    log_probabilities: Sequence[float],
    reference: Sequence[Hypothesis],
) -> Agreement:
    """Hold `answers`, with their ends, and their log-probabilities against the reference's."""
    num_equal = num_ties = 0
    largest = 0.0
    for token_ids, log_probability, expected in zip(answers, log_probabilities, reference, strict=True):
        if token_ids == expected.token_ids:
            num_equal += 1
            error = abs(log_probability - expected.log_probability) / max(1, len(token_ids))
            largest = max(largest, error)
        else:
            num_ties += _parts_at_tie(token_ids, expected)
    return Agreement(system, precision, decoding, len(reference), num_equal, num_ties, largest)


def _parts_at_tie(token_ids: list[int], expected: Hypothesis) -> bool:
    for ours, theirs, margin in zip(token_ids, expected.token_ids, expected.margins, strict=False):
        if ours != theirs:
            return margin < TIE
    return False
