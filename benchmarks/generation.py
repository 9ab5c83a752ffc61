"""Generation with a decoder-only model: Dragoman's engine against CTranslate2, onnxruntime-genai and transformers.

    python -m benchmarks.generation
    python -m benchmarks.generation --quick

The model has GPT-2's shape, random weights, and Dragoman's architecture: pre-norm, GELU, embedding scaled and tied to
the projection, sinusoidal positions. All systems run these same weights. CTranslate2's Generator has this architecture;
onnxruntime-genai gets a graph of the operators that its own builder writes, and for int8 that builder's quantisation:
weights in blocks, activations as they come (`benchmarks/serving/genai_model.py`); transformers' GPT2LMHeadModel
(PyTorch eager, fp32) gets the sinusoidal table for its learned positions and scaled embeddings. The last two have a
projection of their own, which is as large as the embeddings. First every system's greedy answers are held against
PyTorch's; if an fp32 one agrees on less than 99 % of the prompts, there is nothing to compare and the exit code is 1.

Work: one prompt at a time up to its first token, which is the time to first token and, by the prompt's tokens, the
speed of reading; and 1, 8 and 32 streams that begin together, each a prompt of 32 tokens and 64 forced new ones, whose
tokens/s are those of the answers and whose time includes the prompts. A sweep of its own thread settings comes before,
for every system. Then rounds, each system in turn; figures are medians over them, and the ratio is Dragoman's speed
over the row's in the same round, in the same precision. Dragoman's prefix cache is off: prompts come back each turn.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.report import add_json_option, argument_parser
from benchmarks.serving.agreement import MIN_FP32_SHARE, Agreement, compare
from benchmarks.serving.contest import Pace, Standing, compete
from benchmarks.serving.ctranslate2_system import convert_arrays
from benchmarks.serving.ctranslate2_weights import ctranslate2_generator_shape, ctranslate2_generator_weights
from benchmarks.serving.engine_report import speed_rows
from benchmarks.serving.genai_model import write_genai_model
from benchmarks.serving.generation_report import GenerationFindings, prompt_rows, report_generation
from benchmarks.serving.generation_subject import (
    GenerationSubject,
    Shape,
    Work,
    first_token_workloads,
    prompts,
    random_generator,
    stream_workloads,
    write_bundle,
)
from benchmarks.serving.generation_systems import (
    CTranslate2Generator,
    DragomanGenerator,
    Generator,
    OnnxRuntimeGenai,
    Transformers,
)
from benchmarks.serving.peers import PEERS_FOLDER, add_peers_option, peers_python
from benchmarks.serving.systems import Workload
from benchmarks.serving.transformers_weights import gpt2_config, gpt2_weights
from rich.console import Console

from dragoman.common.cpu import usable_cores
from dragoman.common.errors import OperationError
from dragoman.model.decoding import greedy_decode
from dragoman.model.training.hardware import set_threads
from dragoman.server.bundle.manifest import Precision

Rows = Callable[[Sequence[Standing]], Iterator[list[str]]]
"""A line a workload and system."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")
WHOLE: Final = Pace(rounds=3, turn_s=0.5, sweep_turns=2, settle_s=0.3)
QUICK: Final = Pace(rounds=2, turn_s=0.0, sweep_turns=0, settle_s=0.0)
QUICK_SHAPE: Final = Shape(layers=2, width=64, heads=4, feed_forward=256, vocabulary=500, context=128)
QUICK_WORK: Final = Work(first_token_prompts=(40,), streams=(1, 4), prompt_tokens=8, new_tokens=8)


