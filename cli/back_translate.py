"""`dragoman back-translate`: training pairs out of texts alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dragoman.cli.options import Data, examples
from dragoman.cli.output import note, write_text
from dragoman.cli.progress import progress_bar
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra

if TYPE_CHECKING:
    from dragoman.cli.back_translation import BackTranslation

__all__ = ["EPILOG", "back_translate"]

EPILOG = examples(
    "dragoman back-translate models/de-en/1 --out data/made.jsonl  # pairs from en to de, from the texts of training",
    "dragoman back-translate models/de-en/1 --num-hypotheses 2 --out data/made.jsonl  # two pairs from each text",
    "dragoman back-translate models/de-en/1 --text german.txt --out data/made.jsonl  # from texts without translations",
)


def back_translate(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="Folder of a translation bundle for the opposite direction. Its source language is the target "
            "language of the new model.",
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File for the pairs, as JSON Lines. corpus.synthetic_pairs names it in a recipe.",
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with one text in each line, plain, .gz or .xz. - is standard input.",
            show_default="the texts that the model was trained on",
        ),
    ] = None,
    data: Data = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use the first N texts only.", show_default="all"),
    ] = None,
    beam_size: Annotated[int, typer.Option(min=1, metavar="N", help="Hypotheses of the beam search.")] = 5,
    num_hypotheses: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Most pairs from one text. They are its best new translations."
        ),
    ] = 1,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the file of pairs in --out. The command never replaces any other file."
        ),
    ] = False,
) -> None:
    """Make training pairs from texts without translations: translate the texts and swap source and target.

    For example, a model from German to English translates German texts. The pairs
    are training data for a model from English to German. With --text this is
    back-translation. Without --text the command translates the model's own training
    texts again, in words that differ from the known translations (data
    diversification). This helps where there is little data.
    """
    require_extra("train")
    if text is not None and data is not None:
        raise UsageError(f"--data {data} is for the model's own training texts: leave it out with --text")
    from dragoman.cli.back_translation import PairSearch, back_translate_texts

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
