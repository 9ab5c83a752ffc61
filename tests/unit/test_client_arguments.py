"""Arguments of the wrong type: both clients say in a sentence what they want, before anything is sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dragoman.client import AsyncClient, Client
from dragoman.common.errors import UsageError

NOWHERE = "127.0.0.1:1"


@pytest.fixture(params=[Client, AsyncClient])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    made = request.param(NOWHERE, timeout_s=1)
    yield made
    closing = made.close()
    if closing is not None:
        await closing


async def ask(client: Any, call: str, *arguments: Any, **options: Any) -> None:
    """Calls and, of a stream, reads."""
    begun = getattr(client, call)(*arguments, **options)
    if hasattr(begun, "__await__"):
        await begun
    elif hasattr(begun, "__anext__"):
        await anext(begun)
    else:
        next(begun)


TEXTS = "must be a text or a list of texts, not"


@pytest.mark.parametrize(
    ("call", "arguments", "options", "message"),
    [
        ("translate", (None,), {}, f"texts {TEXTS} None"),
        ("translate", (b"un",), {}, rf"texts {TEXTS} b'un' \(bytes\)"),
        ("translate", (7,), {}, rf"texts {TEXTS} 7 \(int\)"),
        ("translate", ({"un": 1},), {}, rf"texts {TEXTS} {{'un': 1}} \(dict\)"),
        ("translate", ({"un"},), {}, rf"texts {TEXTS} {{'un'}} \(set\)"),
        ("translate", (["un", None],), {}, r"texts\[1\] must be a text \(str\), not None"),
        ("translate", (["un"] * 200 + [3],), {}, r"texts\[200\] must be a text \(str\), not 3 \(int\)"),
        ("translate", ("un",), {"model": None}, r"model must be a text \(str\), not None"),
        ("translate", ("un",), {"version": 3}, r"version must be a text \(str\), not 3 \(int\)"),
        ("translate", ("un",), {"timeout_s": "5"}, r"timeout_s must be a number of seconds, not '5' \(str\)"),
        ("translate", ("un",), {"target_prefixes": [None]}, r"target_prefixes\[0\] must be a text"),
        ("translate", ("un",), {"beam_size": "4"}, "beam_size must be a whole number, not '4'"),
        ("stream_translate", (None,), {}, f"texts {TEXTS} None"),
        ("stream_translate", ("un",), {"version": 3}, "version must be a text"),
        ("translate", ("un",), {"priority": 1}, r"priority must be a text \(str\), not 1 \(int\)"),
        ("score_translations", ("un", None), {}, f"targets {TEXTS} None"),
        ("score_translations", (b"un", "one"), {}, f"sources {TEXTS} b'un'"),
        ("score_translations", ("un", "one"), {"num_alternatives": "3"}, "num_alternatives must be a whole"),
        ("score_texts", ([1],), {}, r"texts\[0\] must be a text"),
        ("generate", (None,), {}, r"prompt must be a text \(str\), not None"),
        ("generate", (["def"],), {}, r"prompt must be a text \(str\), not \['def'\] \(list\)"),
        ("generate", ("def",), {"version": 1}, "version must be a text"),
        ("generate", ("def",), {"timeout_s": True}, "timeout_s must be a number of seconds, not True"),
    ],
)
async def test_what_is_of_the_wrong_type_is_named(
    client: Any, call: str, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        await ask(client, call, *arguments, **{"model": "dates", **options})


@pytest.mark.parametrize(("arguments", "name"), [((3,), "name"), (("dates", 3), "version")])
async def test_a_model_is_asked_for_by_texts(client: Any, arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must be a text \(str\), not 3 \(int\)$"):
        await ask(client, "model", *arguments)


async def test_what_does_not_belong_together_is_no_call(client: Any) -> None:
    with pytest.raises(UsageError, match="2 prefixes do not belong to 3 texts"):
        await ask(client, "translate", ["un"] * 3, model="dates", target_prefixes=["a", "b"])
    with pytest.raises(UsageError, match="2 sources and 1 targets are no pairs"):
        await ask(client, "score_translations", ["un"] * 2, "one", model="dates")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("translate", ("un",)),
        ("stream_translate", ("un",)),
        ("score_translations", ("un", "one")),
        ("generate", ("def",)),
        ("score_texts", ("def",)),
    ],
)
async def test_an_unknown_priority_is_refused(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"^priority = 'urgent': it is one of high, normal, low$"):
        await ask(client, call, *arguments, model="dates", priority="urgent")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("translate", ("un",)),
        ("stream_translate", ("un",)),
        ("score_translations", ("un", "one")),
        ("generate", ("def",)),
        ("score_texts", ("def",)),
    ],
)
async def test_a_closed_client_says_so(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    closing = client.close()
    if closing is not None:
        await closing
    with pytest.raises(ValueError, match=f"^the client of {NOWHERE} is closed; make a new one$"):
        await ask(client, call, *arguments, model="dates")
    for other in ("models", "wait_until_serving"):
        with pytest.raises(ValueError, match="is closed"):
            await ask(client, other)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_target_that_is_no_text_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^target must be a text"):
        kind(None)
    with pytest.raises(UsageError, match=r"^target is not valid Unicode: '\\udcff:80'"):
        kind("\udcff:80")
    with pytest.raises(TypeError, match=r"^timeout_s must be a number of seconds"):
        kind(NOWHERE, timeout_s="60")


def test_an_asyncio_client_belongs_to_its_event_loop() -> None:
    made = []

    async def make() -> None:
        made.append(AsyncClient(NOWHERE, timeout_s=1))

    async def use() -> None:
        [client] = made
        for call, arguments in (
            ("translate", ("un",)),
            ("stream_translate", ("un",)),
            ("generate", ("def",)),
        ):
            with pytest.raises(RuntimeError, match=f"^the client of {NOWHERE} belongs to another event loop"):
                await ask(client, call, *arguments, model="dates")

    asyncio.run(make())
    asyncio.run(use())
    with pytest.raises(RuntimeError, match="inside a running event loop; elsewhere use Client"):
        AsyncClient(NOWHERE)
