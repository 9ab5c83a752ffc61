import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DragomanError
from model.corpora.corpus import Corpus, Pair
from model.corpora.files import hold_out_ends
from model.corpora.load import load_corpus
from model.errors import CorpusError
from model.recipe import load_recipe

MODEL = """
[tokenizer]
kind = "character"
[model]
width = 32
num_heads = 2
{encoder}
num_decoder_layers = 1
max_target_tokens = 32
[training]
max_steps = 1
"""
ENCODER = "num_encoder_layers = 1\nmax_source_tokens = 32"


def load(
    folder: Path, corpus: str, task: str = "translation", data: Path | None = None
) -> Corpus[str | Pair]:  # type: ignore[type-var]
    """The corpus that a recipe with this `[corpus]` section, in `folder`, gives."""
    encoder = ENCODER if task == "translation" else ""
    path = folder / "mine.toml"
    path.write_text(f'name = "mine"\ntask = "{task}"\n[corpus]\n{corpus}\n{MODEL.format(encoder=encoder)}')
    return load_corpus(load_recipe(str(path)), data)  # type: ignore[return-value]


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode())


PARALLEL = 'kind = "parallel"\ntrain = { source = "a", target = "b" }\n'


def numbered(word: str, count: int = 100) -> str:
    return "".join(f"{word} {n}\n" for n in range(count))


def test_parallel_files_keep_their_pairs_together(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left"), b=numbered("right"))
    corpus = load(tmp_path, PARALLEL)
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    assert sorted(everything) == sorted(Pair(f"left {n}", f"right {n}") for n in range(100))
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (96, 2, 2)


def test_gz_files_are_unpacked_and_splits_can_have_their_own(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("valid", 3), ("test", 2)):
        for side in ("de", "en"):
            content = numbered(f"{name} {side}", count).encode()
            (tmp_path / f"{name}.{side}.gz").write_bytes(gzip.compress(content))
    corpus = load(
        tmp_path,
        'kind = "parallel"\n'
        'train = { source = "train.de.gz", target = "train.en.gz" }\n'
        'validation = { source = "valid.de.gz", target = "valid.en.gz" }\n'
        'test = { source = "test.de.gz", target = "test.en.gz" }\n',
    )
    assert corpus.train[0] == Pair("train de 0", "train en 0")
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (10, 3, 2)


def test_data_takes_the_place_of_the_recipes_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, a=numbered("left"), b=numbered("right"))
    assert load(tmp_path, PARALLEL, data=elsewhere).train


