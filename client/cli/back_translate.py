"""`dragoman back-translate`: training pairs out of texts alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.options import Data, examples
from client.cli.output import note, write_text
from client.cli.progress import progress_bar
from common.errors import UsageError

if TYPE_CHECKING:
    from client.cli.back_translation import BackTranslation

__all__ = ["EPILOG", "back_translate"]

EPILOG = examples(
    "dragoman back-translate models/de-en/1 --out data/made.jsonl  # of what it was trained on: pairs from en to de",
    "dragoman back-translate models/de-en/1 --num-hypotheses 2 --out data/made.jsonl  # two of each text",
    "dragoman back-translate models/de-en/1 --text german.txt --out data/made.jsonl  # of text without a translation",
)


def back_translate(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="The folder of a translation bundle that goes the other way: from the language that the new "
            "model is to write.",
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where the pairs go, as JSON Lines for corpus.synthetic_pairs.",
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A text a line, plain, .gz or .xz; - is standard input.",
            show_default="the texts that the model was trained on",
        ),
    ] = None,
    data: Data = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use the first N texts only.", show_default="all"),
    ] = None,
    beam_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Hypotheses that run at the same time.")
    ] = 5,
    num_hypotheses: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Most pairs made of one text: its best translations that are new."
        ),
    ] = 1,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the file of pairs that is at --out. Nothing else is ever replaced."
        ),
    ] = False,
) -> None:
    """Make training pairs out of texts alone: translate them, and turn the pairs round.

    A model from German to English writes English for German text of people: pairs
    to train a model from English to German on, beside its own. Text without a
    translation can be had in plenty (back-translation). Without --text the model's
    own training texts are translated once more, in other words than the known ones
    (data diversification), which pays where there is little data.
    """
    if text is not None and data is not None:
        raise UsageError(f"--data {data} is for the model's own training texts: leave it out with --text")
    from client.cli.back_translation import PairSearch, back_translate_texts

    search = PairSearch(beam_size, num_hypotheses)
    with progress_bar() as progress:
        made = back_translate_texts(
            bundle,
            out,
            text=text,
            data=data,
            limit=limit,
            search=search,
            replaces=force,
            progress=progress,
        )
    write_text("".join(f"{line}\n" for line in _lines(made, out)))
    note(f"next: dragoman train RECIPE --set 'corpus.synthetic_pairs=[\"{out.resolve()}\"]'")


def _lines(made: "BackTranslation", out: Path) -> list[str]:
    """The outcome, a fact a line."""
    lines = [
        f"pairs: {made.num_pairs:,} in {out}",
        f"texts: {made.num_texts:,} in {made.seconds:.0f} s ({made.num_texts / made.seconds:,.0f} a second)",
        *made.cleaning.lines(),
    ]
    if made.num_too_long:
        lines.append(f"over the model's limit of tokens: {made.num_too_long:,} texts")
    if made.num_without_news:
        lines.append(
            f"nothing new: {made.num_without_news:,} texts, whose translations are known, empty or cut off"
        )
    return lines
