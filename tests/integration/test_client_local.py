"""`Translator` and `Generator`: a bundle in the caller's process."""

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.serving import BUNDLES, Gate

from dragoman.cli.main import main
from dragoman.cli.server_process import running_server
from dragoman.client import (
    CallCancelledError,
    Client,
    DeadlineExceededError,
    Generator,
    InvalidRequestError,
    ServerError,
    Translator,
)
from dragoman.client.local import local_client
from dragoman.common.errors import SettingsError, UsageError
from dragoman.server.errors import BundleError
from dragoman.server.fronts import in_process

SPELL, COUNT = BUNDLES / "spell" / "2", BUNDLES / "count" / "2"


@pytest.fixture(scope="module")
def translator() -> Iterator[Translator]:
    with Translator(SPELL, engine={"lanes": 1}) as loaded:
        yield loaded


def test_a_bundle_translates_without_a_server(translator: Translator) -> None:
    assert (translator.model.name, translator.model.version) == ("spell", "2")
    [one, two] = translator.translate(["12", "907"])
    assert (one.text, two.text, one.version) == ("one two", "nine zero seven", "2")
    pieces = list(translator.stream_translate("12"))
    assert "".join(piece.text for piece in pieces) == "one two"
    assert pieces[-1].translation == one
    [score] = translator.score_translations("12", "one two")
    assert score.log_probability == pytest.approx(one.log_probability, abs=1e-4)


def test_a_bundle_generates_without_a_server() -> None:
    with Generator(str(COUNT), engine={"lanes": 1}) as generator:
        generation = generator.generate("one", max_tokens=3)
        assert "".join(generation) == " two three four"
        assert generation.summary.num_output_tokens == 3
        assert generator.score_texts("one two three")[0].tokens


def test_many_threads_share_a_translator(translator: Translator) -> None:
    numbers = [str(number * 7919 % 10_000) for number in range(200)]
    alone = translator.translate(numbers)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: translator.translate(number)[0], numbers))
    assert [answer.text for answer in answers] == [answer.text for answer in alone]


def test_what_finds_no_room_waits() -> None:
    numbers = [str(number) for number in range(12)]
    with Translator(SPELL, engine={"lanes": 1, "slots_per_lane": 2, "max_waiting": 12}) as translator:
        expected = [answer.text for answer in translator.translate(numbers)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: translator.translate(numbers), range(16)))
        assert [[answer.text for answer in each] for each in answers] == [expected] * 16
        streams = [translator.stream_translate(numbers) for _ in range(4)]
        for stream in streams:
            assert len([piece for piece in stream if piece.translation]) == 12


def test_mistakes_are_those_of_the_client(translator: Translator) -> None:
    with pytest.raises(InvalidRequestError, match=r"^inputs\[1\]: 101 tokens are more than 32") as caught:
        translator.translate(["12", "9" * 100])
    assert caught.value.violations[0].field == "inputs[1]"
    with pytest.raises(InvalidRequestError, match=r"options\.top_p"):
        translator.translate("12", top_p=1.5)
    with pytest.raises(TypeError, match="texts must be a text or a list of texts, not None"):
        translator.translate(None)  # type: ignore[arg-type]


def test_what_is_no_such_bundle_is_refused(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match=f"^{COUNT} is for generation, not for translation$"):
        Translator(COUNT)
    with pytest.raises(BundleError, match=f"no bundle in {tmp_path}"):
        Generator(tmp_path)
    with pytest.raises(SettingsError, match="unknown key 'lane'; did you mean 'lanes'"):
        Translator(SPELL, engine={"lane": 1})
    assert threading.active_count() <= before


def test_a_folders_name_need_not_be_text(tmp_path: Path) -> None:
    bundle = shutil.copytree(SPELL, tmp_path / os.fsdecode(b"caf\xe9") / "1")
    with Translator(bundle, engine={"lanes": 1}) as translator:
        assert translator.model.name == "caf\ufffd"
        assert translator.translate("12")[0].text == "one two"


def test_a_deadline_holds_and_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with Translator(SPELL, engine={"lanes": 1}) as translator:
        with gate.closed(), pytest.raises(DeadlineExceededError, match=r"the timeout was 0\.1 s"):
            translator.translate("12", timeout_s=0.1)
        assert translator.translate("12")[0].text == "one two"


def test_a_stream_that_is_left_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with Generator(COUNT, engine={"lanes": 1}) as generator:
        with gate.closed():
            gate.allow(4)
            with generator.generate("one") as generation:
                next(generation)
            with pytest.raises(CallCancelledError):
                list(generation)
        assert "".join(generator.generate("one", max_tokens=2)) == " two three"


def test_what_is_closed_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    translator = Translator(SPELL)
    assert threading.active_count() > before
    translator.close()
    translator.close()
    assert threading.active_count() <= before
    with pytest.raises(ValueError, match=f"^the client of {SPELL} is closed; make a new one$"):
        translator.translate("12")


