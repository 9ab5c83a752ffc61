"""What `dragoman translate-files` and `dragoman generate-files` do with their options, and what they say of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dragoman.cli.output import note, write_text
from dragoman.cli.progress import progress_bar
from dragoman.client.results import DecodingOptions
from dragoman.common.extras import require_extra

if TYPE_CHECKING:
    from dragoman.files.run import Summary

__all__ = ["DEFAULT_ROWS_PER_FILE", "answer_files"]

DEFAULT_ROWS_PER_FILE = 10_000


def answer_files(
    task: Literal["translation", "generation"],
    inputs: Sequence[str],
    *,
    bundle: Path,
    out: str,
    input_column: str,
    output_column: str,
    rows_per_file: int,
    shard: str,
    workers: int | None,
    options: DecodingOptions,
    target_prefix: str = "",
) -> None:
    """Answer all rows of files, show how far it is, and print what came of it.

    Raises:
        UsageError: something that was asked for cannot be right; it is named.
        OperationError: a file cannot be read or written, or a process that computes has ended.
        MissingExtraError: the extra `files` is not installed.
    """
    require_extra("files")
    from dragoman.common.cpu import usable_cores
    from dragoman.files.processes import Processes

    with Processes(workers or usable_cores()) as processes:
        from dragoman.files.job import Share  # while the processes import as well
        from dragoman.files.run import FileRun, Summary

        run = FileRun(
            task=task,
            bundle=bundle,
            inputs=inputs,
            out=out,
            input_column=input_column,
            output_column=output_column,
            target_prefix=target_prefix,
            options=DecodingOptions(**{name: value for name, value in options.items() if value is not None}),  # type: ignore[typeddict-item]
            rows_per_part=rows_per_file,
            share=Share.parse(shard, os.environ),
        )
        summary = Summary()
        try:
            with progress_bar(tells_time_left=True) as progress:
                run.run(processes, progress, summary)
        except BaseException:
            if summary.num_parts:
                note(f"files written: {summary.num_parts:,}; the same command goes on from there")
            raise
    write_text("".join(f"{line}\n" for line in _lines(summary, out)))


def _lines(summary: "Summary", out: str) -> list[str]:
    """What came of a run, a fact a line."""
    rate = summary.num_rows / summary.seconds if summary.seconds else 0
    there = f", {summary.num_there:,} were there already" if summary.num_there else ""
    lines = [
        f"files: {summary.num_parts:,} written to {out}{there}",
        f"rows: {summary.num_rows:,} in {summary.seconds:.1f} s ({rate:,.0f} a second)",
        f"answers: {summary.num_answered:,}",
    ]
    if summary.num_blank:
        lines.append(f"without a text: {summary.num_blank:,} rows")
    if summary.num_bad:
        lines.append(
            f"bad: {summary.num_bad:,} rows, kept aside with their reasons in {out.rstrip('/')}/_bad"
        )
    return lines
