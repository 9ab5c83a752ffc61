"""Lines through a translation model, to standard output."""

import contextlib
from collections.abc import Sequence

from dragoman.cli.line_calls import LINES_PER_CALL, LineCalls, lines_from
from dragoman.cli.model_source import ModelSource
from dragoman.cli.output import write_text
from dragoman.cli.rendering import AnswerForm
from dragoman.client.results import DecodingOptions, Translation

__all__ = ["translate_lines"]


async def translate_lines(
    source: ModelSource,
    lines: Sequence[str] | int,
    *,
    target_prefix: str,
    options: DecodingOptions,
    form: AnswerForm,
    skips_bad: bool,
) -> None:
    """Translate lines and print what comes of each.

    Args:
        source: The model.
        lines: Texts, or the descriptor of a file of lines.
        target_prefix: What every translation begins with.
        options: Decoding options of every call.
        form: How answers are printed.
        skips_bad: Whether a line that cannot be translated is skipped; see `LineCalls`.

    Raises:
        UsageError: a line cannot be translated and is not skipped; it says which.
        CallError: the server cannot be reached.
    """
    # A line takes as many of the server's rows as it has hypotheses: a call of the same size takes fewer lines.
    num_rows = max(options.get("beam_size") or 1, options.get("num_hypotheses") or 1)
    blocks = lines_from(lines, max_lines=max(1, LINES_PER_CALL // num_rows))
    async with source.connect() as client:

        async def ask(texts: list[str]) -> list[Translation]:
            prefixes = [target_prefix] * len(texts) if target_prefix else []
            return await client.translate(
                texts,
                model=source.model,
                version=source.version,
                target_prefixes=prefixes,
                priority=source.priority,
                **options,
            )

        calls = LineCalls(
            parse=str,
            ask=ask,
            unit="line" if isinstance(lines, int) else "text",
            timeout_s=source.timeout_s,
            skips_bad=skips_bad,
        )
        async with contextlib.aclosing(calls.run(blocks)) as answered:
            async for each in answered:
                numbered = enumerate(each.answers, start=each.block.start + 1)
                write_text("".join(form.translation(answer, number) for number, answer in numbered))
