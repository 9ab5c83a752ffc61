"""Long texts are tokenised off the event loop, in turns, and so many at a time."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import DeadlineExceeded, Overloaded
from dragoman.server.models.served_model import longest_token
from dragoman.server.requests import tokenization
from dragoman.server.requests.tokenization import Tokenising

BUNDLES = Path(__file__).parents[1] / "fixtures" / "bundles"
SPELL = Bundle.read(BUNDLES / "spell" / "1").tokenizer
COUNT = Bundle.read(BUNDLES / "count" / "2").tokenizer
LONG = "one two three </s> four \N{GRINNING FACE} " * 200


class Pieces:
    """Which pieces were tokenised, in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[list[str]] = []
        self.threads: set[str] = set()
        encode = tokenization._encode

        def recorded(tokenizer: Tokenizer, texts: list[str], bare: bool) -> list[Sequence[int]]:
            self.texts.append([text[:1] for text in texts])
            self.threads.add(threading.current_thread().name)
            return encode(tokenizer, texts, bare)

        monkeypatch.setattr(tokenization, "_encode", recorded)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Pieces:
    return Pieces(monkeypatch)


@pytest.mark.parametrize("tokenizer", [SPELL, COUNT])
@pytest.mark.parametrize("bare", [False, True])
async def test_a_text_has_the_same_ids_however_long_its_call_is(
    tokenizer: Tokenizer, bare: bool, pieces: Pieces
) -> None:
    short = ["one two", "12 ", "", "\N{GRINNING FACE}"]
    alone = [tokenizer.encode(text, add_special_tokens=not bare).ids for text in [*short, LONG]]
    assert await Tokenising().encode(tokenizer, short, bare=bare) == alone[:-1]
    assert pieces.threads == {"MainThread"}, "a short call does not wait for a thread"
    pieces.threads.clear()
    assert await Tokenising().encode(tokenizer, [*short, LONG], bare=bare) == alone
    assert pieces.threads == {"tokenise_0"}


@pytest.mark.parametrize("texts", [[LONG[:2000]], ["one two"] * 20])
async def test_what_is_tokenised_at_once_leaves_the_interpreter_to_others(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Tokenizer.encode` keeps the interpreter's lock, and lanes may wait for it."""
    called: list[str] = []

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(COUNT, name)

    await Tokenising().encode(Recorded(), texts)  # type: ignore[arg-type]
    assert called == ["encode_batch_fast"]


async def test_many_texts_of_one_character_do_not_hold_up_the_loop(pieces: Pieces) -> None:
    """A text costs some ten characters before its first one: two thousand of them took 10 ms of the event loop."""
    await Tokenising().encode(SPELL, ["1"] * 2000)
    assert pieces.threads == {"tokenise_0"}


async def test_calls_take_turns(pieces: Pieces) -> None:
    together = Tokenising()
    texts = [[letter * 20_000 for _ in range(3)] for letter in "ab"]
    await asyncio.gather(*(together.encode(SPELL, each) for each in texts))
    assert pieces.texts == [["a"], ["b"]] * 3


async def test_too_many_characters_are_refused_until_others_are_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenization, "_MAX_WAITING_CHARACTERS", 10_000)
    together = Tokenising()
    first = asyncio.create_task(together.encode(SPELL, ["1" * 6000]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="6000 characters are waiting to be tokenised already"):
        await together.encode(SPELL, ["1" * 6000])
    assert await together.encode(SPELL, ["12"]), "a short text waits for nobody"
    await first
    assert await together.encode(SPELL, ["1" * 6000])


async def test_a_call_that_left_makes_room(monkeypatch: pytest.MonkeyPatch, pieces: Pieces) -> None:
    monkeypatch.setattr(tokenization, "_MAX_WAITING_CHARACTERS", 200_000)
    together = Tokenising()
    left = asyncio.create_task(together.encode(SPELL, ["1" * 50_000] * 4))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await together.encode(SPELL, ["2" * 50_000] * 4)
    assert pieces.texts.count(["1"]) <= 1, "what had begun, nothing after it"


async def test_nothing_is_tokenised_after_the_deadline(pieces: Pieces) -> None:
    with pytest.raises(DeadlineExceeded, match="before the call's texts were tokenised"):
        await Tokenising().encode(SPELL, ["1" * 5000], deadline_s=time.monotonic())
    assert pieces.texts == []


async def test_the_event_loop_goes_on_while_a_text_is_tokenised() -> None:
    """`Tokenizer.encode` would keep the interpreter's lock, in whichever thread it runs."""
    task = asyncio.create_task(Tokenising().encode(COUNT, ["one two three four " * 50_000]))
    num_turns = 0
    while not task.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > 100
    await task


def test_special_tokens_are_no_stretch_of_text() -> None:
    assert longest_token(SPELL) == 1, "</s> is four tokens to this one"
    assert longest_token(COUNT) == max(
        len(token) for token in COUNT.get_vocab() if token not in {"<pad>", "<unk>", "<s>", "</s>"}
    )
