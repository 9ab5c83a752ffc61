"""`dragoman evaluate`: the same figures over gRPC and from the bundle's folder, on examples counted by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.integration.provenance import (
    BUNDLES,
    GENERATION,
    OLD_BUNDLES,
    TRANSLATION,
    bundle_with_recipe,
    golden_pairs,
)

from dragoman.cli import bundle_evaluation
from dragoman.cli.main import main
from dragoman.cli.server_process import running_server
from dragoman.client.asynchronous import AsyncClient
from dragoman.server.engine.offline import decode_offline


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_server_and_a_folder_have_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with_recipe(tmp_path, "spell", TRANSLATION)
    right = golden_pairs(bundle)
    pairs = [*right, ("9" * 60, "too long to be answered"), (right[0][0], "not what it says")]
    lines = "".join(f"{source}\t{target}\n" for source, target in pairs)
    (tmp_path / "train.tsv").write_text("1\tone\n")
    (tmp_path / "test.tsv").write_text(lines)

    from_folder = evaluated(capsys, str(bundle))
    asked: list[tuple[int | None, float | None]] = []
    with running_server(tmp_path / "models") as server:
        from_server = evaluated(capsys, server.target)
        translate = AsyncClient.translate

        async def watched_call(*arguments: Any, **named: Any) -> Any:
            asked.append((named.get("beam_size"), named.get("length_penalty")))
            return await translate(*arguments, **named)

        monkeypatch.setattr(AsyncClient, "translate", watched_call)
        searched = evaluated(capsys, server.target, "--beam-size", "4", "--length-penalty", "0.5")
        assert set(asked) == {(4, 0.5)}
        assert main(["evaluate", server.target, "--beam-size", "65"]) == 2
        assert "65 is not between 1 and 32" in capsys.readouterr().err
        first = evaluated(capsys, server.target, "--model", "spell", "--limit", str(len(right)))

    assert from_folder["search"] == {"beam_size": 1, "length_penalty": 1.0}
    assert from_folder["metrics"]["exact_match"] == pytest.approx(100 * len(right) / len(pairs))
    assert (from_folder["num_examples"], from_folder["num_refused"]) == (len(pairs), 1)
    assert (from_folder["model"], from_folder["version"], from_folder["data"]) == (
        "spell",
        "1",
        "spelled test split",
    )
    assert first["metrics"] == pytest.approx({"exact_match": 100, "bleu": 100, "chrf": 100})
    asked.clear()

    def watched(*arguments: Any, **named: Any) -> Any:
        asked.extend((parameters.beam_size, parameters.length_penalty) for _, parameters in arguments[1])
        return decode_offline(*arguments, **named)

    monkeypatch.setattr(bundle_evaluation, "decode_offline", watched)
    beam = evaluated(capsys, str(bundle), "--beam-size", "4", "--length-penalty", "0.5")
    assert set(asked) == {(4, 0.5)}
    assert beam["search"] == searched["search"] == {"beam_size": 4, "length_penalty": 0.5}
    assert beam["metrics"] == searched["metrics"]
    unlike = {"through", "seconds"}
    assert {k: v for k, v in from_server.items() if k not in unlike} == {
        k: v for k, v in from_folder.items() if k not in unlike
    }


def test_figures_are_those_of_the_recipe_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = TRANSLATION + '[quality]\nbleu_tokenization = "char"\nignore_case = true\n'
    bundle = bundle_with_recipe(tmp_path, "spell", recipe)
    right = golden_pairs(bundle)
    (tmp_path / "train.tsv").write_text("1\tone\n")
    (tmp_path / "test.tsv").write_text("".join(f"{source}\t{target.upper()}\n" for source, target in right))
    from_folder = evaluated(capsys, str(bundle))
    with running_server(tmp_path / "models") as server:
        from_server = evaluated(capsys, server.target)
    for result in (from_folder, from_server):
        assert result["metrics"] == {"exact_match": 100, "bleu": 100, "chrf": 100}
        assert {"tok:char", "case:lc"} <= set(result["signatures"]["bleu"].split("|"))
        assert "case:lc" in result["signatures"]["chrf"]


def test_a_headline_fits_single_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_with_recipe(tmp_path, "spell", TRANSLATION)
    (tmp_path / "train.tsv").write_text("1\tone\n")
    (tmp_path / "test.tsv").write_text("1\tone\n2\ttwo\n3\tdrei\n")
    result = evaluated(capsys, str(bundle))
    assert result["headline"] == ["exact_match", "chrf"]
    assert set(result["metrics"]) == {"exact_match", "chrf"}
    assert set(result["signatures"]) == {"chrf"}
    assert result["metrics"]["exact_match"] == pytest.approx(100 * 2 / 3)


def test_what_a_model_knows_takes_fewer_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_with_recipe(tmp_path, "count", GENERATION)
    (tmp_path / "train.txt").write_text("one two three\n")
    figures = {}
    for name, text in (
        ("known", " ".join(["four five six seven eight nine zero one two three"] * 3)),
        ("strange", "Zyx, qwop! 99 @ vlurm"),
    ):
        (tmp_path / "test.txt").write_text(text)
        result = evaluated(capsys, str(bundle))
        assert result["task"] == "generation"
        assert result["headline"] == ["bits_per_byte"]
        figures[name] = result["metrics"]["bits_per_byte"]
        assert math.isfinite(figures[name])
    assert 0 < figures["known"] < 1 < figures["strange"]


@pytest.mark.parametrize(
    ("fixture", "options", "message"),
    [
        ("spell", ["--beam-size", "0"], "--beam-size 0 is less than 1"),
        ("spell", ["--beam-size", "33"], "--beam-size 33 is more than 32, the rows that run together"),
        (
            "spell",
            ["--length-penalty", "2"],
            "--length-penalty 2 has no meaning without a --beam-size above 1",
        ),
        (
            "spell",
            ["--beam-size", "4", "--length-penalty", "11"],
            "--length-penalty 11 is not between -10 and 10",
        ),
        ("spell", ["--beam-size", "4", "--length-penalty", "nan"], "--length-penalty nan is not between"),
        ("count", ["--beam-size", "4"], "--beam-size 4 is for translations: "),
    ],
)
def test_a_search_without_meaning_is_refused(
    fixture: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(BUNDLES / fixture / "1"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_bundle_that_names_no_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(OLD_BUNDLES / "spell" / "1")]) == 2
    assert "spell/1: 'task' is missing" in capsys.readouterr().err


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_with_recipe(tmp_path, "spell", TRANSLATION)
    assert main(["evaluate", str(bundle), "--data", str(tmp_path / "elsewhere")]) == 2
    assert str(tmp_path / "elsewhere") in capsys.readouterr().err
