"""A training run becomes a bundle: export, quantise, verify through the serving backend, measure, seal."""

import dataclasses
import datetime as dt
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dragoman.common.files import atomic_write, sha256_of
from dragoman.export.destination import bundle_destination
from dragoman.export.graphs import generation_graphs, translation_graphs
from dragoman.export.halves import halved
from dragoman.export.held_out import HeldOut, calibration_inputs, held_out
from dragoman.export.onnx_graphs import to_onnx
from dragoman.export.quality import generation_quality, reference_quality, translation_quality
from dragoman.export.quantization import quantized
from dragoman.export.row_graphs import row_graphs
from dragoman.export.verification import Agreement, Decoded, verify_against
from dragoman.model.decoding import Hypothesis
from dragoman.model.run import Run, load_run
from dragoman.model.tokenizer import BEGIN_ID, END_ID, PADDING_ID, UNKNOWN_ID
from dragoman.model.transformer import TranslationModel
from dragoman.server.bundle import reader as bundle_format
from dragoman.server.bundle.manifest import (
    Dimensions,
    FileRecord,
    GoldenExample,
    GraphRecord,
    Limits,
    Manifest,
    Precision,
    QualityFigure,
    SpecialTokens,
)
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.engine.trial import check_answers
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.kernels import NO_KERNELS

__all__ = ["ExportReport", "Progress", "export_run", "write_graphs"]

Progress = Callable[[str, int, int], None]
"""Told the stage in words, steps done and steps in all."""

