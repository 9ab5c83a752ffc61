"""`dragoman translate`: one translation a line, and nothing else on standard output."""

from typing import Annotated

import typer

from dragoman.cli.decoding_options import Alignment, CoveragePenalty, TargetPrefix, with_decoding_options
from dragoman.cli.model_source import ModelSource, with_model_source
from dragoman.cli.options import Inputs, Json, SkipBad, examples
from dragoman.client.results import DecodingOptions

__all__ = ["EPILOG", "translate"]

EPILOG = examples(
    'dragoman translate --model dates "le 3 mars 2024" "3. März 2024"',
    "dragoman translate --model multi30k < captions.en > captions.de  # one translation a line",
    'dragoman translate --bundle models/dates/1 "le 3 mars 2024"  # without a server',
    'dragoman translate --model multi30k --beam-size 5 --num-hypotheses 3 "A dog runs."  # the three best',
    'dragoman translate --model dates --alternatives 3 "le 3 mars 2024"  # the probability of each token',
)


@with_model_source
@with_decoding_options
def translate(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts to translate.", show_default="the lines of standard input"
        ),
    ] = None,
    *,
    source: ModelSource,
    options: DecodingOptions,
    coverage_penalty: CoveragePenalty = None,
    target_prefix: TargetPrefix = "",
    inputs: Inputs = None,
    skip_bad: SkipBad = False,
    alignment: Alignment = False,
    as_json: Json = False,
) -> None:
    """Translate texts, or the lines of standard input, and print one translation a line.

    The command sends several lines at a time and prints the translations in the order of the lines. For an empty
    line it prints an empty line (with --json: null). A line that cannot be translated ends the command with exit
    code 2; the lines before it are printed first. With --skip-bad the command goes on.
    """
    import asyncio

    from dragoman.cli.input_lines import input_lines
    from dragoman.cli.line_translation import translate_lines
    from dragoman.cli.rendering import AnswerForm

    options["coverage_penalty"], options["alignment"] = coverage_penalty, alignment
    with input_lines(texts, inputs) as lines:
        asyncio.run(
            translate_lines(
                source,
                lines,
                target_prefix=target_prefix,
                options=options,
                form=AnswerForm.of(options, as_json=as_json, num_inputs=len(texts) if texts else None),
                skips_bad=skip_bad,
            )
        )