def enter_systems(subject: GenerationSubject, python: Path, folder: Path) -> list[Generator]:
    """Export and convert the model for everything that takes part."""
    num_cores = usable_cores()
    systems: list[Generator] = [
        DragomanGenerator(write_bundle(subject, precision, folder / precision), num_cores)
        for precision in PRECISIONS
    ]
    converted = folder / "ctranslate2"
    convert_arrays(
        ctranslate2_generator_weights(subject.model),
        ctranslate2_generator_shape(subject.dims),
        python,
        PEERS_FOLDER / "ctranslate2_generator_worker.py",
        converted,
    )
    for precision in PRECISIONS:
        of_precision = {"folder": str(converted), "precision": precision}
        systems.append(CTranslate2Generator(python, precision, num_cores, of_precision))
    for precision in PRECISIONS:
        graph = folder / f"genai-{precision}"
        write_genai_model(subject.model, precision, graph)
        systems.append(OnnxRuntimeGenai(python, precision, num_cores, {"folder": str(graph)}))
    weights = folder / "gpt2.npz"
    np.savez(weights, **gpt2_weights(subject.model))  # type: ignore[arg-type]  # arrays, by their names
    model = {"weights": str(weights), "config": gpt2_config(subject.dims)}
    systems.append(Transformers(python, "fp32", num_cores, model))
    return systems


def check_agreement(
    subject: GenerationSubject, systems: Sequence[Generator], work: Work, num_prompts: int
) -> list[Agreement]:
    """Answers of the streams' lengths, greedy, against those of `model/decoding.py`."""
    inputs = prompts(subject.dims, num_prompts, work.prompt_tokens, subject.seed + 1)
    workload = Workload("greedy", inputs, max_tokens=work.new_tokens, min_tokens=work.new_tokens)
    reference = greedy_decode(subject.model, inputs, work.new_tokens, min_tokens=work.new_tokens)
    found = []
    for system in systems:
        system.prepare(system.settings(workload)[0])
        theirs = system.decode(workload)
        answers = (theirs.token_ids, theirs.log_probabilities)
        found.append(compare(system.name, system.precision, workload.name, *answers, reference))
    return found


def measure(
    subject: GenerationSubject, python: Path, work: Work, pace: Pace, num_prompts: int, console: Console
) -> GenerationFindings:
    """Export, convert, check and time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-generation-")))
        with console.status("exporting"):
            systems = enter_systems(subject, python, folder)
        for system in systems:
            stack.callback(system.close)
        with console.status("comparing answers"):
            agreements = check_agreement(subject, systems, work, num_prompts)
        same = all(one.holds for one in agreements)

        def standings(workloads: Iterable[Workload], rows: Rows) -> list[Standing]:
            found = []
            for workload in workloads if same else ():
                with console.status(workload.name):
                    new = compete(systems, workload, pace)
                for name, *figures in rows(new):  # what an interruption must not lose
                    console.print(name, *figures)
                found += new
            return found

        first_tokens = standings(first_token_workloads(subject, work), prompt_rows)
        streams = standings(stream_workloads(subject, work), speed_rows)
    return GenerationFindings(subject.dims, agreements, first_tokens, streams)


def _add_options(parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=(128, 512), help="tokens, read one at a time"
    )
    parser.add_argument("--streams", type=int, nargs="+", default=(1, 8, 32), help="answers at once")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each stream")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--agreement-prompts", type=int, default=16, help="answers held against PyTorch's")
    parser.add_argument("--rounds", type=int, default=WHOLE.rounds, help="turns of each system")
    parser.add_argument("--seed", type=int, default=1, help="of weights and prompts")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and a little of everything: does it run?"
    )
    add_peers_option(parser)
    add_json_option(parser)


def main() -> None:
    parser = argument_parser(__doc__)
    _add_options(parser)
    options = parser.parse_args()
    set_threads("auto")
    shape = Shape(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Shape)})
    work = Work(options.prompts, options.streams, options.prompt_tokens, options.new_tokens)
    pace = dataclasses.replace(WHOLE, rounds=options.rounds)
    if options.quick:
        shape, work, pace = QUICK_SHAPE, QUICK_WORK, QUICK
    python, console = peers_python(options.peers_venv), Console(stderr=True)
    try:
        subject = random_generator(shape, options.seed)
        found = measure(subject, python, work, pace, options.agreement_prompts, console)
    except (OperationError, ValueError, RuntimeError) as error:
        sys.exit(str(error))
    report_generation(found, options.json)
    if not all(one.holds for one in found.agreements):
        sys.exit(
            f"an fp32 system does not compute PyTorch's model: under {MIN_FP32_SHARE:.0%} equal, or far off"
        )


if __name__ == "__main__":
    main()
