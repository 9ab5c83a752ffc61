"""What is fuzzed: functions of bytes that must not raise. What they may refuse, they refuse as they should."""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tests.integration.serving import BUNDLES

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.errors import BundleError, InvalidRequest
from dragoman.server.fronts.grpc.parsing import Parsing
from dragoman.server.fronts.grpc.wire_entries import count_entries
from dragoman.server.fronts.in_process import InProcessServer
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

__all__ = ["TARGETS", "Target", "seeds_of"]

Target = Callable[[bytes], None]
MOST_ENTRIES = 5_000
CALL_S = 5.0
METHODS: Sequence[tuple[str, str, Any]] = (
    ("spell", "/dragoman.v1.TranslationService/Translate", translation_pb2.TranslateRequest),
    ("spell", "/dragoman.v1.TranslationService/StreamTranslate", translation_pb2.TranslateRequest),
    ("spell", "/dragoman.v1.TranslationService/ScoreTranslations", translation_pb2.ScoreTranslationsRequest),
    ("count", "/dragoman.v1.GenerationService/Generate", generation_pb2.GenerateRequest),
    ("count", "/dragoman.v1.GenerationService/ScoreTexts", generation_pb2.ScoreTextsRequest),
)
STATUSES = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


def entries() -> Target:
    """Entries of a message are counted before it is parsed: at least as many as the parser then makes."""

    def target(content: bytes) -> None:
        _, _, kind = METHODS[content[0] % len(METHODS)] if content else METHODS[0]
        message = content[1:]
        counted = count_entries(message, kind.DESCRIPTOR, MOST_ENTRIES)
        with contextlib.suppress(DecodeError):
            parsed = kind.FromString(message)
            made = _num_elements(parsed)
            assert counted >= min(made, MOST_ENTRIES), f"{counted} counted, {made} made"

    return target


def _num_elements(message: Any) -> int:
    """Elements of repeated fields, at all depths."""
    made = 0
    for field, value in message.ListFields():
        if field.is_repeated:
            made += len(value)
            if field.message_type is not None:
                made += sum(map(_num_elements, value))
        elif field.message_type is not None:
            made += _num_elements(value)
    return made


def calls() -> Target:
    """A message on its whole way: parser, rules, tokenizer, engine, answer. Either an answer or a precise status."""
    settings = EngineSettings.load({"lanes": 1, "threads_per_lane": 1}, source="engine")
    servers = {name: InProcessServer(BUNDLES / name / "2", settings) for name in ("spell", "count")}
    channels = {name: server.channel() for name, server in servers.items()}
    loop, parsing = asyncio.new_event_loop(), Parsing(max_inputs=128)

    async def call(content: bytes) -> None:
        model, path, kind = METHODS[content[0] % len(METHODS)] if content else METHODS[0]
        try:
            request = await parsing.parse(kind.DESCRIPTOR, kind.FromString, content[1:])
        except InvalidRequest:
            return
        with _statuses():
            channel = channels[model]
            if path.endswith(("StreamTranslate", "Generate")):
                async for _ in channel.unary_stream(path)(request, timeout=CALL_S):
                    pass
            else:
                await channel.unary_unary(path)(request, timeout=CALL_S)

    return lambda content: loop.run_until_complete(call(content))


@contextlib.contextmanager
def _statuses() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        _check(error.code().name in STATUSES, f"{error.code()}: {error.details()}")
        _check((error.details() or "").isprintable(), repr(error.details()))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def manifests() -> Target:
    """bundle.json: a bundle is read or refused in one line."""
    folder = Path(tempfile.mkdtemp(prefix="dragoman-fuzz-")) / "spell" / "1"
    shutil.copytree(BUNDLES / "spell" / "2", folder)

    def target(content: bytes) -> None:
        (folder / "bundle.json").write_bytes(content)
        try:
            bundle = Bundle.read(folder)
        except BundleError as error:
            _check(str(error).isprintable(), repr(str(error)))
            return
        files = [folder / name for name in bundle.manifest.files]
        assert all(os.path.realpath(path).startswith(str(folder)) for path in files), (
            "a file outside of the bundle"
        )

    return target


def tokenizers() -> Target:
    """tokenizer.json: it is a tokenizer that encodes, or it is refused in one line."""
    folder = Path(tempfile.mkdtemp(prefix="dragoman-fuzz-")) / "spell" / "1"
    shutil.copytree(BUNDLES / "spell" / "2", folder)
    manifest = json.loads((folder / "bundle.json").read_text())

    def target(content: bytes) -> None:
        from tests.unit.damaged_bundles import seal, write_manifest

        (folder / "tokenizer.json").write_bytes(content)
        write_manifest(folder, manifest)
        seal(folder)
        try:
            Bundle.read(folder).tokenizer.encode("12")
        except BundleError as error:
            _check(str(error).isprintable(), repr(str(error)))

    return target


TARGETS: Mapping[str, Callable[[], Target]] = {
    "entries": entries,
    "calls": calls,
    "manifests": manifests,
    "tokenizers": tokenizers,
}


def seeds_of(name: str) -> list[bytes]:
    """Sound inputs of a target, which a fuzzer changes."""
    if name == "manifests":
        return [
            (BUNDLES / bundle / "bundle.json").read_bytes() for bundle in ("spell/2", "count/2", "spell/1")
        ]
    if name == "tokenizers":
        return [(BUNDLES / bundle / "tokenizer.json").read_bytes() for bundle in ("spell/2", "count/2")]
    options = decoding_pb2.DecodingOptions(
        max_tokens=4, temperature=0.5, top_k=3, top_p=0.9, seed=7, stop=["two"], suppressed_token_ids=[5, 6]
    )
    searched = decoding_pb2.DecodingOptions(beam_size=3, num_hypotheses=2, num_alternatives=2, alignment=True)
    pair = translation_pb2.ScoredPair(source="12", target="one two")
    requests = [
        translation_pb2.TranslateRequest(model="spell", inputs=["12", "7"], options=options),
        translation_pb2.TranslateRequest(inputs=["40"], options=searched, target_prefixes=["four"]),
        translation_pb2.ScoreTranslationsRequest(model="spell", pairs=[pair, pair], num_alternatives=2),
        generation_pb2.GenerateRequest(model="count", prompt="one two", options=options),
        generation_pb2.ScoreTextsRequest(model="count", texts=["one two", "three"]),
    ]
    return [bytes([number]) + each.SerializeToString() for number, each in enumerate(requests)]
