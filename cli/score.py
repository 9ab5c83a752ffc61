"""`dragoman score`: how probable given texts are to a model."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.decoding_options import Alternatives
from dragoman.cli.model_source import ModelSource, with_model_source
from dragoman.cli.options import Inputs, Json, SkipBad, examples
from dragoman.cli.output import json_line, note, write_text
from dragoman.cli.progress import progress_bar
from dragoman.common.errors import UsageError

if TYPE_CHECKING:
    from dragoman.cli.line_calls import LineAnswers
    from dragoman.client.results import TextScore

__all__ = ["EPILOG", "score"]

EPILOG = examples(
    'dragoman score --model dates "le 3 mars 2024" 2024-03-03  # a source and its translation',
    "dragoman score --model multi30k --inputs pairs.tsv --json  # source, tab, translation in each line",
    "dragoman score --model multi30k --separator ' ||| ' < pairs.txt  # where sources hold tabs",
    'dragoman score --model stdlib --alternatives 5 "import os"  # the five most probable tokens at each place',
)


@with_model_source
def score(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="For a translation model: a source and its translation, or several such pairs. "
            "For a generation model: texts.",
            show_default="the lines of --inputs",
        ),
    ] = None,
    *,
    source: ModelSource,
    inputs: Inputs = None,
    separator: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text between a source and its translation in a line.",
            show_default="a tab",
        ),
    ] = "\t",
    skip_bad: SkipBad = False,
    num_alternatives: Alternatives = None,
    as_json: Json = False,
) -> None:
    """Print how probable translations or texts are to a model: log-probability, tokens and perplexity, a line each.

    An input line holds a text, or a source, a tab and its translation. For an empty line the command prints an empty
    line. The figures of all texts together come at the end, on standard error; with --json they are the last line
    of the output. Logarithms are natural. The end of sequence of a translation counts as a token.
    """
    import asyncio

    from dragoman.cli.input_lines import input_lines
    from dragoman.cli.line_scoring import LineScorer
    from dragoman.cli.rendering import form_of, shown_score

    if not separator:
        raise UsageError("--separator is empty: nothing would stand between a source and its translation")
    form = form_of(as_json=as_json, tells_tokens=num_alternatives is not None)

    def show(scored: "LineAnswers[TextScore]") -> None:
        numbered = enumerate(scored.answers, start=scored.block.start + 1)
        write_text("".join(shown_score(score, form, number) for number, score in numbered))

    with input_lines(texts, inputs) as lines, progress_bar(beside_results=True) as progress:
        scorer = LineScorer(
            source=source,
            num_alternatives=num_alternatives or 0,
            separator=separator,
            skips_bad=skip_bad,
            show=show,
            progress=progress,
        )
        corpus = asyncio.run(scorer.run(lines))
    if as_json:
        figures = {**dataclasses.asdict(corpus), "perplexity": corpus.perplexity}
        write_text(json_line({"corpus": figures}))
    else:
        note(
            f"all together: texts {corpus.num_texts:,}, log-probability {corpus.log_probability:.4f}, "
            f"tokens {corpus.num_tokens:,}, perplexity {corpus.perplexity:.4f}"
        )
