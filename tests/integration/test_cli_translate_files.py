"""`dragoman translate-files` and `generate-files`, with their processes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integration.child_server import ENVIRONMENT, ROOT
from tests.integration.serving import BUNDLES, PATIENCE_S

from dragoman.cli.main import main
from dragoman.client import Generator, Translator
from dragoman.common.errors import UsageError
from dragoman.files import TableModel

SPELL, COUNT = BUNDLES / "spell" / "2", BUNDLES / "count" / "2"
TEXTS = [str(number * 7919 % 9973) for number in range(600)]


@pytest.fixture(scope="module")
def translator() -> Iterator[Translator]:
    with Translator(SPELL, engine={"lanes": 1}) as loaded:
        yield loaded


def test_files_get_the_answers_of_translate(
    tmp_path: Path, translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    """All formats, options of search, rows that are refused by the model's rules."""
    texts: list[str | None] = [*TEXTS[:300], "7" * 100, "12\u00a0", None, " ", "3"]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), data / "a.parquet")
    (data / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = tmp_path / "out"
    options = [
        "--beam-size",
        "3",
        "--num-hypotheses",
        "2",
        "--target-prefix",
        "one",
        "--rows-per-file",
        "100",
    ]
    arguments = ["translate-files", str(data), "--bundle", str(SPELL), "--out", str(out), *options]
    assert main([*arguments, "--workers", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"files: 8 written to {out}"
    assert said[2:] == [
        "answers: 604",
        "without a text: 4 rows",
        f"bad: 2 rows, kept aside with their reasons in {out}/_bad",
    ]
    asked = [text for text in texts if text and text.strip() and len(text) < 100]
    expected = []
    for start in range(0, len(asked), 100):
        part = asked[start : start + 100]
        expected += translator.translate(
            part, target_prefixes=["one"] * len(part), beam_size=3, num_hypotheses=2
        )
    table = pa.concat_tables(map(pq.read_table, sorted(out.glob("*.parquet"))))
    rows = [row for row in table.to_pylist() if row["translation"] is not None]
    lines = [
        json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    found = [row for row in lines if row["translation"] is not None]
    for each in (rows, found):
        assert [row["text"] for row in each] == asked
        assert [row["translation"] for row in each] == [answer.text for answer in expected]
        assert [row["translation_finish_reason"] for row in each] == [
            str(answer.finish_reason) for answer in expected
        ]
        assert [row["translation_score"] for row in each] == pytest.approx(
            [answer.score for answer in expected], abs=1e-4
        )
        assert [[other["text"] for other in row["translation_hypotheses"]] for row in each] == [
            [other.text for other in answer.hypotheses] for answer in expected
        ]
    [bad] = [json.loads(line) for line in (out / "_bad" / "a-00003.parquet.jsonl").read_text().splitlines()]
    assert (bad["row"], bad["text"]) == (300, "7" * 100)
    assert bad["reason"] == "101 tokens are more than 32, the model's limit"
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"files: 0 written to {out}, 8 were there already"


def test_prompts_are_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo three\n\none two\n")
    arguments = [
        "generate-files",
        str(tmp_path / "a.txt"),
        "--bundle",
        str(COUNT),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--workers", "1", "--max-tokens", "3"]) == 0
    with Generator(COUNT, engine={"lanes": 1}) as generator:
        expected = [
            "".join(generator.generate(text, max_tokens=3)) for text in ("one", "two three", "one two")
        ]
    expected.insert(2, "")
    assert (tmp_path / "out" / "a-00000.txt").read_text().split("\n") == [*expected, ""]
    capsys.readouterr()
    arguments[arguments.index(str(COUNT))] = str(SPELL)
    assert main([*arguments[:-1], str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err == f"error: {SPELL} is a translation model, not for generation\n"
    assert not (tmp_path / "other").exists()


def test_options_that_the_model_refuses_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("1\n")
    arguments = [
        "translate-files",
        str(tmp_path / "a.txt"),
        "--bundle",
        str(SPELL),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--workers", "1", "--beam-size", "99"]) == 2
    assert capsys.readouterr().err == (
        "error: options.beam_size: 99 is not between 1 and 64, the server's limit\n"
    )
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--num-hypotheses", "2", "--beam-size", "2"]) == 2
    assert "a.txt: text has a line for each row" in capsys.readouterr().err
    assert main([*arguments[:-3], str(tmp_path), *arguments[-2:]]) == 2
    assert "bundle.json" in capsys.readouterr().err


STOPPING_RUN = """
import signal, sys, time
import psutil
from dragoman.files import pool, run
from dragoman.cli.main import main

pool._MAX_DEPTH = 2  # so that both workers have blocks to come when it stops
way, sys.argv = sys.argv[1], ["dragoman", *sys.argv[2:]]
write_block = run._Writing._write_block

def write_and_stop(self, *arguments):
    write_block(self, *arguments)
    if self._summary.num_parts == 2:
        if way == "worker":
            workers = [each for each in psutil.Process().children(recursive=True) if "worker" in each.name()]
            workers[0].kill()
        else:
            print("stopped", flush=True)
            time.sleep(600)

run._Writing._write_block = write_and_stop
sys.exit(main())
"""
"""A run that stops while it writes its third file, or that loses a worker then."""


def test_a_command_that_is_killed_goes_on(tmp_path: Path, translator: Translator) -> None:
    """A worker is killed, then the command is interrupted, then it is killed; the fourth run ends."""
    texts = [str(number) for number in range(600)]
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in texts))
    answers = [f"{answer.text}\n" for answer in translator.translate(texts)]
    expected = {f"a-{at:05d}.txt": "".join(answers[at * 20 : at * 20 + 20]).encode() for at in range(30)}
    out = tmp_path / "out"
    command = ["translate-files", str(tmp_path / "a.txt"), "--bundle", str(SPELL), "--rows-per-file", "20"]
    command += ["--workers", "2", "--out", str(out)]
    num_there = 0
    for way, code in (("worker", 1), ("interrupt", 130), ("kill", -signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING_RUN, way, *command],
            env=ENVIRONMENT,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children = []
        if way != "worker":
            assert process.stdout is not None
            assert process.stdout.readline() == "stopped\n"
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) == 3
            process.send_signal(signal.SIGINT if way == "interrupt" else signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, said
        if way == "worker":
            assert "error: a process that computes has ended (killed by SIGKILL)" in said
        if way == "interrupt":
            assert said == "files written: 2; the same command goes on from there\n"
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1], "its processes end with it"
        there = {path.name: path.read_bytes() for path in out.glob("*.txt")}
        assert num_there + 2 <= len(there) < 30
        assert all(expected[name] == content for name, content in there.items())
        num_there = len(there)
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.txt")} == expected
    assert {path.name for path in (out / "_dragoman").iterdir()} == {"job.json", "lock-0-of-1"}


def test_a_table_gets_columns(translator: Translator) -> None:
    model = TableModel(SPELL, input_column="source", output_column="out", max_tokens=4)
    texts = [*TEXTS, None, "7" * 100, ""]
    table = pa.table({"n": range(len(texts)), "source": texts})
    answered = model(table)
    assert answered.schema == model.schema(table.schema)
    assert answered.select(["n", "source"]) == table
    expected = [answer.text for answer in translator.translate(TEXTS[:100], max_tokens=4)]
    assert answered.column("out").to_pylist()[:100] == expected
    assert answered.column("out").to_pylist()[-3:] == [None] * 3
    errors = answered.column("out_error").to_pylist()
    assert [at for at, error in enumerate(errors) if error] == [len(TEXTS) + 1]
    assert model(table.slice(0, 0)).num_rows == 0
    batches = list(model.map_batches(iter(table.to_batches(max_chunksize=50))))
    found = pa.Table.from_batches(batches)
    assert found.drop_columns("out_score") == answered.drop_columns("out_score")
    # Neighbours in a batch change no answer, but may change the last digits of a score.
    scores, same = (each.column("out_score").drop_null().to_pylist() for each in (found, answered))
    assert scores == pytest.approx(same, abs=1e-4)
    with pytest.raises(UsageError, match="the table has no column 'source', only n"):
        model(table.select(["n"]))
    with pytest.raises(UsageError, match="num_alternatives = 3: tables have no columns for single tokens"):
        TableModel(SPELL, num_alternatives=3)
    with pytest.raises(UsageError, match=r"options.temperature: -1"):
        TableModel(SPELL, temperature=-1.0)


def test_without_the_extra_the_command_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dragoman.common.extras import EXTRAS

    monkeypatch.setitem(EXTRAS, "files", ("no_such_module",))
    assert main(["translate-files", "a.txt", "--bundle", str(SPELL), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "error: this needs no_such_module, which is not installed: pip install 'dragoman[files]'\n"
    )
