"""Training, from a recipe to a run folder."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from rich.console import Console

from dragoman.common.errors import UsageError
from dragoman.common.files import atomic_write
from dragoman.common.settings import Settings
from dragoman.model.corpora.load import load_corpus
from dragoman.model.corpora.sources import STANDARD_INPUT
from dragoman.model.errors import TrainingStopped
from dragoman.model.recipe import Recipe
from dragoman.model.run import RECIPE_FILE, START_RECORD_FILE, load_run, read_settings
from dragoman.model.training.distributed import World, joined_world
from dragoman.model.training.hardware import set_threads
from dragoman.model.training.progress import Reporter
from dragoman.model.training.report import write_report
from dragoman.model.training.reproduction import flat_settings
from dragoman.model.training.resume import leaving_nothing_of_a_refusal, make_room, resume_state
from dragoman.model.training.session import Session
from dragoman.model.training.state import State
from dragoman.model.training.stopping import StopRequest, StopRequestedError
from dragoman.model.training.summary import TrainingSummary, print_summary
from dragoman.model.training.waiting import considerate_threads

__all__ = ["Beginning", "TrainingSummary", "train"]

_WIDE = 160  # lines in a file or a pipe are not cut


@dataclasses.dataclass(frozen=True)
class Beginning:
    """How a training starts, where there is something to start from.

    Attributes:
        resume: go on with the unfinished run in the folder.
        accept_changes: even if the recipe or a file of its corpus is another than it was begun with.
        restart: begin again, although a run is in the folder, finished or not.
        init: a run folder whose weights and tokenizer to start from.
        new_tokenizer: with `init`, train the recipe's own tokenizer and carry over the rows of the embedding.
    """

    resume: bool = False
    accept_changes: bool = False
    restart: bool = False
    init: Path | None = None
    new_tokenizer: bool = False


def train(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    beginning: Beginning | None = None,
    show_progress: bool = True,
) -> TrainingSummary:
    """Train by `recipe` and leave a run in the folder `out`.

    Under `torchrun` all its processes train together (`dragoman.model.training.distributed`); the main one writes.

    Args:
        recipe: what to train, on what, and for how long.
        out: the run folder; `dragoman.model.run` says what it holds.
        data: folder of the corpus, in place of the recipe's own.
        beginning: what to start from; from nothing if it is left out.
        show_progress: talk on standard error.

    Raises:
        UsageError: `out` holds something else than a run, or one that `beginning` does not say what to do with; the
            corpus, the recipe or the run to start from is at fault.
        OperationError: `out` cannot be written, or the loss is not finite.
        TrainingStopped: SIGTERM or Ctrl-C; what was reached is saved.
    """
    beginning = beginning or Beginning()
    recipe = recipe.with_data(data)
    if str(out).encode(errors="replace").decode() != str(out):
        raise UsageError(f"{out} is not UTF-8, and TensorBoard writes no files there: name another folder")
    start = load_run(beginning.init) if beginning.init else None
    stop = StopRequest()
    with joined_world(recipe.training.device) as world, stop.listening(), contextlib.ExitStack() as ending:
        if world.size > 1 and _reads_standard_input(recipe):
            raise UsageError(
                f"{world.size} processes cannot share the standard input: "
                "write the corpus to a file, or train in one process"
            )
        if world.is_main:
            ending.enter_context(leaving_nothing_of_a_refusal(out))
        notes, resumed = _open_folder(recipe, out, beginning, world)
        if beginning.resume and resumed is None:
            beginning = _as_begun(out, beginning)
            start = load_run(beginning.init) if beginning.init else None
        num_threads = set_threads(recipe.training.num_threads, world.num_local)
        width = None if sys.stderr.isatty() else _WIDE
        console = Console(
            stderr=True, quiet=not (show_progress and world.is_main), width=width, highlight=False
        )
        session = Session(
            recipe,
            out,
            world,
            stop,
            num_threads,
            resumed,
            start,
            has_new_tokenizer=beginning.new_tokenizer,
            resumes=beginning.resume,
            accepts_changes=beginning.accept_changes,
        )
        reporter = Reporter(
            out,
            console,
            resume_step=resumed.progress.step if resumed else None,
            silent=not world.is_main,
            max_steps=recipe.training.max_steps,
        )
        with reporter, considerate_threads(num_threads):
            for note in notes:
                reporter.say(note)
            try:
                summary = session.train(reporter)
            except StopRequestedError:
                step = resumed.progress.step if resumed else None
                raise TrainingStopped(step, interrupted=stop.interrupted) from None
        if world.is_main:
            write_report(out)
        print_summary(summary, console)
        return summary


class _StartRecord(Settings):
    """The run whose weights a training starts from, until its first state has them."""

    schema_version: Literal[1] = 1
    run: str  # a file URI, for a path need not be UTF-8
    new_tokenizer: bool


def _as_begun(out: Path, beginning: Beginning) -> Beginning:
    """Return `beginning` with the run to start from that the training in `out` was begun with, if any.

    Raises:
        RunError: the record of it is damaged.
    """
    path = out / START_RECORD_FILE
    if not path.is_file():
        return beginning
    record = read_settings(path, _StartRecord)
    start = Path(os.fsdecode(unquote_to_bytes(urlsplit(record.run).path)))
    return dataclasses.replace(beginning, init=start, new_tokenizer=record.new_tokenizer)


def _reads_standard_input(recipe: Recipe) -> bool:
    values = dict(flat_settings(recipe.corpus.model_dump())).values()
    return any(
        value == STANDARD_INPUT or (isinstance(value, tuple) and STANDARD_INPUT in value) for value in values
    )


def _open_folder(
    recipe: Recipe, out: Path, beginning: Beginning, world: World
) -> tuple[list[str], State | None]:
    """Make the run folder ready, in the main process; what to tell, and the state to go on from."""
    notes: list[str] = []
    resumed = None
    if beginning.resume:
        resumed, notes = resume_state(out, recipe, accepts_changes=beginning.accept_changes)
        world.sum(0)  # nobody writes the recipe before all have read the one that was there
    if world.is_main:
        if not beginning.resume:
            make_room(
                out,
                restarts=beginning.restart,
                reads=[beginning.init] if beginning.init else [],
                # A wrong path must not cost the run that is there. Standard input can be read once only.
                before_removal=lambda: None if _reads_standard_input(recipe) else load_corpus(recipe),
            )
            if beginning.init:
                record = _StartRecord(
                    run=beginning.init.resolve().as_uri(), new_tokenizer=beginning.new_tokenizer
                )
                atomic_write(out / START_RECORD_FILE, record.model_dump_json(indent=2) + "\n")
        atomic_write(out / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")
    world.sum(0)  # nobody goes on before the folder is as it should be
    return notes, resumed
