"""How answers and scores are printed: lines of text, JSON lines, or tables of tokens."""

import dataclasses
import enum
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.cli.output import json_line, report_console
from client.results import (
    DecodingOptions,
    GenerationSummary,
    Hypothesis,
    OutputToken,
    TextScore,
    Translation,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["AnswerForm", "Form", "form_of", "shown_score"]


class Form(enum.Enum):
    """What becomes of one answer."""

    TEXT = enum.auto()
    JSON = enum.auto()
    TABLE = enum.auto()

    @property
    def of_nothing(self) -> str:
        """What an empty line becomes: a line for each line, whatever the form."""
        return "null\n" if self is Form.JSON else "\n"


def form_of(*, as_json: bool, tells_tokens: bool) -> Form:
    """JSON where it was asked for; tokens are a table for people, and for programs JSON, too."""
    if as_json:
        return Form.JSON
    if tells_tokens:
        return Form.TABLE if sys.stdout.isatty() else Form.JSON
    return Form.TEXT


@dataclasses.dataclass(frozen=True)
class AnswerForm:
    """How the answers of one command are printed.

    Attributes:
        form: Text, JSON or tables.
        with_scores: Whether every hypothesis is a line with its score, because several were asked for.
    """

    form: Form
    with_scores: bool

    @classmethod
    def of(cls, options: DecodingOptions, *, as_json: bool) -> "AnswerForm":
        """The form that suits what was asked for."""
        tells_tokens = options.get("num_alternatives") is not None or bool(options.get("alignment"))
        return cls(
            form_of(as_json=as_json, tells_tokens=tells_tokens),
            with_scores=options.get("num_hypotheses") is not None,
        )

    @property
    def is_bare(self) -> bool:
        """Whether nothing is printed but the text of each answer."""
        return self.form is Form.TEXT and not self.with_scores

    def translation(self, answer: Translation | None) -> str:
        """A translation as it is printed; None is what an empty line got."""
        if answer is None:
            return self.form.of_nothing
        if self.form is Form.JSON:
            return json_line(dataclasses.asdict(answer))
        return self._hypotheses(_hypotheses_of(answer, answer.text), answer.source_tokens)

    def generation(self, text: str, summary: GenerationSummary) -> str:
        """A generated text as it is printed."""
        if self.form is Form.JSON:
            return json_line({"text": text, **dataclasses.asdict(summary)})
        return self._hypotheses(_hypotheses_of(summary, text), ())

    def _hypotheses(self, hypotheses: Sequence[Hypothesis], source_tokens: Sequence[str]) -> str:
        shown = []
        for hypothesis in hypotheses:
            text = " ".join(hypothesis.text.splitlines())  # one line, whatever the model made of it
            shown.append(f"{hypothesis.score:.4f}\t{text}\n" if self.with_scores else f"{text}\n")
            if self.form is Form.TABLE:
                shown.append(_as_text(token_table(hypothesis.tokens, source_tokens)))
        return "".join(shown)


def shown_score(score: TextScore | None, form: Form) -> str:
    """A text's score as it is printed: log-probability, tokens, perplexity; None is an empty line's."""
    if score is None:
        return form.of_nothing
    if form is Form.JSON:
        return json_line(dataclasses.asdict(score))
    line = f"{score.log_probability:.4f}\t{len(score.tokens)}\t{score.perplexity:.4f}\n"
    return line + _as_text(token_table(score.tokens)) if form is Form.TABLE else line


def token_table(tokens: Sequence[OutputToken], source_tokens: Sequence[str] = ()) -> "Table":
    """One row a token; what nobody asked for has no column."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Token")
    table.add_column("Log-probability", justify="right")
    if source_tokens:
        table.add_column("Looks at")
    has_alternatives = any(token.alternatives for token in tokens)
    if has_alternatives:
        table.add_column("Most probable")
    for token in tokens:
        cells = [_spelled(token.token), f"{token.log_probability:.4f}"]
        if source_tokens:
            cells.append("" if token.source_index is None else _spelled(source_tokens[token.source_index]))
        if has_alternatives:
            cells.append(
                "  ".join(
                    f"{_spelled(other.token)} {other.log_probability:.4f}" for other in token.alternatives
                )
            )
        table.add_row(*map(Text, cells))
    return table


def _hypotheses_of(answer: Translation | GenerationSummary, text: str) -> Sequence[Hypothesis]:
    """All answers, best first; a server tells only the best one if it was asked for one."""
    return answer.hypotheses or (
        Hypothesis(
            text=text,
            finish_reason=answer.finish_reason,
            num_output_tokens=answer.num_output_tokens,
            log_probability=answer.log_probability,
            score=answer.score,
            tokens=answer.tokens,
        ),
    )


def _spelled(token: str) -> str:
    """A token that can be seen: white space and what no terminal shows are in quotes, escaped."""
    return token if token.strip() and token.isprintable() else repr(token)


def _as_text(table: "Table") -> str:
    console = report_console()
    with console.capture() as capture:
        console.print(table)
    return capture.get()
