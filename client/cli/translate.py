"""`dragoman translate`: one translation a line, and nothing else on standard output."""

from typing import Annotated

import typer

from client.cli.options import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    MaxTokens,
    MinTokens,
    Model,
    ModelVersion,
    Seed,
    Stop,
    Target,
    Temperature,
    Timeout,
    TopK,
    TopP,
    decoding_options,
    examples,
)
from client.cli.output import note_waiting_for_input

__all__ = ["EPILOG", "translate"]

EPILOG = examples(
    'dragoman translate --model dates "le 3 mars 2024" "3. März 2024"',
    "dragoman translate --model multi30k < captions.en > captions.de  # a line for each line",
)


def translate(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts to translate.", show_default="the lines of standard input"
        ),
    ] = None,
    *,
    model: Model,
    model_version: ModelVersion = "",
    target: Target = DEFAULT_TARGET,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    max_tokens: MaxTokens = None,
    min_tokens: MinTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Translate texts, or the lines of standard input, and print one translation a line.

    Lines are sent as they come, several at a time, and answered in their order. An empty line stays one.
    """
    import asyncio

    from client.cli.line_translation import LineTranslator

    options = decoding_options(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    if not texts:
        note_waiting_for_input()
    translator = LineTranslator(model=model, version=model_version, timeout_s=timeout_s, options=options)
    asyncio.run(translator.run(target, texts))
