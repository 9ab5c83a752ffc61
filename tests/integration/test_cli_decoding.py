"""Ways of decoding and scoring through the command, against a real server and one that is scripted."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration import scripted_server
from tests.integration.scripted_server import ScriptedServer, invalid
from tests.integration.serving import BUNDLES

from dragoman.cli import options
from dragoman.cli.line_calls import LineAnswers
from dragoman.cli.line_scoring import LineScorer
from dragoman.cli.main import main
from dragoman.cli.model_source import ModelSource
from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.client import Client, TextScore

ALIGNED = BUNDLES.parent / "aligned"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(ALIGNED / "spell", models / "spell")
    shutil.copytree(BUNDLES / "count", models / "count")
    with running_server(models) as process:
        yield process


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server.running_server() as running:
        yield running


@pytest.fixture
def dragoman(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run a command in this process; returns its standard output, after checking the code and the error."""

    def run(*arguments: str, lines: str = "", code: int = 0, error: str = "") -> str:
        (tmp_path / "stdin").write_text(lines)
        with (tmp_path / "stdin").open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert main(arguments) == code
        captured = capfdbinary.readouterr()
        assert error in captured.err.decode()
        return captured.out.decode()

    return run


def test_the_best_answers_come_first_each_with_its_score(server: ServerProcess, dragoman: Run) -> None:
    where = ("translate", "--target", server.target, "--model", "spell", "--beam-size", "4")
    output = dragoman(*where, "--num-hypotheses", "3", lines="12\n\n907\n")
    lines = output.splitlines()
    assert [bool(line) for line in lines] == [True] * 3 + [False] + [True] * 3
    assert [line.split("\t")[0] for line in lines] == ["1", "1", "1", "", "3", "3", "3"]
    one = dragoman(*where, "--num-hypotheses", "3", "12").splitlines()
    assert one == [line.removeprefix("1\t") for line in lines[:3]]
    lines = one
    scores = [float(line.split("\t")[0]) for line in lines[:3]]
    assert scores == sorted(scores, reverse=True)
    assert lines[0].split("\t")[1] == "one two"
    with Client(server.target) as client:
        [answer] = client.translate("12", model="spell", beam_size=4, num_hypotheses=3)
    assert [line.split("\t")[1] for line in lines[:3]] == [each.text for each in answer.hypotheses]


def test_samples_of_a_generated_text_are_lines(server: ServerProcess, dragoman: Run) -> None:
    where = ("generate", "--target", server.target, "--model", "count", "--max-tokens", "3", "one")
    sampled = dragoman(*where, "--temperature", "3", "--seed", "1", "--num-hypotheses", "4")
    assert len(sampled.splitlines()) == 4
    told = json.loads(dragoman(*where, "--alternatives", "2"))
    assert told["text"] == dragoman(*where).removesuffix("\n")
    assert [len(token["alternatives"]) for token in told["tokens"]] == [2, 2, 2]


def test_each_word_looks_at_its_digit(server: ServerProcess, dragoman: Run) -> None:
    told = json.loads(
        dragoman("translate", "--target", server.target, "--model", "spell", "--alignment", "12")
    )
    assert told["source_tokens"][:2] == ["1", "2"]
    looked_at = [token["source_index"] for token in told["tokens"]]
    assert "".join(token["token"] for token in told["tokens"][:-1]) == "one two"
    assert looked_at[0] == 0
    assert looked_at[4] == 1
    assert looked_at[-1] is None


def test_a_prefix_holds_for_every_line(server: ServerProcess, dragoman: Run) -> None:
    where = ("translate", "--target", server.target, "--model", "spell", "--target-prefix")
    output = dragoman(*where, "nine", lines="12\n\n345\n")
    first, empty, second = output.split("\n")[:3]
    assert (first[:4], empty, second[:4]) == ("nine", "", "nine")
    dragoman(*where, "x" * 200, "12", code=2, error="target_prefixes[0]: 200 tokens leave nothing of 81")


def test_a_score_is_the_log_probability_that_a_translation_had(server: ServerProcess, dragoman: Run) -> None:
    with Client(server.target) as client:
        answers = client.translate(["12", "907"], model="spell")
    pairs = "".join(
        f"{source}\t{answer.text}\n\n" for source, answer in zip(["12", "907"], answers, strict=True)
    )
    where = ("score", "--target", server.target, "--model", "spell")
    first, empty, second, last = dragoman(*where, lines=pairs, error="all together: texts 2,").splitlines()
    assert (empty, last) == ("", "")
    for line, answer in zip((first, second), answers, strict=True):
        log_probability, num_tokens, perplexity = line.split("\t")
        assert float(log_probability) == pytest.approx(answer.log_probability, abs=2e-4)
        assert int(num_tokens) == answer.num_output_tokens
        assert float(perplexity) == pytest.approx(
            math.exp(-answer.log_probability / answer.num_output_tokens), abs=2e-4
        )
    assert dragoman(*where, "12", "one two", "907", answers[1].text) == f"{first}\n{second}\n"


