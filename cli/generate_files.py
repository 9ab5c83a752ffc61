"""`dragoman generate-files`: whole files of prompts through a generation model, on all cores."""

from dragoman.cli.decoding_options import with_text_options
from dragoman.cli.file_answers import DEFAULT_ROWS_PER_FILE, answer_files
from dragoman.cli.file_options import (
    FileBundle,
    InputColumn,
    InputFiles,
    Out,
    OutputColumn,
    RowsPerFile,
    Shard,
    Workers,
)
from dragoman.cli.options import examples
from dragoman.client.results import DecodingOptions

__all__ = ["EPILOG", "generate_files"]

EPILOG = examples(
    "dragoman generate-files prompts.jsonl --bundle models/stdlib/1 --out made --max-tokens 100",
    "dragoman generate-files prompts.parquet --input-column prompt --bundle models/stdlib/1 --out made "
    "--temperature 0.8 --num-hypotheses 4  # four samples of each",
)


@with_text_options
def generate_files(
    inputs: InputFiles,
    *,
    bundle: FileBundle,
    out: Out,
    input_column: InputColumn = "text",
    output_column: OutputColumn = "generation",
    options: DecodingOptions,
    rows_per_file: RowsPerFile = DEFAULT_ROWS_PER_FILE,
    shard: Shard = "0/1",
    workers: Workers = None,
) -> None:
    """Continue the prompts of Parquet, JSON Lines or text files with a bundle, on all cores, without a server.

    All is as `dragoman translate-files` has it: files appear whole, the same command goes on where it was stopped, and
    rows that cannot be answered are kept in DIR/_bad. In a text file the line feeds of an answer become spaces.
    """
    answer_files(
        "generation",
        inputs,
        bundle=bundle,
        out=out,
        input_column=input_column,
        output_column=output_column,
        rows_per_file=rows_per_file,
        shard=shard,
        workers=workers,
        options=options,
    )
