"""How answers and scores are printed: lines of text, JSON lines, or tables of tokens."""

import dataclasses
import enum
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dragoman.cli.lines import BadLine
from dragoman.cli.output import json_line, report_console
from dragoman.client.results import (
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
    """The form in which one answer is printed."""

    TEXT = enum.auto()
    JSON = enum.auto()
    TABLE = enum.auto()

    def of_nothing(self, number: int, bad: BadLine | None) -> str:
        """Returns the line, in any form, of input `number` that has no answer, as it is empty or `bad`."""
        if self is not Form.JSON:
            return "\n"
        return json_line({"input": number, "error": bad.reason}) if bad else "null\n"


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
        with_numbers: Whether such a line begins with the number of its input, because there may be several.
    """

    form: Form
    with_scores: bool
    with_numbers: bool

    @classmethod
    def of(cls, options: DecodingOptions, *, as_json: bool, num_inputs: int | None = 1) -> "AnswerForm":
        """The form that suits what was asked for; `num_inputs` is None where nobody knows how many there are."""
        tells_tokens = options.get("num_alternatives") is not None or bool(options.get("alignment"))
        with_scores = options.get("num_hypotheses") is not None
        return cls(
            form_of(as_json=as_json, tells_tokens=tells_tokens),
            with_scores=with_scores,
            with_numbers=with_scores and num_inputs != 1,
        )

    @property
    def is_bare(self) -> bool:
        """Whether nothing is printed but the text of each answer."""
        return self.form is Form.TEXT and not self.with_scores

    def translation(self, answer: Translation | BadLine | None, number: int = 1) -> str:
        """The answer to input `number` as it is printed; see `LineAnswers` for what it may be."""
        if answer is None or isinstance(answer, BadLine):
            return self.form.of_nothing(number, answer)
        if self.form is Form.JSON:
            return json_line({"input": number, **dataclasses.asdict(answer)})
        return self._hypotheses(_hypotheses_of(answer, answer.text), answer.source_tokens, number)

    def generation(self, text: str, summary: GenerationSummary) -> str:
        """A generated text as it is printed."""
        if self.form is Form.JSON:
            return json_line({"text": text, **dataclasses.asdict(summary)})
        return self._hypotheses(_hypotheses_of(summary, text), ())

    def _hypotheses(
        self, hypotheses: Sequence[Hypothesis], source_tokens: Sequence[str], number: int = 1
    ) -> str:
        shown = []
        for hypothesis in hypotheses:
            text = " ".join(hypothesis.text.splitlines())  # one line, whatever the model made of it
            columns = [f"{number}"] if self.with_numbers else []
            columns += [f"{hypothesis.score:.4f}"] if self.with_scores else []
            shown.append("\t".join([*columns, text]) + "\n")
            if self.form is Form.TABLE:
                shown.append(_as_text(token_table(hypothesis.tokens, source_tokens)))
        return "".join(shown)


def shown_score(score: TextScore | BadLine | None, form: Form, number: int = 1) -> str:
    """The score of input `number` as it is printed: log-probability, tokens, perplexity."""
    if score is None or isinstance(score, BadLine):
        return form.of_nothing(number, score)
    if form is Form.JSON:
        return json_line({"input": number, **dataclasses.asdict(score)})
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
