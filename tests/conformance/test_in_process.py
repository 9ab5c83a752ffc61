"""A bundle in this process answers as a server does: every call, every option, every refusal."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.serving import BUNDLES

from dragoman.cli.server_process import running_server
from dragoman.client import CallError, Client
from dragoman.client.local import local_client

ALIGNED = BUNDLES.parent / "aligned"
DIGITS = ["12", "907", "4", "31415926", "12"]


@pytest.fixture(
    scope="module", params=[ALIGNED / "spell" / "1", BUNDLES / "count" / "2"], ids=["spell", "count"]
)
def clients(request: pytest.FixtureRequest) -> Iterator[tuple[str, Client, Client]]:
    """The model's name, a client of a server, and one of the same bundle in this process."""
    folder = request.param
    with (
        running_server(folder.parents[1]) as process,
        Client(process.target) as remote,
        local_client(folder) as local,
    ):
        yield folder.parent.name, remote, local


def outcome(client: Client, call: str, *arguments: Any, **options: Any) -> Any:
    """Whatever a caller can see of a call."""
    try:
        begun = getattr(client, call)(*arguments, **options)
        if not hasattr(begun, "__next__"):
            return begun
        pieces = list(begun)
        if call == "generate":
            return "".join(pieces), begun.summary
        texts: dict[int, str] = {}
        for piece in pieces:
            texts[piece.index] = texts.get(piece.index, "") + piece.text
        return texts, {piece.index: piece.translation for piece in pieces if piece.translation}
    except CallError as error:
        return type(error), error.code, error.message, error.violations, error.retry_delay_s


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 3},
    {"min_tokens": 12, "max_tokens": 20},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.9, "seed": 7},
    {"temperature": 2.0, "seed": 2**64 - 1, "num_hypotheses": 3},
    {"beam_size": 4, "num_hypotheses": 3, "length_penalty": 0.6, "patience": 1.5},
    {"stop": [" two", "x"]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"suppressed_texts": ["two"], "suppressed_token_ids": [9]},
    {"num_alternatives": 2},
    {"alignment": True},
    {"coverage_penalty": 0.2, "beam_size": 3},
    {"top_p": 1.5},
    {"beam_size": 65, "temperature": 1.0},
    {"num_alternatives": 99, "stop": ["x" * 300]},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_every_option_gives_the_same_answers(
    clients: tuple[str, Client, Client], options: dict[str, Any]
) -> None:
    model, remote, local = clients
    calls: list[tuple[str, Any]] = [("generate", "one"), ("generate", "three four")]
    if model == "spell":
        calls = [("translate", DIGITS), ("stream_translate", DIGITS)]
    for call, texts in calls:
        theirs = outcome(remote, call, texts, model=model, **options)
        ours = outcome(local, call, texts, model="", **options)
        assert ours == theirs


@pytest.mark.parametrize(
    ("call", "arguments", "options"),
    [
        ("translate", (["12", "", "9" * 100],), {}),
        ("translate", ([],), {}),
        ("translate", ([str(number) for number in range(300)],), {}),
        ("translate", (["12"] * 300,), {"temperature": 1.0, "seed": 3}),
        ("translate", (["12", "7"],), {"target_prefixes": ["one", "nine"]}),
        ("translate", ("12",), {"target_prefixes": "x" * 200}),
        ("score_translations", (["12", "7"], ["one two", "eight"]), {"num_alternatives": 2}),
        ("score_translations", (["12", ""], ["", "x" * 500]), {}),
        ("score_texts", (["one two three", "six one"],), {"num_alternatives": 1}),
        ("score_texts", ("",), {"num_alternatives": 30}),
        ("generate", ("",), {}),
        ("generate", ("one " * 300,), {}),
    ],
)
def test_every_call_gives_the_same(
    clients: tuple[str, Client, Client], call: str, arguments: Any, options: dict[str, Any]
) -> None:
    """A model that cannot do it says so in the same words."""
    model, remote, local = clients
    assert outcome(local, call, *arguments, model="", **options) == outcome(
        remote, call, *arguments, model=model, **options
    )


def test_a_bundle_tells_the_same_of_itself(clients: tuple[str, Client, Client]) -> None:
    model, remote, local = clients
    assert local.model("") == remote.model(model)
    assert local.model(model) == remote.model(model)
    assert local.models() == [each for each in remote.models() if each.name == model]
    assert outcome(local, "model", "nope") != local.model("")
