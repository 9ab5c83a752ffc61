"""Growth: what a token costs as sources, answers, streams and the model grow, and the memory it takes.

    python -m benchmarks.growth --plot growth.png
    python -m benchmarks.growth --quick

Dragoman's engine in process against CTranslate2 in a process of its own, on the same random weights, greedily. Four
series, in each of which one thing grows: the source's length from 8 to 512 tokens; the answer's, the same; 1 to 512
inputs that are there at once; and the model: `mini` (128 wide, 2+2 layers), `tiny` (256 wide, 3+3), `base` (Vaswani et
al. 2017). What does not grow is 16 tokens of source, 32 of answer, 8 inputs a core and `tiny`. Answers are forced to
their length. Every model permits 512 tokens on both sides, so Dragoman's arenas have room for as many at every point.
They have a slot for each input, up to a server's default; where inputs are more, each system batches as it likes.

A sweep of its own settings comes before, for every system; then rounds, each system in turn. Time is the median over
them, a token of all answers together; the ratio is Dragoman's speed over CTranslate2's in the same round. The exponent
between two points is e in time ~ size^e: at 0 a token costs the same, at 1 in proportion. Longer answers and more
streams have more tokens as well: there the whole work's exponent is one more.

Memory is resident memory, of each system in a fresh process at each point, without that of its imports: with the model
loaded, and at most while decoding. Arenas are what Dragoman reserves for keys and values at start; their pages become
resident when rows are first used. Answers are not compared here: `engine.py` does that, on the same kind of weights.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Literal, NamedTuple

from benchmarks.report import add_json_option, add_plot_option, argument_parser
from benchmarks.serving.contest import Pace, Standing, compete
from benchmarks.serving.ctranslate2_system import CTranslate2, convert
from benchmarks.serving.dragoman_systems import DragomanEngine
from benchmarks.serving.growth_report import Growth, Measured, plot, report_growth
from benchmarks.serving.growth_subject import Point, Work, growth_series, growth_subject
from benchmarks.serving.memory import DragomanProcess, arena_bytes, measure_memory
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.subject import Subject, export_backend
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.model.training.hardware import set_threads
from dragoman.server.execution.backend import Backend


class Effort(NamedTuple):
    """How much of the benchmark is run."""

    pace: Pace
    work: Work


WHOLE: Final = Effort(
    Pace(rounds=5, turn_s=0.5, sweep_turns=2, settle_s=0.3),
    Work(lengths=(8, 32, 128, 512), streams=(1, 8, 64, 512), sizes=("mini", "tiny", "base"), size="tiny"),
)
QUICK: Final = Effort(
    Pace(rounds=2, turn_s=0.0, sweep_turns=0, settle_s=0.0),
    Work(lengths=(8, 32), streams=(1, 4), sizes=("mini", "tiny"), size="mini"),
)


@dataclasses.dataclass(frozen=True)
class Contest:
    """Both systems with the weights of one model: those that are timed, and how to start others to weigh."""

    backend: Backend
    converted: Path
    python: Path
    precision: Literal["fp32", "int8"]
    ours: DragomanEngine
    theirs: CTranslate2

    @classmethod
    def enter(
        cls,
        subject: Subject,
        python: Path,
        precision: Literal["fp32", "int8"],
        folder: Path,
        stack: ExitStack,
    ) -> "Contest":
        """Export and convert to `folder`, which is made; both systems run until `stack` closes."""
        backend = export_backend(subject, precision, folder / "dragoman")
        converted = folder / "ctranslate2"
        convert(subject.model, python, converted)
        ours = stack.enter_context(closing(DragomanEngine(backend)))
        theirs = stack.enter_context(closing(CTranslate2(python, converted, precision, usable_cores())))
        return cls(backend, converted, python, precision, ours, theirs)

    def measure(self, point: Point, pace: Pace) -> list[Measured]:
        """Time both, then weigh each at the setting that spoke for it.

        Raises:
            RuntimeError: an answer has not the length that was forced, or a process failed.
        """
        ours, theirs = compete([self.ours, self.theirs], point.workload, pace)
        check_lengths([ours, theirs])
        assert ours.setting is not None
        assert theirs.setting is not None
        with closing(DragomanProcess(self.backend.bundle)) as process:
            our_memory = measure_memory(process, ours.setting, point.workload)
        with closing(CTranslate2(self.python, self.converted, self.precision, usable_cores())) as peer:
            their_memory = measure_memory(peer, theirs.setting, point.workload)
        return [
            Measured(point, ours, our_memory, arena_bytes(self.backend.bundle.manifest, ours.setting)),
            Measured(point, theirs, their_memory, None),
        ]


def check_lengths(standings: Sequence[Standing]) -> None:
    """Time a token means nothing where a system ends its answers early.

    Raises:
        RuntimeError: one did.
    """
    for one in standings:
        forced = len(one.workload.inputs) * one.workload.max_tokens
        for reading in one.readings:
            if reading.num_tokens != forced:
                raise RuntimeError(
                    f"{one.system.name}, {one.workload.name}: {reading.num_tokens} tokens, not {forced}"
                )


def measure(
    effort: Effort, python: Path, precision: Literal["fp32", "int8"], seed: int, console: Console
) -> list[Growth]:
    """All series, one after the other."""
    subjects = {size: growth_subject(size, seed) for size in effort.work.sizes}
    all_series = list(growth_series(subjects, effort.work, seed, usable_cores()))
    num_steps = len(subjects) + sum(len(series.points) for series in all_series)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    growths = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-growth-")))
        bar = stack.enter_context(Progress(*columns, console=console, transient=True))
        task = bar.add_task("", total=num_steps)
        contests = {}
        for size, subject in subjects.items():
            bar.update(task, description=f"{size}: exporting")
            contests[size] = Contest.enter(subject, python, precision, folder / size, stack)
            bar.advance(task)
        for series in all_series:
            measured = []
            for point in series.points:
                bar.update(task, description=f"{series.name}: {point.workload.name}")
                measured += contests[point.size].measure(point, effort.pace)
                bar.advance(task)
            growths.append(Growth(series, measured))
    return growths


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="of both systems")
    parser.add_argument("--seed", type=int, default=1, help="of weights and inputs")
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_plot_option(parser, "time and memory along each series")
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    set_threads("auto")
    python = peers_python(options.peers_venv)
    effort = QUICK if options.quick else WHOLE
    try:
        growths = measure(effort, python, options.precision, options.seed, console)
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    report_growth(growths, options.precision, options.json)
    if options.plot:
        plot(growths, options.precision, options.plot)


if __name__ == "__main__":
    main()
