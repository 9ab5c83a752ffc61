"""Triton's own Python client, unmodified: blocking, asyncio and streams."""

import asyncio
import queue
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as asynchronous
from tests.integration.serving import BUNDLES, PATIENCE_S, Served, serving
from tritonclient.utils import InferenceServerException

from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import make_token, token_line


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


def text(name: str, *texts: str, is_flat: bool = False) -> Any:
    values = np.array([each.encode() for each in texts], dtype=np.object_)
    values = values if is_flat else values.reshape(-1, 1)
    tensor = blocking.InferInput(name, list(values.shape), "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor


async def with_client(served: Served, use: Callable[[Any], None]) -> None:
    """Have `use` call a blocking client in a thread: the server runs on this one's event loop."""

    def run() -> None:
        with blocking.InferenceServerClient(f"127.0.0.1:{served.server.port}") as client:
            use(client)

    await asyncio.to_thread(run)


async def test_the_blocking_client_asks_for_all_there_is(served: Served) -> None:
    def use(client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("spell", "2")
        assert not client.is_model_ready("spell", "7")
        assert client.get_server_metadata().name == "dragoman"
        metadata = client.get_model_metadata("spell", as_json=True)
        assert metadata["platform"] == "dragoman_translation"
        config = client.get_model_config("count", as_json=True)["config"]
        assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]}
        index = client.get_model_repository_index(as_json=True)["models"]
        assert [each["name"] for each in index if each["state"] == "READY"] == ["count", "spell"]

    await with_client(served, use)


async def test_the_blocking_client_infers(served: Served) -> None:
    def use(client: Any) -> None:
        result = client.infer(
            "spell", [text("text", "71", "40")], request_id="a7", priority=1, timeout=9_000_000
        )
        assert result.get_response().id == "a7"
        assert result.as_numpy("text").tolist() == [[b"seven one"], [b"four zero"]]
        assert result.as_numpy("finish_reason").tolist() == [[b"end_of_sequence"]] * 2
        assert result.as_numpy("score").dtype == np.float32
        assert result.as_numpy("tokens").shape == (2, 1, 10)
        outputs = [blocking.InferRequestedOutput("text"), blocking.InferRequestedOutput("alternative_tokens")]
        result = client.infer(
            "spell",
            [text("text", "71", is_flat=True), text("target_prefix", "nine", is_flat=True)],
            outputs=outputs,
            parameters={"num_alternatives": 2, "max_tokens": 6},
        )
        assert [each.name for each in result.get_response().outputs] == ["text", "alternative_tokens"]
        assert result.as_numpy("text")[0].startswith(b"nine")
        assert result.as_numpy("alternative_tokens").shape == (1, 6, 2)

    await with_client(served, use)


async def test_the_blocking_client_gets_refusals_as_exceptions(served: Served) -> None:
    def use(client: Any) -> None:
        for arguments, status, what in (
            ({"parameters": {"beams": 4}}, "INVALID_ARGUMENT", "parameters['beams']: is unknown"),
            ({"parameters": {"max_tokens": "4"}}, "INVALID_ARGUMENT", "is not a whole number"),
            ({"sequence_id": 4}, "INVALID_ARGUMENT", "keep nothing between requests"),
            ({"timeout": 1}, "DEADLINE_EXCEEDED", "deadline"),
            ({"model_version": "9"}, "NOT_FOUND", "no model 'spell/9'"),
        ):
            with pytest.raises(InferenceServerException, match=re.escape(what)) as caught:
                client.infer("spell", [text("text", "71")], **arguments)
            assert status in (caught.value.status() or "")

    await with_client(served, use)


async def test_calls_with_a_callback_are_answered(served: Served) -> None:
    def use(client: Any) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        for number in ("12", "5"):
            client.async_infer(
                "spell", [text("text", number)], lambda result, error: answers.put((result, error))
            )
        pairs = [answers.get(timeout=PATIENCE_S) for _ in range(2)]
        assert not any(error for _, error in pairs)
        assert {result.as_numpy("text").item() for result, _ in pairs} == {b"one two", b"five"}

    await with_client(served, use)


async def test_the_blocking_client_streams(served: Served) -> None:
    def use(client: Any) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, ends_empty in (("1", False), ("2", True)):
            client.async_stream_infer(
                "count",
                [text("text", "one two", is_flat=True)],
                request_id=number,
                enable_empty_final_response=ends_empty,
                parameters={"max_tokens": 9},
            )
        client.async_stream_infer("count", [text("text", "one")], parameters={"beams": 1})
        joined, num_open, errors = {"1": "", "2": ""}, 2, 0
        while num_open or not errors:
            result, error = answers.get(timeout=PATIENCE_S)
            if error is not None:
                assert "INVALID_ARGUMENT: parameters['beams']: is unknown" in str(error)
                errors += 1
                continue
            response = result.get_response()
            num_open -= response.parameters["triton_final_response"].bool_param
            if response.outputs:
                joined[response.id] += result.as_numpy("text").item().decode()
        client.stop_stream()
        assert joined["1"] == joined["2"]
        assert joined["1"].startswith(" three")

    await with_client(served, use)


async def test_the_asyncio_client_infers_and_streams(served: Served) -> None:
    async with asynchronous.InferenceServerClient(f"127.0.0.1:{served.server.port}") as client:
        assert await client.is_model_ready("count")
        result = await client.infer("spell", [text("text", "71")], parameters={"temperature": 0.5, "seed": 3})
        again = await client.infer("spell", [text("text", "71")], parameters={"temperature": 0.5, "seed": 3})
        assert result.as_numpy("text").tolist() == again.as_numpy("text").tolist()

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in ("12", "5"):
                yield {"model_name": "spell", "inputs": [text("text", number)], "request_id": number}

        texts = {"12": "", "5": ""}
        async for each, error in client.stream_infer(requests()):
            assert error is None
            texts[each.get_response().id] += each.as_numpy("text").item().decode()
        assert texts == {"12": "one two", "5": "five"}


async def test_the_blocking_client_loads_and_unloads(tmp_path: Path) -> None:
    admin, tokens = make_token(), tmp_path / "tokens.toml"
    tokens.write_text(token_line(admin, "operator", [Scope.ADMIN], None))
    headers = {"authorization": f"Bearer {admin}"}

    def states(client: Any) -> dict[str, str]:
        index = client.get_model_repository_index(headers=headers).models
        return {each.version: each.state for each in index if each.name == "spell"}

    def use(client: Any) -> None:
        assert states(client)["2"] == "READY"
        client.unload_model("spell", headers=headers)
        assert states(client)["2"] == "UNAVAILABLE"
        assert not client.is_model_ready("spell", headers=headers)
        client.load_model("spell", headers=headers)
        assert states(client)["2"] == "READY"
        assert client.is_model_ready("spell", headers=headers)
        with pytest.raises(InferenceServerException, match="come from the models folder"):
            client.load_model("spell", headers=headers, config="{}")
        with pytest.raises(InferenceServerException, match="bearer token"):
            client.load_model("spell")

    async with serving(BUNDLES, f"security.tokens_file={tokens}", "models.allow_changes=true") as served:
        await with_client(served, use)