def test_what_is_dropped_leaves_no_thread_and_a_call_keeps_what_it_needs() -> None:
    before = threading.active_count()
    pieces = Translator(SPELL).stream_translate(["12", "907"])
    texts = {piece.index: piece.translation.text for piece in pieces if piece.translation}
    assert texts == {0: "one two", 1: "nine zero seven"}
    del pieces
    gc.collect()
    assert threading.active_count() <= before, "another test's thread may have ended meanwhile"


def test_what_is_collected_on_a_thread_of_the_engine_is_closed() -> None:
    before = set(threading.enumerate())
    translators = [Translator(SPELL)]
    closing = threading.Event()

    def drop() -> None:  # the engine's threads are daemons, as this one is
        translators.clear()
        closing.set()

    threading.Thread(target=drop, daemon=True).start()
    assert closing.wait(timeout=20)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=20)
    assert set(threading.enumerate()) <= before


def test_what_fails_after_its_lanes_have_started_leaves_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())

    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(in_process, "rehearse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Translator(SPELL)
    started = set(threading.enumerate()) - before
    assert not [each.name for each in started if each.name.startswith("lane-")]


def test_a_client_that_gets_no_thread_leaves_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    before = set(threading.enumerate())

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "local-model":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Translator(SPELL)
    started = set(threading.enumerate()) - before
    assert not [each.name for each in started if each.name.startswith("lane-")]


def test_an_interrupted_caller_frees_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with Translator(SPELL, engine={"lanes": 1}) as translator:
        with gate.closed():
            main_thread = threading.get_ident()

            def interrupt() -> None:
                asyncio.run(gate.wait_for_lane())  # the caller waits for an answer then
                signal.pthread_kill(main_thread, signal.SIGINT)

            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                translator.translate("12")
        assert translator.translate("12")[0].text == "one two"


def test_a_fork_is_told_to_load_its_own_and_leaves() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(SPELL)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == [
        "this bundle was loaded before the process forked; load it in this process",
        "one two",
    ]


FORK = """
import os, sys
from dragoman.client import Translator

translator = Translator(sys.argv[1], engine={"lanes": 1})
child = os.fork()
if not child:
    try:
        translator.translate("12")
    except RuntimeError as error:
        print(error)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print(translator.translate("12")[0].text)
"""


def test_a_method_that_only_a_server_has_is_named() -> None:
    with local_client(SPELL) as client, pytest.raises(ServerError, match="does not offer this call"):
        client.wait_until_serving(timeout_s=1)


@pytest.mark.parametrize(
    ("command", "model", "arguments"),
    [
        ("translate", "spell", ("12", "907", "--beam-size", "4", "--num-hypotheses", "2")),
        ("translate", "spell", ("12", "--json", "--alternatives", "2")),
        ("translate", "spell", ("12", "9" * 100)),
        ("generate", "count", ("one", "--max-tokens", "4")),
        ("generate", "count", ("one", "--temperature", "2", "--seed", "3", "--json")),
        ("score", "spell", ("12", "one two", "7", "seven")),
        ("score", "count", ("one two", "--alternatives", "1")),
    ],
)
def test_a_command_prints_the_same_with_and_without_a_server(
    command: str,
    model: str,
    arguments: tuple[str, ...],
    target: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    code = main([command, "--target", target, "--model", model, *arguments])
    served = capfdbinary.readouterr()
    assert main([command, "--bundle", str(BUNDLES / model / "2"), *arguments]) == code
    local = capfdbinary.readouterr()
    assert (local.out, local.err) == (served.out, served.err)
    assert served.out


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with running_server(BUNDLES) as process:
        yield process.target


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "missing option '--model' / '-m' (or '--bundle', without a server)"),
        (("--bundle", str(SPELL), "--model", "spell"), f"--bundle {SPELL} and --model: give one of them"),
        (("--bundle", str(SPELL), "--model-version", "2"), f"--bundle {SPELL} and --model-version: give one"),
        (("--bundle", str(SPELL), "--target", "here:1"), f"--bundle {SPELL} and --target: give one of them"),
        (("--bundle", str(BUNDLES)), f"no bundle in {BUNDLES}: cannot read bundle.json"),
    ],
)
@pytest.mark.parametrize("command", ["translate", "generate", "score"])
def test_where_the_model_is_has_one_answer(
    command: str, arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *arguments, "12", "one"][: 3 + len(arguments) - (command == "generate")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_client_of_a_bundle_has_the_clients_calls() -> None:
    with local_client(SPELL, timeout_s=20) as client:
        assert isinstance(client, Client)
        assert [model.name for model in client.models()] == ["spell"]
        assert client.translate("12", model="spell")[0].text == "one two"