NUM_HELD_OUT = 1_000
_NUM_GOLDEN = 8
_GOLDEN_MARGIN = 0.1  # another CPU's rounding must not turn a golden example over


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with PyTorch.

    Attributes:
        fp32_quality: the figures of `quality` as PyTorch reaches them in fp32; empty where the bundle is fp32 too.
        corpus_changes: as `HeldOut.changes`.
    """

    bundle: Path
    precision: str
    num_bytes: int
    agreement: Agreement
    quality: tuple[QualityFigure, ...]
    fp32_quality: tuple[QualityFigure, ...]
    corpus_changes: tuple[str, ...] = ()


def export_run(
    run_folder: Path,
    bundle_folder: Path,
    *,
    precision: Precision = "fp32",
    data: Path | None = None,
    replaces: bool = False,
    num_held_out: int = NUM_HELD_OUT,
    progress: Progress = lambda *_: None,
) -> ExportReport:
    """Write the bundle of a run, whole and verified, or nothing.

    Args:
        run_folder: what `train` left.
        bundle_folder: <models>/<name>/<version>, new; or another bundle, where `replaces` is True.
        precision: "fp32", "fp16" for half precision (`dragoman.export.halves`), or "int8" for integer products with
        scales
            measured on the validation split.
        data: where the run's corpus lies now, if not where it was trained from.
        replaces: whether a bundle that is there may be replaced; nothing else ever is.
        num_held_out: held-out inputs to verify and measure on.
        progress: hears how far it is.

    Raises:
        UsageError: `bundle_folder` is no place to write this bundle to.
        RunError: the run cannot be read.
        CorpusError: its held-out examples cannot be read.
        ExportError: an fp32 bundle disagrees with PyTorch, a batch changes an answer, or fp16 has no room for a number.
        OperationError: the disk is full or the place cannot be written.
    """
    with bundle_destination(bundle_folder, run_folder, replaces=replaces).folder() as folder:
        run = load_run(run_folder)
        examples = held_out(run, num_held_out, data)
        calibration = calibration_inputs(run, data) if precision == "int8" else ()
        manifest = write_graphs(run, folder, precision, calibration, progress)
        backend = Backend.load(bundle_format.Bundle(folder, manifest), provider="cpu", num_threads=1)
        agreement, reference, decoded = verify_against(backend, run, examples, progress)
        progress("measuring quality", 0, 1)
        quality = _quality(run, backend, examples, decoded)
        fp32_quality = () if precision == "fp32" else reference_quality(run, examples, reference)
        verification = {
            **dataclasses.asdict(agreement),
            "token_agreement": agreement.token_agreement,
            "data": examples.data,
            "corpus_changes": examples.changes,
            "fp32_quality": {figure.metric: figure.value for figure in fp32_quality or quality},
        }
        golden_examples = _golden_examples(examples, reference, decoded)
        sealed = manifest.model_copy(
            update={"quality": quality, "verification": verification, "golden_examples": golden_examples}
        )
        atomic_write(folder / bundle_format.MANIFEST_NAME, sealed.model_dump_json(indent=2) + "\n")
        written = bundle_format.Bundle.read(folder)
        check_answers(Backend(written, backend.sessions))
        _check_without_kernels(written, backend.kernels)
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    return ExportReport(
        bundle_folder, precision, num_bytes, agreement, quality, fp32_quality, tuple(examples.changes)
    )


def write_graphs(
    run: Run,
    folder: Path,
    precision: Precision,
    calibration: Sequence[Sequence[int]],
    progress: Progress,
) -> Manifest:
    """Write the graphs and the tokenizer; returns the manifest, not yet verified or written.

    `calibration` is what the model reads while the ranges of int8 activations are measured.
    """
    model = run.model
    if precision == "int8":
        progress("measuring the ranges of activations", 0, 1)
        model = quantized(model, calibration)
    elif precision == "fp16":
        model = halved(model)
    graphs = translation_graphs(model) if isinstance(model, TranslationModel) else generation_graphs(model)
    for index, graph in enumerate(graphs):
        progress(f"exporting {graph.name}", index, len(graphs))
        atomic_write(folder / f"{graph.name}.onnx", to_onnx(graph).SerializeToString())
    records = {graph.name: _record(graph.name, graph.inputs, graph.outputs) for graph in graphs}
    if precision == "fp16":
        [decode] = (graph for graph in graphs if graph.name == "decode")
        for name, row_graph in row_graphs(decode):
            atomic_write(folder / f"{name}.onnx", row_graph.SerializeToString())
            values = row_graph.graph.input, row_graph.graph.output
            records[name] = _record(name, *([value.name for value in each] for each in values))
    atomic_write(folder / bundle_format.TOKENIZER_NAME, run.tokenizer.to_str(pretty=True))
    return _manifest(run, records, folder, precision)


def _record(name: str, inputs: Iterable[str], outputs: Iterable[str]) -> GraphRecord:
    return GraphRecord(file=f"{name}.onnx", inputs=tuple(inputs), outputs=tuple(outputs))


def _check_without_kernels(bundle: bundle_format.Bundle, kernels: str) -> None:
    """Hold ONNX Runtime's own operators, with which a server without kernels decodes, to the golden examples.

    Raises:
        BundleError: one gets another answer.
    """
    if kernels != NO_KERNELS:  # or they have answered already
        plain = Backend.load(bundle, provider="cpu", num_threads=1, kernels=NO_KERNELS)
        check_golden_examples(plain)


def _quality(run: Run, backend: Backend, examples: HeldOut, decoded: Decoded) -> tuple[QualityFigure, ...]:
    if isinstance(run.model, TranslationModel):
        return translation_quality(run, examples, (answer.token_ids for answer in decoded.together))
    return generation_quality(backend, run.tokenizer, examples.documents, examples.data)


def _manifest(
    run: Run,
    graphs: dict[str, GraphRecord],
    folder: Path,
    precision: Precision,
) -> Manifest:
    dims = run.model.dims
    translates = dims.task == "translation"
    # The end token needs a place of its own after the longest translation.
    capacity = dims.max_target_tokens + translates
    files = sorted(path for path in folder.iterdir())
    return Manifest(
        schema_version=bundle_format.SCHEMA_VERSION,
        task=dims.task,
        precision=precision,
        dimensions=Dimensions(
            vocabulary_size=dims.vocabulary_size,
            width=dims.width,
            num_heads=dims.num_heads,
            num_kv_heads=dims.num_kv_heads,
            head_size=dims.head_size,
            feed_forward_width=dims.feed_forward_width,
            num_encoder_layers=dims.num_encoder_layers,
            num_decoder_layers=dims.num_decoder_layers,
            num_parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        ),
        limits=Limits(
            max_source_tokens=dims.max_source_tokens if translates else capacity - 1,
            max_output_tokens=capacity if translates else capacity - 1,
            max_context_tokens=capacity,
        ),
        special_tokens=SpecialTokens(padding=PADDING_ID, unknown=UNKNOWN_ID, begin=BEGIN_ID, end=END_ID),
        graphs=graphs,
        files={
            path.name: FileRecord(sha256=sha256_of(path), num_bytes=path.stat().st_size) for path in files
        },
        provenance=_provenance(run),
        golden_examples=(),
    )


def _provenance(run: Run) -> dict[str, Any]:
    recipe = run.recipe.model_dump(mode="json")
    if "folder" in recipe["corpus"]:
        recipe["corpus"]["folder"] = None  # a path of the machine that trained it; evaluation takes --data
    return {
        "recipe": recipe,
        "training_step": run.step,
        "training_metrics": run.metrics,
        "commit": run.commit,
        "torch": run.torch_version,
        "onnxruntime": ort.__version__,  # whichever distribution it came with
        "dragoman": importlib.metadata.version("dragoman"),
        "exported": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _golden_examples(
    examples: HeldOut, reference: Sequence[Hypothesis], decoded: Decoded
) -> tuple[GoldenExample, ...]:
    """Answers far from any tie, of the shortest to the longest inputs; at least one."""

    def same(index: int) -> bool:
        ours = decoded.together[index].token_ids
        return ours == tuple(token for token in reference[index].token_ids if token != END_ID)

    safe = [
        index
        for index, hypothesis in enumerate(reference)
        if same(index) and min(hypothesis.margins, default=0.0) > _GOLDEN_MARGIN
    ]
    if not safe:
        safe = [max(range(len(reference)), key=lambda i: (same(i), min(reference[i].margins, default=0.0)))]
    safe.sort(key=lambda index: len(examples.inputs[index]))
    chosen = safe[:: max(1, len(safe) // _NUM_GOLDEN)][:_NUM_GOLDEN]
    return tuple(
        GoldenExample(
            text=examples.texts[index],
            max_tokens=examples.max_tokens,
            token_ids=decoded.together[index].token_ids,
            log_probability=decoded.together[index].log_probability,
        )
        for index in chosen
    )