def test_scores_of_texts_are_json_lines_and_the_corpus_is_the_last(
    server: ServerProcess, dragoman: Run, tmp_path: Path
) -> None:
    (tmp_path / "texts").write_text("one two three\n\none three two\n")
    where = ("score", "--target", server.target, "--model", "count", "--json")
    likely, empty, odd, corpus = map(
        json.loads, dragoman(*where, "--inputs", str(tmp_path / "texts")).splitlines()
    )
    assert empty is None
    assert likely["log_probability"] > odd["log_probability"]
    together = likely["log_probability"] + odd["log_probability"]
    assert corpus["corpus"]["log_probability"] == pytest.approx(together)
    assert corpus["corpus"]["perplexity"] == pytest.approx(
        math.exp(-together / (len(likely["tokens"]) + len(odd["tokens"])))
    )


@pytest.mark.parametrize(
    ("arguments", "lines", "error"),
    [
        (("12",), "", "spell translates: give a source and its target, not 1 texts"),
        (("", "one two"), "", "pair 1: source: is empty"),
        (("--separator", "", "12", "one two"), "", "--separator is empty"),
        (("--separator", "|"), "7\tseven\n", "line 1: a source, '|' and its target are 2 columns, not 1"),
        ((), "12\tone two\n\n7 seven\n", "line 3: a source, a tab and its target are 2 columns, not 1"),
        ((), f"12\tone two\n\n{'9' * 99}\tnine\n", "line 3: source: 100 tokens are more than 25"),
        ((), "12\tone two\n7\t\n", "line 2: target: is empty"),
        ((), "", "there is nothing to score: the input holds no text"),
        (("--alternatives", "21", "7", "seven"), "", "num_alternatives: 21 is more than 20"),
        (("--alternatives", "-1", "7", "seven"), "", "num_alternatives = -1"),
    ],
)
def test_what_cannot_be_scored_is_named(
    server: ServerProcess, dragoman: Run, arguments: tuple[str, ...], lines: str, error: str
) -> None:
    where = ("score", "--target", server.target, "--model", "spell")
    answered = dragoman(*where, *arguments, lines=lines, code=2, error=f"error: {error}")
    named = re.match(r"line (\d+)", error)
    assert answered.count("\n") == (int(named[1]) - 1 if named else 0)


def test_a_source_may_hold_a_tab(scripted: ScriptedServer, dragoman: Run) -> None:
    where = ("score", "--target", scripted.target, "--model", "dates")
    dragoman(*where, "un\tdeux", "eins\tzwei")
    dragoman(*where, "--separator", " ||| ", lines="un\tdeux ||| eins\tzwei\n")
    pairs = [
        (pair.source, pair.target) for request in scripted.script.requests[1::2] for pair in request.pairs
    ]
    assert pairs == [("un\tdeux", "eins\tzwei")] * 2


def test_a_call_takes_fewer_lines_when_each_takes_more_rows(scripted: ScriptedServer, dragoman: Run) -> None:
    where = ("translate", "--target", scripted.target, "--model", "dates", "--beam-size", "8")
    assert dragoman(*where, lines="un\n" * 10) == "UN\n" * 10
    assert sorted(len(request.inputs) for request in scripted.script.requests) == [2, 4, 4]


def test_options_reach_the_server_under_their_own_names(scripted: ScriptedServer, dragoman: Run) -> None:
    dragoman(
        *("translate", "--target", scripted.target, "--model", "dates", "--length-penalty", "0.5"),
        *("--coverage-penalty", "0.25", "--patience", "2", "--repetition-penalty", "1.5"),
        *("--no-repeat-ngram-size", "3", "--suppress", "zwei", "--suppress", "drei", "un"),
    )
    sent = scripted.script.requests[0].options
    assert {field.name: value for field, value in sent.ListFields()} == {
        "length_penalty": 0.5,
        "coverage_penalty": 0.25,
        "patience": 2.0,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "suppressed_texts": ["zwei", "drei"],
    }


def test_a_refused_text_is_told_by_its_place(scripted: ScriptedServer, dragoman: Run) -> None:
    scripted.script.refuse = lambda request: (
        invalid("texts[1]", "odd") if hasattr(request, "texts") and len(request.texts) > 1 else None
    )
    where = ("score", "--target", scripted.target, "--model", "stdlib")
    dragoman(*where, "a", "b", code=2, error="error: text 2: odd")
    dragoman(*where, lines="a\n\nb\n", code=2, error="error: line 3: odd")


async def test_scoring_a_file_tells_how_much_of_it_is_done(scripted: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("é\n" * 100)
    shown: list[LineAnswers[TextScore]] = []
    told: list[tuple[str, float, float]] = []
    scorer = LineScorer(
        source=ModelSource(target=scripted.target, model="stdlib", version="", timeout_s=10),
        show=shown.append,
        progress=lambda *progress: told.append(progress),
    )
    with (tmp_path / "texts").open("rb") as file:
        corpus = await scorer.run(file.fileno())
    assert corpus.num_texts == sum(len(each.answers) for each in shown) == 100
    assert told[-1] == ("scoring, 100 lines", 300, 300)
    assert len(told) > 1


def test_a_models_name_is_completed(scripted: ScriptedServer) -> None:
    class Context:
        params = {"target": scripted.target}  # noqa: RUF012

    assert options.complete_model(Context(), "d") == ["dates"]  # type: ignore[arg-type]
