"""`dragoman back-translate`: the model spells numbers, so its pairs lead from words to digits."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.provenance import BUNDLES, OLD_BUNDLES, TRANSLATION, bundle_with_recipe, golden_pairs
from tests.trees import tree

from dragoman.cli import back_translation
from dragoman.cli.main import main
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.recipe import load_recipe
from dragoman.server.bundle.reader import Bundle
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.offline import decode_offline
from dragoman.server.execution.backend import Backend

SPELL = str(BUNDLES / "spell" / "1")
NUMBERS = dict(golden_pairs(Path(SPELL)))

Make = Callable[..., list[Pair]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the command and read what it wrote."""

    def run(*arguments: str) -> list[Pair]:
        out = tmp_path / "made" / "pairs.jsonl"
        assert main(["back-translate", *arguments, "--out", str(out), "--force"]) == 0
        assert [path.name for path in out.parent.iterdir()] == ["pairs.jsonl"], "nothing is left beside it"
        return [Pair(**json.loads(line)) for line in out.read_text().splitlines()]

    return run


def test_texts_get_translations_that_lead_back_to_them(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(back_translation, "_WINDOW_TEXTS", 3)
    babble = "7" * 30  # short enough to be read, not to be spelled
    lines = [*NUMBERS, "", "1" * 40, babble, next(iter(NUMBERS))]
    (tmp_path / "numbers.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    made = make(SPELL, "--text", str(tmp_path / "numbers.gz"), "--beam-size", "1")
    assert made == [Pair(words, digits) for digits, words in NUMBERS.items()]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == f"pairs: {len(NUMBERS)} in {tmp_path / 'made' / 'pairs.jsonl'}"
    assert "left out 2 of 12 documents: 1 empty (first: " in captured.out
    assert "over the model's limit of tokens: 1 texts" in captured.out
    assert "nothing new: 1 texts" in captured.out
    assert f"'corpus.synthetic_pairs=[\"{tmp_path}/made/pairs.jsonl\"]'" in captured.err


def test_standard_input_and_a_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BytesIO("".join(f"{digits}\n" for digits in NUMBERS).encode()))
    monkeypatch.setattr("sys.stdin", text)
    made = make(SPELL, "--text", "-", "--limit", "3", "--beam-size", "1")
    assert made == [Pair(words, digits) for digits, words in list(NUMBERS.items())[:3]]


def test_training_texts_get_other_words_than_the_known_ones(make: Make, tmp_path: Path) -> None:
    bundle = bundle_with_recipe(tmp_path, "spell", TRANSLATION)
    known = [("34", "three four"), ("7", "no such word"), ("34", "three four")]
    (tmp_path / "train.tsv").write_text("".join(f"{digits}\t{words}\n" for digits, words in known))
    (tmp_path / "test.tsv").write_text("1150\tone one five zero\n")

    [first, second] = make(str(bundle))
    assert (first.target, second) == ("34", Pair("seven", "7"))
    assert first.source != "three four"

    several = make(str(bundle), "--num-hypotheses", "3", "--beam-size", "4")
    assert len(several) == len(set(several))
    assert Pair("three four", "34") not in several
    backend = Backend.load(Bundle.read(bundle), provider="cpu", num_threads=1)
    parameters = DecodingParameters(max_tokens=81, beam_size=4, num_hypotheses=4)
    tokenizer = backend.bundle.tokenizer
    [found] = decode_offline(backend, [(tokenizer.encode("7").ids, parameters)], num_slots=4)
    best = [tokenizer.decode(hypothesis.token_ids) for hypothesis in found.hypotheses[:3]]
    assert [pair.source for pair in several if pair.target == "7"] == best


def test_a_recipe_learns_from_what_was_made(make: Make, tmp_path: Path) -> None:
    made = make(SPELL, "--text", _numbers(tmp_path), "--beam-size", "1")
    (tmp_path / "train.tsv").write_text("one\t1\n")
    (tmp_path / "test.tsv").write_text(f"nine\t{made[0].target}\n")  # the other way: of words, to digits
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(TRANSLATION)
    corpus = load_corpus(load_recipe(str(recipe), ['corpus.synthetic_pairs=["made/pairs.jsonl"]']))
    assert list(corpus.train) == [Pair("one", "1"), *made[1:]], "the first one's digits are in the test split"


def test_a_folder_to_write_to_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "folder").mkdir()
    assert main(["back-translate", SPELL, "--text", _numbers(tmp_path), "--out", str(folder)]) == 2
    assert f"{folder} is not a file of pairs, and nothing else is ever replaced" in capsys.readouterr().err


