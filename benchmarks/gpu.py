"""Decoding speed on a GPU: Dragoman's engine with ONNX Runtime's CUDA provider against PyTorch eager on the same GPU.

    python -m benchmarks.gpu --data DIR --run runs/multi30k
    python -m benchmarks.gpu --data DIR --quick

DIR holds Multi30k. Models: the run, if one is given, and two with random weights, `tiny` and `base`
(`benchmarks/engine.py`). Both sides run in fp16; PyTorch takes batches of like lengths, of up to 128 inputs, or of 64
with beams. First the GPU's answers are held against those of the same bundle on the CPU and against PyTorch's in fp32.

Work: `offline`, all sources of test_2016_flickr at their real lengths, greedy and by beam search, and 32 forced tokens
for 1 to 128 inputs together, greedy. A sweep of lanes and slots comes before; then rounds, in turn; tokens/s are
medians over them, and the ratio is Dragoman's speed over PyTorch's in the same round.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import torch
from benchmarks.report import (
    add_json_option,
    argument_parser,
    describe_machine,
    positive,
    print_table,
    write_json,
)
from benchmarks.serving.agreement import check_agreement
from benchmarks.serving.contest import Pace, compete
from benchmarks.serving.dragoman_systems import DragomanOnDevice
from benchmarks.serving.engine_report import Findings, agreement_rows, figures_of, speed_rows
from benchmarks.serving.pytorch_system import PyTorchEager
from benchmarks.serving.subject import (
    BEAM_SIZE,
    Subject,
    add_subject_options,
    export_backend,
    fixed_workload,
    offline_workloads,
    subjects,
)
from benchmarks.serving.systems import System, Workload
from rich.console import Console

from dragoman.common.errors import OperationError
from dragoman.model.transformer import TranslationModel
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.models.loader import load_backend

WHOLE: Final = Pace(rounds=3, turn_s=0.3, sweep_turns=1, settle_s=0.0)
QUICK: Final = Pace(rounds=2, turn_s=0.0, sweep_turns=0, settle_s=0.0)


def measure(
    subject: Subject, folder: Path, pace: Pace, num_inputs: int, num_agreement: int, console: Console
) -> Findings:
    """Export, check and time one model."""
    with console.status(f"{subject.name}: exporting"):
        on_gpu = export_backend(subject, "fp16", folder, EngineSettings(provider="cuda"))
        on_cpu = load_backend(Bundle(folder, on_gpu.bundle.manifest), EngineSettings())
    with console.status(f"{subject.name}: comparing answers"):
        agreements = check_agreement(subject, num_agreement, [on_gpu, on_cpu], [])
    halves = copy.deepcopy(subject.model).half().cuda()
    assert isinstance(halves, TranslationModel)
    standings = []
    with closing(DragomanOnDevice(on_gpu)) as ours:
        systems: list[System] = [ours, PyTorchEager(halves, "fp16")]
        for workload in _workloads(subject, num_inputs):
            with console.status(f"{subject.name}: {workload.name}"):
                new = compete(systems, workload, pace)
            for name, *figures in speed_rows(new):
                console.print(name, *figures)
            standings += new
    return Findings(subject, agreements, standings, {})


def _workloads(subject: Subject, num_inputs: int) -> Iterator[Workload]:
    yield from offline_workloads(subject, num_inputs, (1, BEAM_SIZE))
    for number in (1, 8, 32, 128):
        if number <= num_inputs:
            yield fixed_workload(subject, f"{number} together, greedy", number, number)


def report(found: Findings, machine: dict[str, Any]) -> None:
    """Print both tables of a model."""
    columns = ["", "equal answers", "parted at a tie", "log-probability error"]
    title = "Answers against PyTorch's in fp32 on the CPU: first on the GPU, then the same bundle on the CPU"
    print_table(title, columns, list(agreement_rows(found)), machine)
    columns = ["", "tokens/s", "range", "dragoman's ratio", "setting"]
    title = f"{found.subject.name}, {machine['gpu']}: median tokens/s, and how many times as fast dragoman is"
    print_table(title, columns, list(speed_rows(found.standings)), machine)


def main() -> None:
    parser = argument_parser(__doc__)
    add_subject_options(parser)
    parser.add_argument(
        "--offline-inputs", type=positive, default=1_000, metavar="N", help="the first N sources"
    )
    parser.add_argument(
        "--agreement-inputs", type=positive, default=200, metavar="N", help="answers compared"
    )
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_json_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here")
    machine = {**describe_machine(), "gpu": torch.cuda.get_device_name()}
    pace, inputs, agreement = WHOLE, options.offline_inputs, options.agreement_inputs
    if options.quick:
        pace, inputs, agreement = QUICK, 16, 16
    figures = []
    try:
        for subject in subjects(options):
            with tempfile.TemporaryDirectory(prefix="dragoman-gpu-") as folder:
                found = measure(subject, Path(folder) / "bundle", pace, inputs, agreement, console)
            report(found, machine)
            figures.append(figures_of(found))
            write_json(options.json, {"benchmark": "gpu", "machine": machine, "models": figures})
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
