"""Files in, files out: the run of `dragoman translate-files` and `dragoman generate-files`."""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragoman.client.results import DecodingOptions
from dragoman.common.errors import UsageError
from dragoman.common.signals import unwound_by_signals
from dragoman.files.answers import NUM_SLOTS, AnswerRow, Outcome, Refusal, engine_options, has_hypotheses
from dragoman.files.blocks import BadRow, Format, PartWriter, RowBlock, part_place
from dragoman.files.columns import AnswerColumns
from dragoman.files.job import BAD_FOLDER, WHOLE, Job, Share, locked, model_identity
from dragoman.files.lines import JsonLines, TextLines
from dragoman.files.parquet import ParquetTables
from dragoman.files.pool import Pool
from dragoman.files.processes import Processes
from dragoman.files.protocol import Begin, Block
from dragoman.files.storage import Folder, InputFile, find_inputs
from dragoman.server.config import EngineSettings

__all__ = ["FileRun", "Summary"]

Progress = Callable[[str, float, float], None]
_SEED_BITS = 63


@dataclass
class Summary:
    """What a run has done.

    Attributes:
        num_rows: that were read, of the parts that it wrote.
        num_answered: that have an answer.
        num_blank: that have no text.
        num_bad: that were kept aside.
        num_parts: that it wrote.
        num_there: that an earlier run wrote.
        seconds: that it took, from the moment on when the model was loaded.
    """

    num_rows: int = 0
    num_answered: int = 0
    num_blank: int = 0
    num_bad: int = 0
    num_parts: int = 0
    num_there: int = 0
    seconds: float = 0.0

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add rows."""
        num_answered = sum(isinstance(each, AnswerRow) for each in outcomes)
        num_bad = sum(isinstance(each, Refusal) for each in outcomes)
        self.num_rows += len(outcomes)
        self.num_answered += num_answered
        self.num_bad += num_bad
        self.num_blank += len(outcomes) - num_answered - num_bad


@dataclass(frozen=True, kw_only=True)
class FileRun:
    """A run over files.

    Attributes:
        task: "translation" or "generation".
        bundle: the model.
        inputs: paths or URIs of files and folders.
        out: path or URI of a folder.
        input_column: where a table has its texts.
        output_column: where answers go.
        target_prefix: what every answer begins with.
        options: of decoding.
        rows_per_part: most rows of a file that is written.
        share: the parts that this run makes.
    """

    task: Any
    bundle: Path
    inputs: Sequence[str]
    out: str
    input_column: str
    output_column: str
    rows_per_part: int
    target_prefix: str = ""
    options: DecodingOptions = field(default_factory=DecodingOptions)
    share: Share = WHOLE

    def run(self, processes: Processes, progress: Progress, summary: Summary) -> None:
        """Answer all rows. `progress` is told how far it is, and `summary` counts, also where an error ends the run.

        Raises:
            UsageError: something that was asked for cannot be right; it is named.
            OperationError: a file cannot be read or written, or a process that computes has ended.
        """
        formats = self._formats()
        suffixes = [suffix for each in formats for suffix in each.suffixes]
        files = find_inputs(self.inputs, suffixes)
        folder = Folder(self.out)
        chosen = [(file, self._format_of(file, formats)) for file in files]
        _check_places(chosen, folder)
        for file, kind in chosen:
            kind.check(file)
        seed = self._seed()
        job = self._job(files, seed).begin(folder, self.share)
        pool = Pool(self._begin(job.seed, len(processes.workers)), processes)
        begin_s = time.perf_counter()
        with unwound_by_signals(), locked(folder, self.share):
            self._remove_leftovers(folder)
            job.write(folder, self.share)
            try:
                _Writing(folder, self.share, summary, progress, chosen).write_all(pool)
            finally:
                summary.seconds = time.perf_counter() - begin_s

    def _formats(self) -> list[Format]:
        several = has_hypotheses(self.options)
        columns = AnswerColumns(self.output_column, has_hypotheses=several)
        return [
            ParquetTables(self.rows_per_part, self.input_column, columns),
            JsonLines(self.rows_per_part, self.input_column, columns),
            TextLines(self.rows_per_part),
        ]

    def _format_of(self, file: InputFile, formats: Sequence[Format]) -> Format:
        kind = next((each for each in formats if file.place.name.endswith(each.suffixes)), None)
        if kind is None:
            known = ", ".join(each.suffixes[0] for each in formats)
            raise UsageError(
                f"{file.name}: its name says no format: {known}, and packed as .gz, .bz2, .zst or .lz4"
            )
        if isinstance(kind, TextLines) and has_hypotheses(self.options):
            raise UsageError(
                f"{file.name}: text has a line for each row, and no place for --num-hypotheses "
                f"{self.options['num_hypotheses']}: use Parquet or JSON Lines"
            )
        return kind

    def _seed(self) -> int | None:
        """The seed of samples: the given one, or a new one; None where nothing is drawn."""
        if not self.options.get("temperature"):
            return None
        given = self.options.get("seed")
        return secrets.randbits(_SEED_BITS) if given is None else given

    def _job(self, files: Sequence[InputFile], seed: int | None) -> Job:
        settings = {
            **self.options,
            "input_column": self.input_column,
            "output_column": self.output_column,
            "rows_per_file": self.rows_per_part,
            "target_prefix": self.target_prefix,
        }
        return Job.of(model_identity(self.bundle), settings, files, seed)

    def _begin(self, seed: int | None, num_workers: int) -> Begin:
        options = self.options if seed is None else DecodingOptions(**{**self.options, "seed": seed})
        settings = EngineSettings(
            lanes=num_workers, threads_per_lane=1, lanes_run_in="processes", slots_per_lane=NUM_SLOTS
        )
        return Begin(self.bundle, settings, self.task, engine_options(**options), self.target_prefix)

    def _remove_leftovers(self, folder: Folder) -> None:
        """Remove what a killed run of this share was writing."""
        for path in folder.files():
            if path.startswith(self.share.temporary):
                folder.remove(path)


class _Writing:
    """The parts of a run."""

    def __init__(
        self,
        folder: Folder,
        share: Share,
        summary: Summary,
        progress: Progress,
        files: Sequence[tuple[InputFile, Format]],
    ) -> None:
        self._folder, self._share, self._files = folder, share, files
        self._summary, self._progress = summary, progress
        self._formats = dict(files)
        self._bytes_before = dict(
            zip(self._formats, _sums([each.num_bytes for each in self._formats]), strict=True)
        )
        self._num_bytes = sum(each.num_bytes for each in self._formats)
        self._there = folder.files()

    def write_all(self, pool: Pool) -> None:
        """Write the parts that are not there."""
        with contextlib.closing(pool.map(self._blocks(), _as_block)) as answered:
            for block, outcomes in answered:
                self._write_part(block, outcomes, answered)

    def _blocks(self) -> Iterator[RowBlock]:
        """The blocks of all parts that this run makes, in order."""
        for number, (file, kind) in enumerate(self._files):
            file.check_unchanged()

            def wants(part: int, number: int = number, file: InputFile = file, kind: Format = kind) -> bool:
                if not self._share.takes(number, part):
                    return False
                is_there = part_place(file, part, kind.suffixes) in self._there
                self._summary.num_there += is_there
                return not is_there

            yield from kind.read(file, wants)

    def _write_part(
        self, block: RowBlock, outcomes: list[Outcome], answered: Iterator[tuple[RowBlock, list[Outcome]]]
    ) -> None:
        """Write the part that begins with `block`; the rest of it comes from `answered`."""
        kind, file = self._formats[block.file], block.file
        place = part_place(file, block.part, kind.suffixes)
        # What is opened last is whole first: a part is there only if its bad rows are.
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._folder.new_file(place, self._share.temporary))
            writer = kind.write(block, stream)
            bad = _BadRows(self._folder, f"{BAD_FOLDER}/{place}.jsonl", self._share.temporary, stack)
            self._write_block(writer, bad, block, outcomes)
            while not block.ends_part:
                block, outcomes = next(answered)
                self._write_block(writer, bad, block, outcomes)
            writer.close()
            file.check_unchanged()
        self._summary.num_parts += 1

    def _write_block(
        self, writer: PartWriter, bad: "_BadRows", block: RowBlock, outcomes: Sequence[Outcome]
    ) -> None:
        judged: list[Outcome] = [
            Refusal(text.reason) if isinstance(text, BadRow) else outcome
            for text, outcome in zip(block.texts, outcomes or [None] * len(block.texts), strict=True)
        ]
        writer.write(block, judged)
        kind = self._formats[block.file]
        for at, outcome in enumerate(judged):
            if isinstance(outcome, Refusal):
                text = block.texts[at]
                shown = text.shown if isinstance(text, BadRow) else text
                place = {"file": block.file.name, kind.unit: block.first + at + kind.first_number}
                bad.write({**place, "reason": outcome.reason, "text": shown})
        self._summary.count(judged)
        done = self._bytes_before[block.file] + block.num_bytes
        self._progress(f"{self._summary.num_rows:,} rows", done, self._num_bytes)


class _BadRows:
    """The rows of a part that are kept aside; there is a file where there is such a row."""

    def __init__(self, folder: Folder, path: str, temporary: str, stack: contextlib.ExitStack) -> None:
        self._file = folder.new_file(path, temporary)
        self._stack = stack
        self._stream: Any = None

    def write(self, record: dict[str, Any]) -> None:
        """Keep a row."""
        if self._stream is None:
            self._stream = self._stack.enter_context(self._file)
        self._stream.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def _as_block(block: RowBlock, number: int) -> Block:
    return Block(number, [None if isinstance(text, BadRow) else text for text in block.texts], block.first)


def _check_places(files: Sequence[tuple[InputFile, Format]], folder: Folder) -> None:
    """Refuse inputs in the output's folder, and two that would be written to the same place."""
    places: dict[str, InputFile] = {}
    for file, kind in files:
        if folder.holds(file):
            raise UsageError(f"--out {folder} holds {file.name}, which is an input: name another folder")
        place = part_place(file, 0, kind.suffixes)
        if place in places:
            raise UsageError(
                f"{places[place].name} and {file.name} would be written to the same {place}: name the folder above"
            )
        places[place] = file


def _sums(numbers: Sequence[int]) -> list[int]:
    """Sums of all numbers before each."""
    sums = [0]
    for number in numbers[:-1]:
        sums.append(sums[-1] + number)
    return sums
