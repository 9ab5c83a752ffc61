"""`dragoman translate-files`: whole files through a translation model, on all cores."""

from dragoman.cli.decoding_options import CoveragePenalty, TargetPrefix, with_text_options
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

__all__ = ["EPILOG", "translate_files"]

EPILOG = examples(
    "dragoman translate-files captions.parquet --input-column de --bundle models/de-en/1 --out captions-en",
    "dragoman translate-files corpus/ --bundle models/de-en/1 --out made  # all files of a folder",
    "dragoman translate-files lines.txt.zst --bundle models/de-en/1 --out made --beam-size 5  # a text in each line",
    "dragoman translate-files s3://bucket/in --bundle models/de-en/1 --out s3://bucket/out --shard /8  # one pod of 8",
)


@with_text_options
def translate_files(
    inputs: InputFiles,
    *,
    bundle: FileBundle,
    out: Out,
    input_column: InputColumn = "text",
    output_column: OutputColumn = "translation",
    options: DecodingOptions,
    coverage_penalty: CoveragePenalty = None,
    target_prefix: TargetPrefix = "",
    rows_per_file: RowsPerFile = DEFAULT_ROWS_PER_FILE,
    shard: Shard = "0/1",
    workers: Workers = None,
) -> None:
    """Translate Parquet, JSON Lines or text files with a bundle, on all cores, without a server.

    Each file becomes files of at most --rows-per-file rows in --out: a.parquet becomes a-00000.parquet, a-00001.parquet
    and so on. Parquet and JSON Lines keep all columns with their types. The translation, its score and its finish
    reason are added. A text file becomes a text file with a translation in each line.

    A file appears in --out once it is whole. The command can be stopped at any moment: run again, it makes the files
    that are missing. With other options, another model or changed inputs it refuses to go on.

    A row that cannot be translated is left out, and DIR/_bad says where it was and why. In a text file its line is
    empty. A row without a text stays, without a translation.
    """
    options["coverage_penalty"] = coverage_penalty
    answer_files(
        "translation",
        inputs,
        bundle=bundle,
        out=out,
        input_column=input_column,
        output_column=output_column,
        rows_per_file=rows_per_file,
        shard=shard,
        workers=workers,
        options=options,
        target_prefix=target_prefix,
    )
