"""Lines through a translation model, to standard output."""

import contextlib
import sys
from collections.abc import Sequence

from client.asynchronous import AsyncClient
from client.cli.line_calls import LINES_PER_CALL, answer_lines, lines_from
from client.cli.output import write_text
from client.cli.rendering import AnswerForm
from client.results import DecodingOptions, Translation

__all__ = ["translate_lines"]


async def translate_lines(
    target: str,
    texts: Sequence[str] | None,
    *,
    model: str,
    version: str,
    target_prefix: str,
    timeout_s: float,
    options: DecodingOptions,
    form: AnswerForm,
) -> None:
    """Translate `texts`, or the lines of standard input when there are none, and print what comes of each.

    Args:
        target: The server.
        texts: Texts to translate, or none.
        model: The model's name.
        version: Its version; empty is the highest.
        target_prefix: What every translation begins with.
        timeout_s: Deadline of each call, and how long a call may be repeated while the server has no room.
        options: Decoding options of every call.
        form: How answers are printed.

    Raises:
        UsageError: a line is refused; it says which.
        CallError: the server cannot be reached.
    """
    # A line takes as many of the server's rows as it has hypotheses: a call of the same size takes fewer lines.
    num_rows = max(options.get("beam_size") or 1, options.get("num_hypotheses") or 1)
    blocks = lines_from(texts or sys.stdin.fileno(), max_lines=max(1, LINES_PER_CALL // num_rows))
    async with AsyncClient(target, timeout_s=timeout_s) as client:

        async def ask(lines: list[str]) -> list[Translation]:
            prefixes = [target_prefix] * len(lines) if target_prefix else []
            return await client.translate(
                lines, model=model, version=version, target_prefixes=prefixes, **options
            )

        unit = "text" if texts else "line"
        answered = answer_lines(blocks, str, ask, unit=unit, timeout_s=timeout_s)
        async with contextlib.aclosing(answered):
            async for _, answers in answered:
                write_text("".join(form.translation(answer) for answer in answers))
