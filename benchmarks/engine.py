"""Decoding speed: Dragoman's engine against CTranslate2 at its best settings and PyTorch eager, on the same weights.

    python benchmarks/engine.py --data DIR --run runs/multi30k
    python benchmarks/engine.py --data DIR --quick

DIR holds Multi30k. Models: the run, if one is given, and two with random weights: `tiny` (256 wide, 3+3 layers,
vocabulary 8,000) and `base` (Vaswani et al. 2017, vocabulary 32,000). First every system's greedy answers are held
against PyTorch's; if an fp32 one agrees on less than 99 % of the inputs, there is nothing to compare and the exit
code is 1.

Work: `offline`, all sources of test_2016_flickr at their real lengths, each system batching as it likes; and 32 forced
tokens for one input alone and for 1 to 64 inputs a core. Each greedy and by beam search. A sweep of its own settings
comes before, for every system. Then rounds, each system in turn; tokens/s are medians over them, and the ratio is
Dragoman's speed over the row's in the same round, in the same precision where both have it.

`bare products` is a limit, not a system: ONNX Runtime running a step's matrix products and nothing else. The last
table holds what was reached against the rate of such products at 256 rows.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rich.console import Console

from benchmarks.report import add_json_option, argument_parser
from benchmarks.serving.agreement import MIN_FP32_SHARE, check_agreement
from benchmarks.serving.contest import Pace, compete
from benchmarks.serving.ctranslate2_system import CTranslate2, convert
from benchmarks.serving.dragoman_systems import DragomanEngine, DragomanLanes
from benchmarks.serving.engine_report import Findings, report
from benchmarks.serving.limit import BareProducts
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.pytorch_system import PyTorchEager
from benchmarks.serving.subject import (
    RANDOM_SIZES,
    Subject,
    fixed_workloads,
    load_backend,
    offline_workloads,
    random_subject,
    run_subject,
)
from benchmarks.serving.systems import System
from common.cpu import usable_cores
from common.errors import OperationError
from model.training.hardware import set_threads

PRECISIONS: Final[tuple[Literal["fp32", "int8"], ...]] = ("fp32", "int8")


class Effort(NamedTuple):
    """How much of the benchmark is run."""

    pace: Pace
    rows: Sequence[int]
    num_offline_inputs: int
    num_agreement_inputs: int


WHOLE: Final = Effort(Pace(rounds=5, turn_s=0.5, sweep_turns=2, settle_s=0.3), (1, 8, 32, 64), 1_000, 200)
QUICK: Final = Effort(Pace(rounds=2, turn_s=0.0, sweep_turns=0, settle_s=0.0), (4,), 16, 16)


def measure(subject: Subject, python: Path, effort: Effort, console: Console) -> Findings:
    """Export, convert, check and time one model."""
    num_cores = usable_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-engine-")))
        with console.status(f"{subject.name}: exporting"):
            backends = [load_backend(subject, precision, folder / precision) for precision in PRECISIONS]
            convert(subject.model, python, folder / "ctranslate2")
        peers = [CTranslate2(python, folder / "ctranslate2", kind, num_cores) for kind in PRECISIONS]
        bare = [BareProducts(subject.model, kind, num_cores) for kind in PRECISIONS]
        engines: list[System] = [DragomanEngine(backend) for backend in backends]
        lanes: list[System] = [DragomanLanes(backend) for backend in backends]
        systems = [*engines, *lanes, *peers, PyTorchEager(subject.model), *bare]
        for system in systems:
            stack.callback(system.close)
        with console.status(f"{subject.name}: comparing answers"):
            agreements = check_agreement(subject, effort.num_agreement_inputs, backends, peers)
        standings = []
        workloads = [
            *offline_workloads(subject, effort.num_offline_inputs),
            *fixed_workloads(subject, effort.rows, num_cores),
        ]
        for workload in workloads if all(one.holds for one in agreements) else []:
            with console.status(f"{subject.name}: {workload.name}"):
                standings += compete(systems, workload, effort.pace)
        peaks = {one.precision: one.peak_rate() for one in bare}
    return Findings(subject, agreements, standings, peaks)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with Multi30k")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run folder of the recipe multi30k")
    parser.add_argument(
        "--sizes", nargs="*", choices=RANDOM_SIZES, default=RANDOM_SIZES, help="random weights of these sizes"
    )
    parser.add_argument("--seed", type=int, default=1, help="of random weights and inputs")
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    set_threads("auto")
    python = peers_python(options.peers_venv)
    effort = QUICK if options.quick else WHOLE
    try:
        subjects = [run_subject(options.run, options.data)] if options.run else []
        subjects += [random_subject(size, options.data, options.seed) for size in options.sizes]
        findings = [measure(subject, python, effort, console) for subject in subjects]
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    report(findings, options.json)
    if not all(one.holds for found in findings for one in found.agreements):
        sys.exit(
            f"an fp32 system does not compute PyTorch's model: under {MIN_FP32_SHARE:.0%} equal, or far off"
        )


if __name__ == "__main__":
    main()
