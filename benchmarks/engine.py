"""Decoding speed: Dragoman's engine against CTranslate2 at its best settings and PyTorch eager, on the same weights.

    python -m benchmarks.engine --data DIR --run runs/multi30k
    python -m benchmarks.engine --data DIR --quick

DIR holds Multi30k. Models: the run, if one is given, and two with random weights: `tiny` (256 wide, 3+3 layers,
vocabulary 8,000) and `base` (Vaswani et al. 2017, vocabulary 32,000). First every system's greedy answers are held
against PyTorch's; if an fp32 one agrees on less than 99 % of the inputs, there is nothing to compare and the exit
code is 1.

Work: `offline`, all sources of test_2016_flickr at their real lengths, each system batching as it likes; and 32 forced
tokens for one input alone and for 1 to 64 inputs a core. Each greedy and by beam search. A sweep of its own settings
comes before, for every system. Then rounds, each system in turn; tokens/s are medians over them, and the ratio is
Dragoman's speed over the row's in the same round, in the same precision where both have it. The whole takes more
than an hour, and each model's tables and figures come as soon as it is through; parts of it:

    python -m benchmarks.engine --data DIR --sizes base --work offline --precisions int8 --beam-sizes 1

`bare products` is a limit, not a system: ONNX Runtime running a step's matrix products and nothing else. The last
table holds what was reached against the rate of such products at 256 rows.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

from benchmarks.report import add_json_option, argument_parser, positive
from benchmarks.serving.agreement import MIN_FP32_SHARE, check_agreement
from benchmarks.serving.contest import Pace, compete
from benchmarks.serving.ctranslate2_system import CTranslate2, convert
from benchmarks.serving.dragoman_systems import DragomanEngine, DragomanLanes
from benchmarks.serving.engine_report import Findings, report, speed_rows, write_figures
from benchmarks.serving.limit import BareProducts
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.pytorch_system import PyTorchEager
from benchmarks.serving.subject import (
    BEAM_SIZE,
    Subject,
    add_subject_options,
    export_backend,
    fixed_workloads,
    offline_workloads,
    subjects,
)
from benchmarks.serving.systems import System, Workload
from rich.console import Console

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.model.training.hardware import set_threads

PRECISIONS: Final[tuple[Literal["fp32", "int8"], ...]] = ("fp32", "int8")
WORKS: Final = ("offline", "fixed")


class Effort(NamedTuple):
    """How much of the benchmark is run."""

    pace: Pace
    rows: Sequence[int]
    num_offline_inputs: int
    num_agreement_inputs: int


class Part(NamedTuple):
    """What of it is run."""

    works: Sequence[str]
    precisions: Sequence[Literal["fp32", "int8"]]
    beam_sizes: Sequence[int]


WHOLE: Final = Effort(Pace(rounds=3, turn_s=0.5, sweep_turns=2, settle_s=0.3), (1, 8, 32, 64), 1_000, 200)
QUICK: Final = Effort(Pace(rounds=2, turn_s=0.0, sweep_turns=0, settle_s=0.0), (4,), 16, 16)


def measure(subject: Subject, python: Path, effort: Effort, part: Part, console: Console) -> Findings:
    """Export, convert, check and time one model."""
    num_cores = usable_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-engine-")))
        with console.status(f"{subject.name}: exporting"):
            backends = [
                export_backend(subject, precision, folder / precision) for precision in part.precisions
            ]
            convert(subject.model, python, folder / "ctranslate2")
        peers = [CTranslate2(python, folder / "ctranslate2", kind, num_cores) for kind in part.precisions]
        bare = [BareProducts(subject.model, kind, num_cores) for kind in part.precisions]
        engines: list[System] = [DragomanEngine(backend) for backend in backends]
        lanes: list[System] = [DragomanLanes(backend) for backend in backends]
        eager = [PyTorchEager(subject.model)] if "fp32" in part.precisions else []
        systems = [*engines, *lanes, *peers, *eager, *bare]
        for system in systems:
            stack.callback(system.close)
        with console.status(f"{subject.name}: comparing answers"):
            agreements = check_agreement(subject, effort.num_agreement_inputs, backends, peers)
        # As `dragoman serve` does: the collector would look through all of PyTorch, which a server has not loaded.
        gc.collect()
        gc.freeze()
        standings = []
        comparable = all(one.holds for one in agreements)
        for workload in _workloads(subject, effort, part, num_cores) if comparable else ():
            with console.status(f"{subject.name}: {workload.name}"):
                new = compete(systems, workload, effort.pace)
            for name, *figures in speed_rows(new):  # what an interruption must not lose
                console.print(name, *figures)
            standings += new
        peaks = {one.precision: one.peak_rate() for one in bare}
    return Findings(subject, agreements, standings, peaks)


def _workloads(subject: Subject, effort: Effort, part: Part, num_cores: int) -> Iterator[Workload]:
    if "offline" in part.works:
        yield from offline_workloads(subject, effort.num_offline_inputs, part.beam_sizes)
    if "fixed" in part.works:
        yield from fixed_workloads(subject, effort.rows, num_cores, part.beam_sizes)


def _effort(options: argparse.Namespace) -> Effort:
    effort = QUICK if options.quick else WHOLE
    return effort._replace(
        pace=replace(effort.pace, rounds=options.rounds or effort.pace.rounds),
        rows=options.rows or effort.rows,
        num_offline_inputs=options.offline_inputs or effort.num_offline_inputs,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    add_subject_options(parser)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS, help="which work")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="PyTorch runs with fp32 only"
    )
    parser.add_argument(
        "--beam-sizes",
        nargs="+",
        type=positive,
        default=(1, BEAM_SIZE),
        metavar="N",
        help="1 is greedy",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=positive,
        metavar="N",
        help="inputs a core of the fixed work, in place of 1 8 32 64",
    )
    parser.add_argument(
        "--offline-inputs", type=positive, metavar="N", help="only the first N sources, in place of all"
    )
    parser.add_argument(
        "--rounds", type=positive, metavar="N", help="turns of each system that count, in place of 3"
    )
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    set_threads("auto")
    python = peers_python(options.peers_venv)
    effort, part = _effort(options), Part(options.work, options.precisions, options.beam_sizes)
    try:
        findings = []
        for subject in list(subjects(options)):  # all of them, before hours of work
            findings.append(measure(subject, python, effort, part, console))
            report(findings[-1])
            write_figures(findings, options.json)
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    if not all(one.holds for found in findings for one in found.agreements):
        sys.exit(
            f"an fp32 system does not compute PyTorch's model: under {MIN_FP32_SHARE:.0%} equal, or far off"
        )


if __name__ == "__main__":
    main()
