"""Latency under load: `dragoman serve` against CTranslate2 behind Triton and behind a plain grpc.aio server.

    python -m benchmarks.service runs/multi30k --data DIR --plot latency.png
    python -m benchmarks.service runs/multi30k --data DIR --quick

RUN is a run of the recipe multi30k; DIR holds Multi30k. All three serve the same weights, greedily, text to text,
on this machine, with default settings of Dragoman and, for CTranslate2, a worker of one thread a core, which batches
whatever waits. One load generator sends the sentences of test_2016_flickr, one a call, at Poisson arrivals of rising
rate (open loop). At each rate the services take turns, so that what the machine does meanwhile happens to all; the
others idle. Percentiles are medians over the rounds.

A service holds a rate when no call fails and p99 stays under 5 times its own latency without load; the second verdict
takes the fastest one's latency for all, as a slow service would have an easy bar; a third asks for the same p99 of all.
A service leaves the race when its p99 was beyond a quarter of a second at two rates: more comes than it can answer.

Last, answers a second of `dragoman serve` with callers who wait for each answer, beside those of its engine in process.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.report import add_json_option, add_plot_option, argument_parser, positive
from benchmarks.serving.ctranslate2_system import convert
from benchmarks.serving.load import Service, answers_of, open_loop, unloaded_latency
from benchmarks.serving.peers import add_peers_option, peers_python
from benchmarks.serving.served_share import served_shares
from benchmarks.serving.service_report import Race, plot, report
from benchmarks.serving.services import PeerModel, ctranslate2_service, dragoman_service, triton_service
from benchmarks.serving.subject import Subject, run_subject
from rich.console import Console

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.export.exporter import export_run
from dragoman.model.decoding import greedy_decode
from dragoman.model.run import TOKENIZER_FILE
from dragoman.model.training.hardware import set_threads

_NUM_UNLOADED: Final = 200
_MODEL: Final = "multi30k"


class Effort(NamedTuple):
    """How much is run."""

    rates: Sequence[float]  # requests a second, rising
    rounds: int
    duration_s: float
    num_held_out: int  # inputs that the export is verified on
    num_answers: int  # compared with PyTorch's


WHOLE: Final = Effort([round(50 * 1.25**step) for step in range(21)], 3, 5.0, 1_000, 200)
QUICK: Final = Effort([5.0, 10.0], 1, 2.0, 16, 8)


def run_race(races: Sequence[Race], effort: Effort, seed: int, console: Console) -> None:
    """Rising rates; at each, round after round, every service that is still in the race has a turn."""
    for race in races:
        open_loop(race.service, effort.rates[0], effort.duration_s, seed)  # warms up
        race.unloaded_s = unloaded_latency(race.service, _NUM_UNLOADED)
    for rate in effort.rates:
        running = [race for race in races if not race.is_over]
        for number in range(effort.rounds if running else 0):
            for race in running:
                with console.status(f"{rate:g} a second, round {number + 1}: {race.service.name}"):
                    load = open_loop(race.service, rate, effort.duration_s, seed + number)
                race.loads.setdefault(rate, []).append(load)


def enter(service: Service, references: Sequence[str]) -> Race:
    """A service that gives the answers it should; their text stands in the message as it is, whatever its format."""
    answers = answers_of(service, len(references))
    equal = [reference.encode() in answer for answer, reference in zip(answers, references, strict=True)]
    return Race(service, unloaded_s=0.0, equal_share=sum(equal) / len(equal))


def references_of(subject: Subject, num_inputs: int) -> list[str]:
    """What PyTorch makes of the first inputs, in fp32."""
    limit = subject.dims.max_target_tokens + 1
    decoded = greedy_decode(subject.model, subject.inputs[:num_inputs], limit)
    return [subject.run.tokenizer.decode(one.token_ids) for one in decoded]


def start_all(
    stack: ExitStack,
    subject: Subject,
    python: Path,
    folder: Path,
    effort: Effort,
    options: argparse.Namespace,
) -> list[Race]:
    """Export and convert the run and start all services until `stack` closes."""
    bundle = folder / "models" / _MODEL / "1"
    export_run(
        options.run,
        bundle,
        precision=options.precision,
        data=options.data,
        num_held_out=effort.num_held_out,
    )
    convert(subject.model, python, folder / "ctranslate2")
    peer = PeerModel(
        python=python,
        folder=folder / "ctranslate2",
        tokenizer=(options.run / TOKENIZER_FILE).resolve(),
        precision=options.precision,
        max_tokens=subject.dims.max_target_tokens + 1,
        num_cores=usable_cores(),
    )
    services = [
        dragoman_service(folder / "models", _MODEL, subject.texts),
        ctranslate2_service(peer, subject.texts),
        triton_service(peer, folder / "triton", subject.texts),
    ]
    references = references_of(subject, effort.num_answers)
    return [enter(stack.enter_context(service), references) for service in services]


def _effort(options: argparse.Namespace) -> Effort:
    effort = QUICK if options.quick else WHOLE
    return effort._replace(
        rates=sorted(options.rates or effort.rates),
        rounds=options.rounds or effort.rounds,
        duration_s=options.duration or effort.duration_s,
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of the recipe multi30k")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with Multi30k")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="of all services")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=positive,
        metavar="N",
        help="requests a second, rising, in place of 21 from 50",
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="turns at each rate, in place of 3")
    parser.add_argument("--duration", type=positive, metavar="SECONDS", help="of each turn, in place of 5")
    parser.add_argument("--quick", action="store_true", help="a little of everything: does it run?")
    add_plot_option(parser, "latency over rate")
    add_peers_option(parser)
    add_json_option(parser)
    options = parser.parse_args()
    effort, console = _effort(options), Console(stderr=True)
    set_threads("auto")
    python = peers_python(options.peers_venv)
    try:
        subject = run_subject(options.run, options.data)
        with ExitStack() as stack, console.status("starting the services"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-service-")))
            races = start_all(stack, subject, python, folder, effort, options)
            run_race(races, effort, options.seed, console)
            bundle = folder / "models" / _MODEL / "1"
            shares = served_shares(
                races[0].service, _MODEL, bundle, subject, effort.rounds, effort.duration_s, console
            )
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    report(races, shares, options.precision, effort._asdict(), options.json)
    if options.plot:
        plot(races, options.plot)


if __name__ == "__main__":
    main()
