"""Options that say how to decode, each written once, for the commands that ask for text."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

__all__ = [
    "Alignment",
    "Alternatives",
    "BeamSize",
    "CoveragePenalty",
    "LengthPenalty",
    "MaxTokens",
    "MinTokens",
    "TargetPrefix",
    "with_decoding_options",
    "with_text_options",
]

_DECODING = "Decoding"
_SEARCH = "Beam search"
_CONSTRAINTS = "Constraints"
_OUTPUT = "Output"

MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Most tokens of an answer.",
        show_default="the model's limit",
        rich_help_panel=_DECODING,
    ),
]
MinTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Fewest tokens of an answer.", show_default="0", rich_help_panel=_DECODING
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Above 0: draw each token from softmax(logits / T). 0: take the most probable token.",
        show_default="0",
        rich_help_panel=_DECODING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Draw from the K most probable tokens.",
        show_default="all",
        rich_help_panel=_DECODING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Draw from the most probable tokens whose probabilities together reach P.",
        show_default="1.0",
        rich_help_panel=_DECODING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Random seed. The same seed, input and model give the same answer.",
        show_default="another one each time",
        rich_help_panel=_DECODING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="The answer ends before this text. May be repeated.",
        show_default=False,
        rich_help_panel=_DECODING,
    ),
]

BeamSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Beam search with N hypotheses at a time. The text is printed when the search has ended.",
        show_default="1, no beam search",
        rich_help_panel=_SEARCH,
    ),
]
NumHypotheses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Print the N best answers, the best first. Each line holds the score, a tab and the text. With "
        "several inputs, each line begins with the input's number and a tab. Needs --beam-size, or --temperature "
        "for N samples.",
        show_default="1, without its score",
        rich_help_panel=_SEARCH,
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="Rank hypotheses by log-probability / length ^ A. 0 favours short answers, more than 1 long ones.",
        show_default="1.0",
        rich_help_panel=_SEARCH,
    ),
]
CoveragePenalty = Annotated[
    float | None,
    typer.Option(
        metavar="B",
        help="Lower the rank of translations that leave out parts of the source. A higher B lowers it more.",
        show_default="0.0",
        rich_help_panel=_SEARCH,
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="The search ends when P times --beam-size hypotheses are finished.",
        show_default="1.0",
        rich_help_panel=_SEARCH,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Above 1: tokens that the answer holds already become less probable.",
        show_default="1.0",
        rich_help_panel=_CONSTRAINTS,
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="No sequence of N tokens occurs twice in an answer. 0: no limit.",
        show_default="no limit",
        rich_help_panel=_CONSTRAINTS,
    ),
]
Suppress = Annotated[
    list[str] | None,
    typer.Option(
        "--suppress",
        metavar="TEXT",
        help="No answer holds this text, not even within a word. May be repeated.",
        show_default=False,
        rich_help_panel=_CONSTRAINTS,
    ),
]
TargetPrefix = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Every translation begins with this text.",
        show_default=False,
        rich_help_panel=_CONSTRAINTS,
    ),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        "--alternatives",
        metavar="N",
        help="Print each token, its log-probability, and the N most probable tokens at its place. "
        "A terminal shows a table; files and pipes get JSON lines.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Alignment = Annotated[
    bool,
    typer.Option(
        "--alignment",
        help="Print for each token the source token that gets most of its attention. The format is that of "
        "--alternatives. Needs a model that was exported with alignments.",
        rich_help_panel=_OUTPUT,
    ),
]

_SHARED: dict[str, Any] = {
    "max_tokens": MaxTokens,
    "min_tokens": MinTokens,
    "temperature": Temperature,
    "top_k": TopK,
    "top_p": TopP,
    "seed": Seed,
    "stop": Stop,
    "beam_size": BeamSize,
    "num_hypotheses": NumHypotheses,
    "length_penalty": LengthPenalty,
    "patience": Patience,
    "repetition_penalty": RepetitionPenalty,
    "no_repeat_ngram_size": NoRepeatNgramSize,
    "suppressed_texts": Suppress,
    "num_alternatives": Alternatives,
}
"""What every model that answers with text can do, under the names that `DecodingOptions` has for it."""


_OF_TEXTS = {name: option for name, option in _SHARED.items() if name != "num_alternatives"}
"""The same without what is told of single tokens."""


def with_decoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for everything in `_SHARED` in the place of the command's parameter `options`."""
    return _with_options(command, _SHARED)


def with_text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put the options that say how a text is decoded in the place of the command's parameter `options`."""
    return _with_options(command, _OF_TEXTS)


def _with_options(command: Callable[..., None], added: dict[str, Any]) -> Callable[..., None]:
    """Put options in the place of the parameter `options`. Typer reads parameters one by one and knows no groups."""
    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            parameters += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                for name, annotation in added.items()
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options: Any = {name: given.pop(name) for name in added}
        command(**given, options=options)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_options