def test_pairs_that_were_made_are_replaced_when_told_to(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = _numbers(tmp_path), tmp_path / "made" / "pairs.jsonl"
    make(SPELL, "--text", text, "--limit", "2")
    before = out.read_bytes()
    assert main(["back-translate", SPELL, "--text", text, "--out", str(out)]) == 2
    assert "pairs.jsonl is a file of pairs already: give --force to replace it" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert len(make(SPELL, "--text", text, "--limit", "3")) == 3


def test_what_the_model_was_trained_on_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its corpus may look just like a file of pairs, and be under another name."""
    recipe = TRANSLATION.replace('kind = "tsv"', 'kind = "jsonl"').replace(".tsv", ".jsonl")
    bundle = bundle_with_recipe(tmp_path, "spell", recipe)
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"source": "34", "target": "no such words"}\n')
    (tmp_path / "other.jsonl").hardlink_to(tmp_path / "train.jsonl")
    before = tree(tmp_path)
    for out in ("train.jsonl", "test.jsonl", "other.jsonl"):
        assert main(["back-translate", str(bundle), "--out", str(tmp_path / out), "--force"]) == 2
        assert f"{out} is what this command reads" in capsys.readouterr().err
        assert tree(tmp_path) == before


def test_pairs_that_were_made_are_not_turned_round_again(make: Make, tmp_path: Path) -> None:
    recipe = TRANSLATION.replace("[tokenizer]", 'synthetic_pairs = ["made.jsonl"]\n[tokenizer]')
    bundle = bundle_with_recipe(tmp_path, "spell", recipe)
    (tmp_path / "train.tsv").write_text("34\tno such words\n")
    (tmp_path / "test.tsv").write_text("1150\tone one five zero\n")
    assert make(str(bundle), "--beam-size", "1") == [Pair("three four", "34")], "made.jsonl is not even there"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([str(BUNDLES / "count" / "1")], 2, "count/1 is a generation model: only one that translates"),
        ([SPELL, "--num-hypotheses", "6"], 2, "--num-hypotheses 6 is more than --beam-size 5"),
        ([SPELL, "--beam-size", "65"], 2, "--beam-size 65 is more than 64"),
        ([SPELL, "--text", "x", "--data", "y"], 2, "--data y is for the model's own training texts"),
        ([str(OLD_BUNDLES / "spell" / "1")], 2, "spell/1: 'task' is missing"),
        ([SPELL, "--text", "{tmp}/none"], 2, "cannot read {tmp}/none: No such file or directory"),
        ([SPELL, "--text", "{tmp}/empty"], 2, "{tmp}/empty holds no text to translate: 1 empty"),
        (
            [SPELL, "--text", "{tmp}/long"],
            2,
            "no pair was made of 1 texts: 1 are over the limit of 32 tokens, 0 gave nothing new",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line_and_no_file(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("1" * 40 + "\n")
    out = tmp_path / "made" / "pairs.jsonl"
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert main(["back-translate", *filled, "--out", str(out)]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.replace("{tmp}", str(tmp_path)) in error
    assert not out.parent.exists(), "not even the folder that was made for it"


def _numbers(folder: Path) -> str:
    path = folder / "numbers"
    path.write_text("".join(f"{digits}\n" for digits in NUMBERS))
    return str(path)
