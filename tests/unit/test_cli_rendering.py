"""Answers as they are printed: for people, for programs, a line for each line."""

import json
import math

import pytest

from dragoman.cli.line_scoring import CorpusScore
from dragoman.cli.lines import BadLine
from dragoman.cli.rendering import AnswerForm, Form, form_of, shown_score
from dragoman.client import (
    DecodingOptions,
    FinishReason,
    GenerationSummary,
    Hypothesis,
    OutputToken,
    TextScore,
    TokenAlternative,
    Translation,
)

TOKENS = (
    OutputToken(
        7, "o\u2581", -0.25, (TokenAlternative(7, "o\u2581", -0.25), TokenAlternative(8, "[b]", -2.5)), 1
    ),
    OutputToken(9, "\n", -0.5, (TokenAlternative(9, "\n", -0.5),)),
)
BEST = Hypothesis("one\ntwo", FinishReason.END_OF_SEQUENCE, 2, -0.75, -0.375, TOKENS)
SECOND = Hypothesis("one", FinishReason.LENGTH, 1, -2.0, -2.0, TOKENS[:1])
TRANSLATION = Translation("one\ntwo", FinishReason.END_OF_SEQUENCE, 3, 2, -0.75, -0.375, "1", tokens=TOKENS)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")


def form(*, as_json: bool = False, num_inputs: int | None = 1, **options: object) -> AnswerForm:
    given = DecodingOptions(**options)  # type: ignore[typeddict-item]
    return AnswerForm.of(given, as_json=as_json, num_inputs=num_inputs)


def test_a_translation_is_one_line() -> None:
    assert form().translation(TRANSLATION) == "one two\n"
    assert form().is_bare


def test_hypotheses_are_a_line_each_with_their_scores() -> None:
    several = Translation("one\ntwo", FinishReason.LENGTH, 3, 3, -0.75, -0.375, hypotheses=(BEST, SECOND))
    assert form(num_hypotheses=2).translation(several) == "-0.3750\tone two\n-2.0000\tone\n"
    assert form(num_hypotheses=1).translation(TRANSLATION) == "-0.3750\tone two\n"


@pytest.mark.parametrize("num_inputs", [2, None])
def test_hypotheses_of_several_inputs_begin_with_their_number(num_inputs: int | None) -> None:
    several = Translation("one\ntwo", FinishReason.LENGTH, 3, 3, -0.75, -0.375, hypotheses=(BEST, SECOND))
    numbered = form(num_hypotheses=2, num_inputs=num_inputs)
    assert numbered.translation(several, 7) == "7\t-0.3750\tone two\n7\t-2.0000\tone\n"
    assert form(num_inputs=num_inputs).translation(TRANSLATION, 7) == "one two\n"
    told = json.loads(form(num_hypotheses=2, num_inputs=num_inputs, as_json=True).translation(several, 7))
    assert (told["input"], len(told["hypotheses"])) == (7, 2)


def test_what_was_skipped_keeps_its_place() -> None:
    bad = BadLine("too long")
    assert form().translation(bad, 3) == "\n"
    assert form(num_hypotheses=2, num_inputs=None).translation(bad, 3) == "\n"
    assert json.loads(form(as_json=True).translation(bad, 3)) == {"input": 3, "error": "too long"}
    assert shown_score(bad, Form.TEXT, 3) == "\n"
    assert json.loads(shown_score(bad, Form.JSON, 3)) == {"input": 3, "error": "too long"}


def test_an_empty_line_stays_a_line_in_every_form() -> None:
    assert form().translation(None) == "\n"
    assert form(as_json=True).translation(None) == "null\n"
    assert shown_score(None, Form.TEXT) == "\n"


def test_tokens_are_json_for_programs_whether_asked_for_or_not() -> None:
    for told in (form(as_json=True), form(num_alternatives=0), form(alignment=True)):
        [line] = told.translation(TRANSLATION).splitlines()
        answer = json.loads(line)
        assert answer["text"] == "one\ntwo"
        assert answer["finish_reason"] == "end_of_sequence"
        assert answer["tokens"][0]["alternatives"][1] == {"id": 8, "token": "[b]", "log_probability": -2.5}


@pytest.mark.usefixtures("terminal")
def test_tokens_are_a_table_for_people() -> None:
    aligned = Translation(
        "one\ntwo", FinishReason.LENGTH, 3, 3, -0.75, -0.375, tokens=TOKENS, source_tokens=("<s>", "1")
    )
    shown = form(num_alternatives=2, alignment=True).translation(aligned)
    first, _, header, _, *rows = shown.splitlines()
    assert first == "one two"
    assert header.split() == ["Token", "Log-probability", "Looks", "at", "Most", "probable"]
    assert rows[0].split() == ["o\u2581", "-0.2500", "1", "o\u2581", "-0.2500", "[b]", "-2.5000"]
    assert rows[1].split() == ["'\\n'", "-0.5000", "'\\n'", "-0.5000"]


@pytest.mark.usefixtures("terminal")
def test_every_hypothesis_has_its_table_and_no_column_is_empty() -> None:
    plain = tuple(OutputToken(token.id, token.token, token.log_probability) for token in TOKENS)
    hypotheses = tuple(
        Hypothesis(text, FinishReason.LENGTH, 2, -0.75, -0.375, plain) for text in ("one", "two")
    )
    summary = GenerationSummary(FinishReason.LENGTH, 3, 4, -0.75, -0.375, "1", plain, hypotheses)
    shown = form(num_alternatives=0, num_hypotheses=2).generation("one", summary)
    assert [line for line in shown.splitlines() if "\t" in line] == ["-0.3750\tone", "-0.3750\ttwo"]
    assert shown.count("Log-probability") == 2
    assert "Most probable" not in shown
    assert "Looks at" not in shown


@pytest.mark.usefixtures("terminal")
def test_json_that_is_asked_for_is_json_on_a_terminal_too() -> None:
    assert form_of(as_json=True, tells_tokens=True) is Form.JSON
    assert form_of(as_json=False, tells_tokens=True) is Form.TABLE
    summary = GenerationSummary(FinishReason.LENGTH, 3, 4, -0.75, -0.375, "1")
    assert json.loads(form(as_json=True).generation("a\nb", summary))["text"] == "a\nb"


def test_a_score_is_its_log_probability_tokens_and_perplexity() -> None:
    score = TextScore(-0.75, 1.25, TOKENS, "1")
    assert shown_score(score, Form.TEXT) == "-0.7500\t2\t1.2500\n"
    assert json.loads(shown_score(score, Form.JSON))["perplexity"] == 1.25
    assert "Most probable" in shown_score(score, Form.TABLE)


def test_a_corpus_is_as_perplexing_as_its_tokens() -> None:
    short, long = TextScore(-1.0, 0.0, TOKENS[:1], "1"), TextScore(-3.0, 0.0, TOKENS, "1")
    corpus = CorpusScore().with_score(short).with_score(long)
    assert (corpus.num_texts, corpus.num_tokens, corpus.log_probability) == (2, 3, -4.0)
    assert corpus.perplexity == pytest.approx(math.exp(4 / 3))
