"""`dragoman generate`: text as it is produced."""

import sys
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
from client.cli.output import note_waiting_for_input, write_text

__all__ = ["EPILOG", "generate"]

EPILOG = examples(
    'dragoman generate --model stdlib --max-tokens 200 "def main("',
    'dragoman generate --model stdlib --temperature 0.8 --top-p 0.95 --seed 1 "import os"',
    "dragoman generate --model stdlib --stop $'\\n\\n' < prompt.txt  # the prompt from a file",
)


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue.", show_default="all of standard input"),
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
    """Continue a prompt, printing text as the model produces it (the prompt itself is not repeated)."""
    from client import Client

    options = decoding_options(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    if prompt is None:
        note_waiting_for_input()
        prompt = sys.stdin.read()
    with (
        Client(target, timeout_s=timeout_s) as client,
        client.generate(prompt, model=model, version=model_version, **options) as generation,
    ):
        piece = ""
        for piece in generation:
            write_text(piece)
        if not piece.endswith("\n"):
            write_text("\n")
