"""`dragoman score`: how probable given texts are to a model."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.decoding_options import Alternatives
from client.cli.options import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Json,
    Model,
    ModelVersion,
    Target,
    Timeout,
    examples,
)
from client.cli.output import json_line, note, note_waiting_for_input, write_text
from client.cli.progress import progress_bar
from common.errors import UsageError

if TYPE_CHECKING:
    from client.results import TextScore

__all__ = ["EPILOG", "score"]

EPILOG = examples(
    'dragoman score --model dates "le 3 mars 2024" 2024-03-03  # a source and its translation',
    "dragoman score --model multi30k --inputs pairs.tsv --json  # source, tab, translation in each line",
    'dragoman score --model stdlib --alternatives 5 "import os"  # what else it would have written',
)


def score(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="For a model that translates, a source and its translation (or several such pairs); "
            "for one that generates, texts.",
            show_default="the lines of --inputs",
        ),
    ] = None,
    *,
    model: Model,
    model_version: ModelVersion = "",
    target: Target = DEFAULT_TARGET,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A file of lines: texts, or a source, a tab and its translation.",
            show_default="standard input",
        ),
    ] = None,
    num_alternatives: Alternatives = None,
    as_json: Json = False,
) -> None:
    """Tell how probable given translations or texts are, a line each: log-probability, tokens, perplexity.

    Logarithms are natural; a translation's end of sequence counts as a token. An empty line stays one. The
    figures of all texts together come last, on standard error; with --json they are the last line.
    """
    import asyncio

    from client.cli.line_scoring import LineScorer
    from client.cli.rendering import form_of, shown_score

    if texts and inputs:
        raise UsageError(f"--inputs {inputs} and {len(texts)} texts: give one of them")
    form = form_of(as_json=as_json, tells_tokens=num_alternatives is not None)

    def show(scores: "list[TextScore | None]") -> None:
        write_text("".join(shown_score(score, form) for score in scores))

    with _source(texts, inputs) as source, progress_bar(beside_results=True) as progress:
        scorer = LineScorer(
            model=model,
            version=model_version,
            num_alternatives=num_alternatives or 0,
            timeout_s=timeout_s,
            show=show,
            progress=progress,
        )
        corpus = asyncio.run(scorer.run(target, source))
    if as_json:
        figures = {**dataclasses.asdict(corpus), "perplexity": corpus.perplexity}
        write_text(json_line({"corpus": figures}))
    else:
        note(
            f"all together: texts {corpus.num_texts:,}, log-probability {corpus.log_probability:.4f}, "
            f"tokens {corpus.num_tokens:,}, perplexity {corpus.perplexity:.4f}"
        )


@contextlib.contextmanager
def _source(texts: Sequence[str] | None, inputs: str | None) -> Iterator[Sequence[str] | int]:
    """The texts, or the descriptor of the file that holds them."""
    if texts:
        yield texts
    elif inputs is None or inputs == "-":
        note_waiting_for_input()
        yield sys.stdin.fileno()
    else:
        try:
            file = Path(inputs).open("rb")  # noqa: SIM115  a failure to open is told apart from one to read
        except OSError as error:
            raise UsageError(f"cannot read inputs from {inputs}: {error.strerror}") from error
        with file:
            yield file.fileno()
