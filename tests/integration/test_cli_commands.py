"""The command against a real `dragoman serve` process, and against a server that fails on purpose."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration import scripted_server
from tests.integration.scripted_server import ScriptedServer, overloaded

from dragoman.cli.main import main
from dragoman.cli.server_process import ServerProcess, running_server
from dragoman.client import Client
from dragoman.common.errors import OperationError

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(BUNDLES) as process:
        yield process
        process.stop()  # raises unless it leaves with exit code 0


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server.running_server() as running:
        yield running


@pytest.fixture
def dragoman(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns its standard output, after checking the code and the error."""

    def run(*arguments: str, code: int = 0, error: str = "") -> str:
        assert main(arguments) == code
        captured = capsys.readouterr()
        if code:
            assert captured.err.startswith("error: ")
            assert captured.err.count("\n") == 1
        assert error in captured.err
        return captured.out

    return run


@contextlib.contextmanager
def child(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command as a process of its own, with pipes."""
    with subprocess.Popen(
        [sys.executable, "-m", "dragoman", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def translate_lines(target: str, model: str, lines: str) -> subprocess.CompletedProcess[str]:
    with child("translate", "--target", target, "--model", model) as process:
        output, error = process.communicate(lines, timeout=60)
        return subprocess.CompletedProcess([], process.returncode, output, error)


def golden(model: str) -> dict[str, str]:
    """What the bundle must answer."""
    manifest = json.loads((BUNDLES / model / "2" / "bundle.json").read_text())
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLES / model / "2" / "tokenizer.json"))
    return {
        example["text"]: tokenizer.decode(example["token_ids"]) for example in manifest["golden_examples"]
    }


def test_texts_are_translated_one_a_line_and_nothing_else(server: ServerProcess, dragoman: Run) -> None:
    expected = golden("spell")
    output = dragoman("translate", "--target", server.target, "--model", "spell", *expected)
    assert output == "".join(f"{answer}\n" for answer in expected.values())


def test_lines_keep_their_order_and_empty_ones_their_place(server: ServerProcess) -> None:
    numbers = [str(number * 7919 % 10_000) if number % 11 else "" for number in range(300)]
    told = [number for number in numbers if number]
    with Client(server.target) as client:
        answers = [client.translate(told[start : start + 100], model="spell") for start in range(0, 300, 100)]
    texts = iter([answer.text for part in answers for answer in part])
    expected = [next(texts) if number else "" for number in numbers]
    done = translate_lines(server.target, "spell", "\n".join(numbers))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == expected


def test_a_line_that_is_too_long_is_named_after_the_answers_before_it(server: ServerProcess) -> None:
    lines = [*["12"] * 40, "", "9" * 100, "13"]
    done = translate_lines(server.target, "spell", "\n".join(lines))
    assert done.returncode == 2
    assert done.stderr.startswith("error: line 42: 101 tokens are more than 32")
    assert done.stdout.splitlines() == [*["one two"] * 40, ""]


def test_bad_lines_are_skipped_if_told_so(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"12\n\xff\n" + b"9" * 100 + b"\n\n13\n")
    with child(
        *("translate", "--target", server.target, "--model", "spell", "--skip-bad"),
        *("--inputs", str(tmp_path / "lines")),
    ) as process:
        output, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.splitlines() == ["one two", "", "", "", "one three"]
    assert error.splitlines() == [
        r"line 2 skipped: not UTF-8: b'\xff'",
        "line 3 skipped: 101 tokens are more than 32, the model's limit",
        "skipped 2 of 5 lines",
    ]


def test_a_prompt_is_continued(server: ServerProcess, dragoman: Run) -> None:
    prompt, answer = next(iter(golden("count").items()))
    output = dragoman("generate", "--target", server.target, "--model", "count", "--max-tokens", "32", prompt)
    assert output.rstrip("\n") == answer
    short = dragoman("generate", "--target", server.target, "--model", "count", "--max-tokens", "3", prompt)
    assert answer.startswith(short.rstrip("\n"))
    assert len(short) < len(output)


def test_models_are_listed(server: ServerProcess, dragoman: Run) -> None:
    table = dragoman("models", "--target", server.target)
    assert [line.split()[:2] for line in table.splitlines() if "/2" in line] == [
        ["count/2", "generation"],
        ["spell/2", "translation"],
        ["count/2", "serving"],
        ["spell/2", "serving"],
    ]
    assert [line.split() for line in table.splitlines() if "spell/1" in line] == [["spell/1", "unloaded"]]
    listed = json.loads(dragoman("models", "--target", server.target, "--json"))
    assert [model["name"] for model in listed] == ["count", "spell"]
    assert listed[0]["provenance"]["training_step"] == 300


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--model", "nope", "1"), "no model 'nope'; this server has: count/2, spell/2"),
        (("--model", "spell", "--model-version", "7", "1"), "no model 'spell/7'"),
        (("--model", "spell", "--top-p", "1.5", "1"), "options.top_p"),
        (("--model", "spell", "12", "9" * 100), "text 2: 101 tokens are more than 32"),
        (("--model", "count", "1"), "is a generation model, not for translation"),
    ],
)
def test_what_the_server_refuses_is_the_callers_mistake(
    server: ServerProcess, dragoman: Run, arguments: tuple[str, ...], error: str
) -> None:
    answered = dragoman("translate", "--target", server.target, *arguments, code=2, error=error)
    assert answered == ("one two\n" if error.startswith("text 2") else "")


def test_a_load_is_measured(server: ServerProcess, dragoman: Run) -> None:
    load = ("--warm-up", "0.1", "--duration", "0.6", "--inputs")
    where = ("bench", "--target", server.target, "--json", "--model")
    inputs = str(BUNDLES / "spell" / "2")
    closed = json.loads(dragoman(*where, "spell", *load, inputs, "--concurrency", "4", "--stream"))
    assert closed["report"]["errors"] == {}
    assert closed["report"]["requests_per_s"] > 0
    assert closed["report"]["output_tokens_per_s"] > closed["report"]["requests_per_s"]
    assert closed["report"]["time_to_first_token"]["p50_s"] <= closed["report"]["latency"]["p50_s"]
    searching = json.loads(dragoman(*where, "spell", *load, inputs, "--beam-size", "2"))
    assert searching["report"]["errors"] == {}
    dragoman(*where, "spell", *load, inputs, "--beam-size", "65", code=1, error="(options.beam_size: 65")
    opened = json.loads(dragoman(*where, "count", *load, str(BUNDLES / "count" / "2"), "--rate", "20"))
    assert opened["plan"]["rate"] == 20
    assert opened["report"]["num_requests"] > 0
    table = dragoman("bench", "--target", server.target, "--model", "spell", *load, inputs)
    assert {"requests/s", "latency p99", "errors"} <= {
        line.strip()[:11].strip() for line in table.splitlines()
    }


def test_a_load_that_gets_no_answer_fails(scripted: ScriptedServer, dragoman: Run, tmp_path: Path) -> None:
    scripted.script.refuse = lambda request: overloaded(1.0) if hasattr(request, "inputs") else None
    (tmp_path / "inputs").write_text("un\n")
    load = ("--warm-up", "0", "--duration", "0.2", "--inputs", str(tmp_path / "inputs"))
    where = ("bench", "--target", scripted.target, "--model", "dates")
    dragoman(*where, *load, code=1, error=" RESOURCE_EXHAUSTED (the queue is full)")
    dragoman(*where, *load, "--rate", "1e-6", code=1, error="no request was due within the 0.2 s that were")


def test_bits_per_byte_of_a_server_are_not_offered(server: ServerProcess, dragoman: Run) -> None:
    where = ("evaluate", server.target)
    dragoman(*where, "--model", "count", code=2, error="bits per byte need the bundle's folder")
    dragoman(*where, code=2, error="which model? --model is one of count, spell")


def test_a_folder_without_models_is_no_server(tmp_path: Path) -> None:
    with (
        pytest.raises(OperationError, match=f"the server did not start: .*no models in {tmp_path}"),
        running_server(tmp_path),
    ):
        pytest.fail("it serves nothing")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_port_in_use_is_one_line(server: ServerProcess, log_format: str) -> None:
    where = ("--port", str(server.port), "--metrics-port", "0", "--set", f"logging.format={log_format}")
    with child("serve", "--models", str(BUNDLES), *where) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.count("\n") == 1
    error = told.strip().removeprefix("error: ") if log_format == "console" else json.loads(told)["error"]
    assert error == f"cannot serve gRPC on {server.target}: Address already in use"


def test_a_bundle_is_verified(dragoman: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "spell" / "1"
    shutil.copytree(BUNDLES / "spell" / "1", bundle)
    assert "golden examples: 8 answered as recorded" in dragoman("verify", str(bundle))
    (bundle / "tokenizer.json").write_text("{}")
    dragoman("verify", str(bundle), code=2, error=str(bundle / "tokenizer.json"))
    dragoman("verify", str(tmp_path), code=2, error=f"no bundle in {tmp_path}")


def test_a_busy_server_is_waited_for(scripted: ScriptedServer) -> None:
    scripted.script.failures.extend([overloaded(0.01)] * 6)  # more than the channel's own retries
    done = translate_lines(scripted.target, "dates", "un\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "UN\n", "")


def test_a_line_is_answered_before_the_next_one_comes(scripted: ScriptedServer) -> None:
    with child("translate", "--target", scripted.target, "--model", "dates") as process:
        assert process.stdin
        assert process.stdout
        for line in ("é", "", "zwei"):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == line.upper() + "\n"
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_an_interrupt_is_quiet(scripted: ScriptedServer) -> None:
    with child("translate", "--target", scripted.target, "--model", "dates") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write("un\n")
        process.stdin.flush()
        assert process.stdout.readline() == "UN\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == ""


def test_a_reader_that_leaves_is_no_error(scripted: ScriptedServer) -> None:
    with child("translate", "--target", scripted.target, "--model", "dates") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write("un\n")
        process.stdin.flush()
        assert process.stdout.readline() == "UN\n"
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("zwei\n")
            process.stdin.close()
        assert process.wait(timeout=30) == 1
        assert process.stderr.read() == ""


def test_an_unreachable_server_is_named(dragoman: Run) -> None:
    with scripted_server.running_server() as gone:
        target = gone.target
    dragoman("models", "--target", target, code=1, error=f"error: no answer from {target}: ")
