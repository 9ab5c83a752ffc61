"""Which folder `export --out` stands for, and what an export may replace."""

import shutil
from pathlib import Path

import pytest
from tests.trees import tree

from dragoman.common.errors import UsageError
from dragoman.export.destination import bundle_destination, choose_bundle_folder, served_folder

SPELL = Path(__file__).parents[1] / "fixtures" / "bundles" / "spell" / "2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run and a folder of two models."""
    for version in ("1", "3"):
        shutil.copytree(SPELL, tmp_path / "models" / "spell" / version)
    shutil.copytree(SPELL, tmp_path / "models" / "other" / "1")
    (tmp_path / "models" / "lost+found").mkdir()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").touch()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "empty").mkdir()
    shutil.copytree(SPELL, tmp_path / "loose")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("out", "chosen", "models"),
    [
        ("models/new/1", "models/new/1", "models"),
        ("models/spell/2", "models/spell/2", "models"),
        ("models/spell", "models/spell/4", "models"),
        ("models/spell/", "models/spell/4", "models"),
        ("models/new", "models/new/1", "models"),
        ("models/v3/1", "models/v3/1", "models"),
        ("models/2024/7", "models/2024/7", "models"),
        ("empty", "empty/1", "."),
        ("elsewhere/spell", "elsewhere/spell/1", "elsewhere"),
        ("thesis/1", "thesis/1", "."),
        ("models/spell/../third", "models/spell/../third/1", "models"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_models_folder_takes_its_next_free_version(out: str, chosen: str, models: str) -> None:
    bundle = choose_bundle_folder(Path(out))
    assert bundle == Path(chosen)
    assert served_folder(bundle) == Path(models)
    bundle_destination(bundle, Path("runs/mine"), replaces=False).check()


def test_a_folder_to_serve_is_as_absolute_as_the_bundle(here: Path) -> None:
    assert served_folder(here / "models" / "spell" / "4") == here / "models"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("models", "models is a folder of models (it holds 'other'); write models/NAME"),
        ("models/1", "models is a folder of models (it holds 'other'); write models/NAME"),
        ("models/spell/v3", "whole numbers; write models/spell/3, or models/spell for its next free version"),
        ("models/new/v3", "whole numbers; write models/new/3, or models/new"),
        ("models/new/1.2", "whole numbers; write models/new/1, or models/new"),
        ("models/new/01", "whole numbers; write models/new/1, or models/new"),
        ("models/new/" + 20 * "9", "versions of up to 18 digits; write a smaller one, or models/new for"),
        ("models/new/v" + 19 * "9", "versions of up to 18 digits; write a smaller one, or models/new for"),
        ("models/new/version-2", "whole numbers; write models/new/2, or models/new"),
        (
            "models/spell/latest",
            "models/spell holds the versions of a model; write models/spell/4 for the next one",
        ),
        ("models/spell/latest/1", "models/spell holds the versions of a model; write models/spell/4"),
        ("models/spell/1/2", "models/spell/1 is a bundle itself, not a model's folder"),
        ("thesis", "thesis is not a model's folder, which holds versions only: it holds 'chapter.tex'"),
        ("runs/mine", "runs/mine is not a model's folder, which holds versions only: it holds 'run.json'"),
        ("runs", "runs is not a model's folder, which holds versions only: it holds 'mine'"),
        ("loose", "loose is a bundle itself, not a model's folder"),
        ("models/.hidden/1", "the server serves no model called '.hidden'"),
        ("models/.hidden", "the server serves no model called '.hidden'"),
        ("models/a\tb/1", r"the server serves no model called 'a\tb'"),
        ("/1", "the server serves no model called ''"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_would_never_be_served_is_refused_with_what_to_write(out: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose_bundle_folder(Path(out))
    assert message in str(refused.value)
    assert str(refused.value).startswith(out)


def test_after_the_highest_version_there_is_none(here: Path) -> None:
    (here / "models" / "spell" / (18 * "9")).mkdir()
    with pytest.raises(UsageError, match="models/spell holds the highest version"):
        choose_bundle_folder(Path("models/spell"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("runs/mine/1", "lies in runs/mine, which this command reads"),
        ("file/1", "file is a file"),
        ("models/file/1", "models/file/1 is not a bundle, and nothing else is ever replaced: it is a file"),
        ("models/foreign/1", "it holds 'notes.txt' as well"),
        ("models/nested/1", "it holds 'more' as well"),
        ("models/torn/1", "its bundle.json is not one of a bundle"),
        ("models/none/1", "it holds no bundle.json"),
        ("models/endless/1", "it holds no bundle.json"),
        ("models/link/1", "is a link to"),
    ],
)
def test_only_a_bundle_is_ever_replaced(here: Path, out: str, message: str) -> None:
    (here / "file").touch()
    (here / "models" / "file").mkdir()
    (here / "models" / "file" / "1").write_text("thesis")
    for name in ("foreign", "nested", "torn", "none", "endless"):
        shutil.copytree(SPELL, here / "models" / name / "1")
    (here / "models/foreign/1/notes.txt").touch()
    (here / "models/nested/1/more").mkdir()
    (here / "models/torn/1/bundle.json").write_text('{"schema_version": 2')
    (here / "models/none/1/bundle.json").unlink()
    (here / "models/endless/1/bundle.json").unlink()
    (here / "models/endless/1/bundle.json").symlink_to("/dev/zero")
    (here / "models/link").mkdir()
    (here / "models/link/1").symlink_to(here / "models/spell/1")
    before = tree(here)
    with pytest.raises(UsageError) as refused:
        bundle_destination(choose_bundle_folder(Path(out)), Path("runs/mine"), replaces=True).check()
    assert message in str(refused.value)
    assert tree(here) == before


@pytest.mark.usefixtures("here")
def test_a_bundle_is_replaced_when_told_to() -> None:
    with pytest.raises(UsageError, match="models/spell/1 is a bundle already: give --force"):
        bundle_destination(Path("models/spell/1"), Path("runs/mine"), replaces=False).check()
    bundle_destination(Path("models/spell/1"), Path("runs/mine"), replaces=True).check()
