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
]

_DECODING = "Decoding"
_SEARCH = "Beam search"
_CONSTRAINTS = "Constraints"
_OUTPUT = "Output"

MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Most tokens to produce.",
        show_default="the model's limit",
        rich_help_panel=_DECODING,
    ),
]
MinTokens = Annotated[
    int | None,
    typer.Option(metavar="N", help="Fewest tokens to produce.", show_default="0", rich_help_panel=_DECODING),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Above 0: sample from softmax(logits / T).",
        show_default="0, greedy",
        rich_help_panel=_DECODING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Sample among the K most probable tokens.",
        show_default="all",
        rich_help_panel=_DECODING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Sample among the most probable tokens that together reach P.",
        show_default="1.0",
        rich_help_panel=_DECODING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Makes sampling repeatable.",
        show_default="a fresh one each time",
        rich_help_panel=_DECODING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End the output before this text. May be repeated.",
        show_default=False,
        rich_help_panel=_DECODING,
    ),
]

BeamSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Pursue the N best hypotheses at the same time; the text comes when the search has ended.",
        show_default="1, greedy",
        rich_help_panel=_SEARCH,
    ),
]
NumHypotheses = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Print the N best answers, best first, a line each: score, tab, text. Of several inputs, each "
        "line begins with the input's number and a tab. Needs --beam-size, or --temperature for N samples.",
        show_default="1, without its score",
        rich_help_panel=_SEARCH,
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="Rank by log-probability / length ^ A: 0 favours short answers, above 1 long ones.",
        show_default="1.0",
        rich_help_panel=_SEARCH,
    ),
]
CoveragePenalty = Annotated[
    float | None,
    typer.Option(
        metavar="B",
        help="Rank down translations that pass over parts of the source, the more the higher B is.",
        show_default="0.0",
        rich_help_panel=_SEARCH,
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="End the search with P times the beam size of finished hypotheses.",
        show_default="1.0",
        rich_help_panel=_SEARCH,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Above 1: tokens that are there already become less probable.",
        show_default="1.0",
        rich_help_panel=_CONSTRAINTS,
    ),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="No run of N tokens comes a second time.",
        show_default="no limit",
        rich_help_panel=_CONSTRAINTS,
    ),
]
Suppress = Annotated[
    list[str] | None,
    typer.Option(
        "--suppress",
        metavar="TEXT",
        help="Keep this text out of the output, within words too. May be repeated.",
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
        help="Tell each token's log-probability and the N most probable tokens at its place: "
        "a table on a terminal, JSON lines elsewhere.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Alignment = Annotated[
    bool,
    typer.Option(
        "--alignment",
        help="Tell which source token each token looks at most; shown as --alternatives are. "
        "Needs a model that was exported with alignments.",
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


def with_decoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for everything in `_SHARED` in the place of the command's parameter `options`.

    Typer reads a command's parameters one by one and knows no groups of them.
    """
    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "options":
            parameters += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                for name, annotation in _SHARED.items()
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options: Any = {name: given.pop(name) for name in _SHARED}
        command(**given, options=options)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_options