def test_unequal_files_are_named_with_both_counts(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left", 5), b=numbered("right", 7))
    with pytest.raises(CorpusError, match=r"a has 5 lines and .*b has 7"):
        load(tmp_path, PARALLEL)


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    write(tmp_path, a="one\u2028still one\r\n" + numbered("two\x0b\x85"), b=numbered("line", 101))
    corpus = load(tmp_path, PARALLEL)
    everything = [*corpus.train, *corpus.validation, *corpus.test]
    assert Pair("one\u2028still one", "line 0") in everything
    assert Pair("two\x0b\x85 99", "line 100") in everything


def test_pairs_with_an_empty_side_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left") + "\n  \nx\n", b=numbered("right") + "y\nz\n\n")
    corpus = load(tmp_path, PARALLEL)
    assert corpus.num_empty == 3
    assert len([*corpus.train, *corpus.validation, *corpus.test]) == 100


def test_repeated_sources_stay_on_one_side(tmp_path: Path) -> None:
    write(tmp_path, a=numbered("left", 50) * 4, b=numbered("right", 200))
    corpus = load(tmp_path, PARALLEL)
    splits = [{pair[0] for pair in split} for split in (corpus.train, corpus.validation, corpus.test)]
    assert sum(map(len, splits)) == 50
    assert all(splits)


def test_tsv(tmp_path: Path) -> None:
    rows = "".join(f"{n}\tsource {n}\ttarget {n}\n" for n in range(60))
    write(tmp_path, pairs=rows)
    section = 'kind = "tsv"\ntrain = "pairs"\nsource_column = 1\ntarget_column = 2\n'
    corpus = load(tmp_path, section)
    assert Pair("source 7", "target 7") in [*corpus.train, *corpus.validation, *corpus.test]
    write(tmp_path, pairs=rows + "too\tfew\n")
    with pytest.raises(CorpusError, match=r"pairs, line 61 has 2 columns"):
        load(tmp_path, section)


def test_json_lines_for_both_tasks(tmp_path: Path) -> None:
    records = [{"source": f"s\n{n}", "target": f"t{n}", "text": f"document {n}"} for n in range(60)]
    write(tmp_path, data="\n".join(map(json.dumps, records)) + "\n\n")
    pairs = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n')
    assert Pair("s\n7", "t7") in [*pairs.train, *pairs.validation, *pairs.test]
    documents = load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n', task="generation")
    assert len({*documents.train, *documents.validation, *documents.test}) == 60


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data, line 2 is not JSON"),
        ("[1]", r"data, line 2 is no JSON object but '\[1\]'"),
        ('{"source": "x"}', r"data, line 2: 'target' is missing"),
        ('{"source": "x", "target": 5}', r"data, line 2: 'target' is 5, not a text"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, data='{"source": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=message):
        load(tmp_path, 'kind = "jsonl"\ntrain = "data"\n')


def test_text_files_are_documents(tmp_path: Path) -> None:
    for name in ("x/one.md", "x/y/two.md", "x/three.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.stem} " * 100)
    corpus = load(tmp_path, 'kind = "text"\ntrain = "x/**/*.md"\n', task="generation")
    assert [str(document)[:3] for document in corpus.train] == ["one", "two"]
    assert sum(map(len, [*corpus.train, *corpus.validation, *corpus.test])) == 800
    single = load(tmp_path, 'kind = "text"\ntrain = "x/three.txt"\n', task="generation")
    assert "".join(map(str, [*single.train, *single.validation, *single.test])) == "three " * 100


@given(document=st.text(min_size=1), validation=st.floats(0, 0.49), test=st.floats(0, 0.49))
def test_held_out_ends_put_together_are_the_document(document: str, validation: float, test: float) -> None:
    document = "".join(document.split()) + "."  # a part of nothing but white space is no example
    parts = hold_out_ends([document], validation, test)
    assert "".join("".join(part) for part in parts) == document
    assert len("".join(parts[1])) <= len(document) * validation + 1


@pytest.mark.parametrize(
    ("files", "corpus", "message"),
    [
        ({"a": "", "b": ""}, PARALLEL, "corpus 'mine' is empty"),
        ({"a": "\n\n", "b": "\n\n"}, PARALLEL, "corpus 'mine' is empty"),
        ({"a": "one\n", "b": "eins\n"}, PARALLEL, "'mine' is empty: its train split"),
        ({"a": "one\n"}, PARALLEL, r"cannot read .*b: No such file"),
        ({"pairs": "\n"}, 'kind = "jsonl"\ntrain = "pairs"', "corpus 'mine' is empty: pairs"),
        ({"pairs": "\t\n"}, 'kind = "tsv"\ntrain = "pairs"', "corpus 'mine' is empty: pairs"),
    ],
)
def test_empty_and_missing_files(tmp_path: Path, files: dict[str, str], corpus: str, message: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(CorpusError, match=message) as caught:
        load(tmp_path, corpus)
    assert "\n" not in str(caught.value)


def test_no_text_file_matches(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file \*\.md in"):
        load(tmp_path, 'kind = "text"\ntrain = "*.md"', task="generation")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no folder .*nowhere"):
        load(tmp_path, PARALLEL, data=tmp_path / "nowhere")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    section = PARALLEL.replace('"b"', '"b.gz"')
    write(tmp_path, a="ok\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"ok\n" * 1_000)[:20])
    with pytest.raises(CorpusError, match=r"b\.gz is not a whole gzip file"):
        load(tmp_path, section)
    (tmp_path / "b.gz").write_bytes(b"plain text")
    with pytest.raises(CorpusError, match=r"b\.gz is not a whole gzip file"):
        load(tmp_path, section)
    (tmp_path / "b").write_bytes("fine\nG\xfcte\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"b, line 2 is not UTF-8: byte 0xfc"):
        load(tmp_path, PARALLEL)


def test_shares_must_leave_something(tmp_path: Path) -> None:
    with pytest.raises(DragomanError, match=r"nothing is left to train on: validation_share 0\.6"):
        load(tmp_path, PARALLEL + "validation_share = 0.6\ntest_share = 0.4")
