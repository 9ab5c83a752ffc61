"""Does a bundle answer as its PyTorch model does, alone and in company?

The bundle is run through the very backend that serves it. The reference is `dragoman.model.decoding`, plain PyTorch in
fp32. Where two tokens' logits are closer than `TIE` in PyTorch, either is right: such ties are counted, not failed.
An fp32 bundle may part from it nowhere else. Of fp16 and int8, which round, agreement is recorded in the manifest and
told; what they must hold as well is that no answer changes in a batch and that every log-probability is a number.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dragoman.common.errors import UsageError
from dragoman.export.errors import ExportError
from dragoman.export.held_out import HeldOut, held_out
from dragoman.model.batching import pad_right
from dragoman.model.decoding import Hypothesis, greedy_decode
from dragoman.model.run import Run, load_run
from dragoman.model.tokenizer import BEGIN_ID, END_ID
from dragoman.model.transformer import LanguageModel, TranslationModel
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.hypothesis import Hypothesis as Answer
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.engine.scoring import forced_steps
from dragoman.server.engine.trial import check_answers
from dragoman.server.execution.backend import Backend

__all__ = [
    "TIE",
    "Agreement",
    "Decoded",
    "VerificationReport",
    "compare",
    "decode_both_ways",
    "verify_bundle",
]

TIE = 1e-4
BATCH_ROWS = 64
_NUM_LOGIT_INPUTS = 64


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a bundle's greedy answers compare with PyTorch's over held-out inputs.

    Attributes:
        num_inputs: answers compared.
        num_tokens: tokens in PyTorch's answers, ends of sequence included.
        num_equal_inputs: answers that are the same token for token.
        num_equal_tokens: tokens at the same place with the same id.
        num_ties: answers that part from PyTorch's at a tie.
        num_disagreements: answers that part from PyTorch's anywhere else.
        num_batch_differences: answers that differ between alone and in a batch of `BATCH_ROWS` mixed rows.
        max_logit_difference: largest difference of a log-probability over the whole vocabulary, with PyTorch's
            own tokens forced; NaN where the bundle overflows.
    """

    num_inputs: int
    num_tokens: int
    num_equal_inputs: int
    num_equal_tokens: int
    num_ties: int
    num_disagreements: int
    num_batch_differences: int
    max_logit_difference: float

    @property
    def token_agreement(self) -> float:
        """Share of PyTorch's tokens found at the same place."""
        return self.num_equal_tokens / max(1, self.num_tokens)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The same inputs decoded one by one and in batches of `BATCH_ROWS` rows of mixed lengths."""

    alone: list[Answer]
    together: list[Answer]


@dataclasses.dataclass(frozen=True)
class VerificationReport:
    """What was checked; nothing in it failed.

    Attributes:
        bundle: its folder.
        num_golden_examples: answered as recorded.
        agreement: with PyTorch over held-out inputs; None without a run to compare with.
    """

    bundle: Path
    num_golden_examples: int
    agreement: Agreement | None


def verify_bundle(
    bundle_folder: Path,
    run_folder: Path | None = None,
    *,
    data: Path | None = None,
    num_held_out: int = 1_000,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> VerificationReport:
    """Check a bundle's files and golden examples and, given its run, hold it against PyTorch.

    Raises:
        BundleError: a file is damaged or a golden example gets another answer.
        RunError: the run cannot be read.
        UsageError: the bundle was exported from another run.
        ExportError: the answers are not PyTorch's, or change in a batch.
    """
    bundle = Bundle.read(bundle_folder)
    backend = Backend.load(bundle, provider="cpu", num_threads=1)
    check_answers(backend)
    num_golden = len(bundle.manifest.golden_examples)
    if run_folder is None:
        return VerificationReport(bundle_folder, num_golden, None)
    run = load_run(run_folder)
    _check_origin(bundle, run, run_folder)
    agreement = verify_against(backend, run, held_out(run, num_held_out, data), progress)[0]
    return VerificationReport(bundle_folder, num_golden, agreement)


def _check_origin(bundle: Bundle, run: Run, run_folder: Path) -> None:
    """Refuse a run that the bundle was not exported from, whose inputs the graphs may not even take."""
    manifest, dims = bundle.manifest, run.model.dims
    facts: list[tuple[str, object, object]] = [("task", manifest.task, dims.task)]
    facts += [
        (name.replace("_", " "), value, getattr(dims, name))
        for name, value in manifest.dimensions.model_dump(exclude={"num_parameters"}).items()
    ]
    recorded = manifest.provenance
    facts += [
        (name.replace("_", " "), recorded[name], value)
        for name, value in (("training_step", run.step), ("training_metrics", dict(run.metrics)))
        if name in recorded
    ]
    for name, in_bundle, in_run in facts:
        if in_bundle != in_run:
            raise UsageError(
                f"{bundle.path} was not exported from {run_folder}: its {name} is {in_bundle}, the run's {in_run}"
            )


def verify_against(
    backend: Backend, run: Run, examples: HeldOut, progress: Callable[[str, int, int], None]
) -> tuple[Agreement, list[Hypothesis], Decoded]:
    """Decode `examples` with PyTorch and with the bundle, and compare.

    Raises:
        ExportError: an answer changes in a batch, a log-probability is no number, or an fp32 bundle parts from PyTorch
            without a tie.
    """
    total = 2 * len(examples.inputs)
    progress("decoding held-out inputs with PyTorch", 0, total)
    reference = greedy_decode(run.model, examples.inputs, examples.max_tokens)
    done = len(examples.inputs)

    def on_progress(num_inputs: int) -> None:
        nonlocal done
        done += num_inputs
        progress("decoding them with the bundle, alone and together", done, total)

    decoded = decode_both_ways(backend, examples.inputs, examples.max_tokens, on_progress)
    agreement = compare(backend, run.model, examples.inputs, reference, decoded)
    _check(agreement, backend.bundle.manifest.precision)
    return agreement, reference, decoded


def decode_both_ways(
    backend: Backend, inputs: Sequence[Sequence[int]], max_tokens: int, on_progress: Callable[[int], None]
) -> Decoded:
    """Greedy answers alone and in batches of `BATCH_ROWS`; `on_progress` hears how many inputs are done."""
    parameters = DecodingParameters(max_tokens=max_tokens)
    decoded = Decoded([], [])
    for start in range(0, len(inputs), 4 * BATCH_ROWS):
        part = [(ids, parameters) for ids in inputs[start : start + 4 * BATCH_ROWS]]
        decoded.together.extend(each.best for each in decode_offline(backend, part, num_slots=BATCH_ROWS))
        decoded.alone.extend(each.best for each in decode_offline(backend, part, num_slots=1))
        on_progress(len(part))
    return decoded


def compare(
    backend: Backend,
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    reference: Sequence[Hypothesis],
    decoded: Decoded,
) -> Agreement:
    """Hold the bundle's answers against PyTorch's."""
    tokens = [answer.with_end(END_ID) for answer in decoded.together]
    partings = [_parting(ours, theirs) for ours, theirs in zip(tokens, reference, strict=True)]
    return Agreement(
        num_inputs=len(inputs),
        num_tokens=sum(len(hypothesis.token_ids) for hypothesis in reference),
        num_equal_inputs=sum(parting is None for parting in partings),
        num_equal_tokens=sum(
            a == b
            for ours, theirs in zip(tokens, reference, strict=True)
            for a, b in zip(ours, theirs.token_ids)  # noqa: B905
        ),
        num_ties=sum(parting is not None and parting < TIE for parting in partings),
        num_disagreements=sum(parting is not None and parting >= TIE for parting in partings),
        num_batch_differences=sum(
            a.token_ids != b.token_ids for a, b in zip(decoded.alone, decoded.together, strict=True)
        ),
        max_logit_difference=_max_logit_difference(
            backend, model, inputs[:_NUM_LOGIT_INPUTS], reference[:_NUM_LOGIT_INPUTS]
        ),
    )


def _check(agreement: Agreement, precision: str) -> None:
    # First: answers chosen from what is no number may differ in any way.
    if not math.isfinite(agreement.max_logit_difference):
        raise ExportError(f"log-probabilities are no numbers: the model's activations go beyond {precision}")
    if agreement.num_batch_differences:
        raise ExportError(
            f"{agreement.num_batch_differences} of {agreement.num_inputs} held-out inputs are answered "
            "differently alone and in a batch"
        )
    if precision == "fp32" and agreement.num_disagreements:
        raise ExportError(
            f"{agreement.num_disagreements} of {agreement.num_inputs} held-out inputs are answered differently "
            f"from PyTorch (ties under {TIE} not counted); largest logit difference "
            f"{agreement.max_logit_difference:.2e}"
        )


def _parting(ours: Sequence[int], theirs: Hypothesis) -> float | None:
    """PyTorch's margin at the first token that differs; None where none does."""
    for a, b, margin in zip(ours, theirs.token_ids, theirs.margins):  # noqa: B905 the shorter one ends the comparison
        if a != b:
            return margin
    assert len(ours) == len(theirs.token_ids), "answers with the same tokens end at the same limit"
    return None


@torch.inference_mode()
def _max_logit_difference(
    backend: Backend,
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    reference: Sequence[Hypothesis],
) -> float:
    order = sorted(range(len(inputs)), key=lambda index: -len(reference[index].token_ids))
    sources, outputs = [inputs[i] for i in order], [reference[i].token_ids for i in order]
    prefixes = sources if isinstance(model, LanguageModel) else [[BEGIN_ID]] * len(sources)
    read = pad_right([[*prefix, *output][:-1] for prefix, output in zip(prefixes, outputs, strict=True)])
    logits = model(read) if isinstance(model, LanguageModel) else model(pad_right(sources), read)
    expected = logits.log_softmax(dim=-1)
    first = torch.tensor([len(prefix) - 1 for prefix in prefixes])
    differences = [0.0]
    for step, (num_rows, ours) in enumerate(forced_steps(backend, sources, outputs)):
        theirs = expected[torch.arange(num_rows), first[:num_rows] + step]
        differences.append(float((torch.from_numpy(ours) - theirs).abs().max()))
    return float(np.max(differences))  # NaN where one is, which Python's own max would pass by
