"""`dragoman generate`: text as it is produced."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.decoding_options import with_decoding_options
from dragoman.cli.model_source import ModelSource, with_model_source
from dragoman.cli.options import Json, examples
from dragoman.cli.output import note_waiting_for_input, write_text
from dragoman.client.results import DecodingOptions

if TYPE_CHECKING:
    from dragoman.client import Generation

__all__ = ["EPILOG", "generate"]

EPILOG = examples(
    'dragoman generate --model stdlib --max-tokens 200 "def main("',
    'dragoman generate --model stdlib --temperature 0.8 --top-p 0.95 --seed 1 "import os"',
    'dragoman generate --bundle models/stdlib/1 "import os"  # without a server',
    "dragoman generate --model stdlib --stop $'\\n\\n' < prompt.txt  # the prompt from a file",
    'dragoman generate --model stdlib --temperature 0.8 --num-hypotheses 5 --json "import "  # five samples',
)


@with_model_source
@with_decoding_options
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue.", show_default="all of standard input"),
    ] = None,
    *,
    source: ModelSource,
    options: DecodingOptions,
    as_json: Json = False,
) -> None:
    """Continue a prompt and print the text as the model produces it. The prompt itself is not printed.

    With --num-hypotheses, --alternatives or --json the command prints everything at the end. With --num-hypotheses
    each answer is one line: spaces replace its line ends. --json keeps line ends.
    """
    from dragoman.cli.lines import read_text
    from dragoman.cli.rendering import AnswerForm

    form = AnswerForm.of(options, as_json=as_json)
    if prompt is None:
        note_waiting_for_input()
        prompt = read_text(sys.stdin.fileno(), "standard input")
    with (
        source.connect_blocking() as client,
        client.generate(
            prompt, model=source.model, version=source.version, priority=source.priority, **options
        ) as generation,
    ):
        if form.is_bare:
            _write_pieces(generation)
        else:
            text = "".join(generation)
            write_text(form.generation(text, generation.summary))


def _write_pieces(generation: "Generation") -> None:
    piece = ""
    for piece in generation:
        write_text(piece)
    if not piece.endswith("\n"):
        write_text("\n")
