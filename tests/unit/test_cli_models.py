"""What `dragoman models` prints can be read in a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from dragoman.cli.models import models_table, not_loaded_table
from dragoman.client.results import ModelInfo, NotLoadedModel, QualityFigure, Task

QUALITY = tuple(QualityFigure(name, 99.71, 2_000, "test") for name in ("exact_match", "bleu", "chrf"))


def lines_of(table: object, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def model(name: str, num_parameters: int = 1_234_567) -> ModelInfo:
    return ModelInfo(name, "12", Task.TRANSLATION, "int8", "cuda", num_parameters, 1_024, 512, {}, QUALITY)


@pytest.mark.parametrize("num_parameters", [0, 73_408, 60_000_000, 7_000_000_000])
def test_a_model_is_read_line_by_line(num_parameters: int) -> None:
    lines = lines_of(models_table([model("dates", num_parameters), model("[bold]x[/]")]))
    assert all(len(line) <= 80 for line in lines)
    first = next(index for index, line in enumerate(lines) if "dates/12" in line)
    assert lines[first].split() == [
        *("dates/12", "translation", f"{num_parameters:,}", "1,024", "in", "exact_match", "99.71")
    ]
    assert lines[first + 1].split() == ["int8,", "cuda", "512", "out", "bleu", "99.71"]
    assert lines[first + 2].split() == ["chrf", "99.71"]
    assert lines[first + 3] == ""
    assert "[bold]x[/]/12" in lines[first + 4]


def test_a_long_name_is_folded_and_nothing_of_it_lost() -> None:
    name = "".join(f"part{index}-" for index in range(20))
    lines = lines_of(models_table([model(name)]))
    assert all(len(line) <= 80 for line in lines)
    folded = "".join(line.split()[0] for line in lines[3:] if line and not line.startswith("   "))
    assert f"{name}/12" in folded
    assert "translation" in "\n".join(lines)


def test_what_is_not_loaded_has_its_reason() -> None:
    problem = "spell/2/decode.onnx is corrupt: its SHA-256 is " + 64 * "0"
    lines = lines_of(
        not_loaded_table(
            [
                NotLoadedModel("spell", "2", "broken", problem),
                NotLoadedModel(
                    "a\nb", "", "invalid_name", "its name holds a character that cannot be printed"
                ),
            ]
        )
    )
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "spell/2 broken spell/2/decode.onnx is corrupt" in text
    assert "'a\\nb' invalid name its name" in text
