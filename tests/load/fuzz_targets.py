"""What is fuzzed: functions of bytes that must not raise. What they may refuse, they refuse as they should."""

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tests.integration.serving import BUNDLES
from tests.load.fuzz_seeds import DRAGOMAN, INFERENCE, KEYS, METHODS, TOKEN, seeds_of
from tests.load.played_front import Outcome, PlayedFront

from dragoman.common.errors import SettingsError
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import load_settings
from dragoman.server.errors import BundleError, CredentialsError
from dragoman.server.fronts.grpc.wire_entries import count_entries
from dragoman.server.operations.metrics import Metrics
from dragoman.server.operations.spans import Tracing, _headers_of
from dragoman.server.scopes import Scope
from dragoman.server.security.tokens import TokenTable, token_line
from dragoman.server.settings.tracing import TracingSettings

__all__ = ["TARGETS", "Target", "close_front"]

Target = Callable[[bytes], None]
MOST_ENTRIES = 5_000
PRECISE = frozenset(
    {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"}
)
AUTHORIZED = (("authorization", f"Bearer {TOKEN}"),)
TRANSLATE = "/dragoman.v1.TranslationService/Translate"


def entries() -> Target:
    """Entries of a message are counted before it is parsed: at least as many as the parser then makes."""
    kinds: list[Descriptor] = [method.input_type for method in METHODS.values()]

    def target(content: bytes) -> None:
        kind, message = kinds[content[0] % len(kinds)] if content else kinds[0], content[1:]
        counted = count_entries(message, kind, MOST_ENTRIES)
        with contextlib.suppress(DecodeError):
            made = _num_elements(GetMessageClass(kind).FromString(message))
            assert counted >= min(made, MOST_ENTRIES), f"{counted} counted, {made} made"

    return target


def _num_elements(message: Any) -> int:
    """Elements of repeated fields, at all depths."""
    made = 0
    for field, value in message.ListFields():
        if field.is_repeated:
            made += len(value)
            if field.message_type is not None:
                values = value.values() if field.message_type.GetOptions().map_entry else value
                made += sum(_num_elements(each) for each in values if hasattr(each, "ListFields"))
        elif field.message_type is not None:
            made += _num_elements(value)
    return made


@functools.cache
def _front() -> PlayedFront:
    """All services in this process, for callers with `TOKEN`."""
    tokens = _folder() / "tokens.toml"
    tokens.write_text(token_line(TOKEN, "app", [Scope.INFER, Scope.ADMIN], None))
    return PlayedFront({"tokens_file": str(tokens)})


def close_front() -> None:
    """End the front of the targets that have been made, if one of them has it."""
    if _front.cache_info().currsize:
        _front().close()
        _front.cache_clear()


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dragoman-fuzz-"))


def calls() -> Target:
    """A message to a method of dragoman.v1 on its whole way. Either an answer or a precise status."""
    return _calls(DRAGOMAN)


def inference() -> Target:
    """The same of the Open Inference Protocol; of its stream, the message comes twice."""
    return _calls(INFERENCE)


def _calls(methods: Mapping[str, Any]) -> Target:
    front = _front()
    paths = [path for path in methods if path in front.methods]

    def target(content: bytes) -> None:
        # A seed's number counts all methods, of which some are not served.
        number = content[0] % len(methods) if content else 0
        path = list(methods)[number]
        path, message = path if path in paths else paths[number % len(paths)], content[1:]
        messages = (message, message) if methods[path].client_streaming else (message,)
        outcome = front.call(path, *messages, metadata=AUTHORIZED)
        _check(outcome.code in PRECISE, f"{outcome.code}: {outcome.details}")
        _check(outcome.details.isprintable(), repr(outcome.details))
        _check_stream(outcome)
        for name, version in front.asked:
            folder = BUNDLES / name / version
            _check((folder / "bundle.json").is_file() and folder.parent.parent == BUNDLES, str(folder))

    return target


def _check_stream(outcome: Outcome) -> None:
    """What fails in a stream of requests says so in its response."""
    for message in outcome.sent:
        if text := getattr(message, "error_message", ""):
            _check(text.partition(":")[0] in PRECISE and text.isprintable(), repr(text))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def metadata() -> Target:
    """Lines of a call's metadata, address and deadline: it is answered if it has the token, and else refused."""
    front = _front()
    message = seeds_of("calls")[0][1:]
    tracing = Tracing(TracingSettings(enabled=True, sampling_ratio=0.0), Metrics(1.0).trace_spans)

    def target(content: bytes) -> None:
        lines = [(KEYS[line[0] % len(KEYS)], _text(line[1:])) for line in content.split(b"\n")[:64] if line]
        pairs = tuple((key, value) for key, value in lines if key not in {"peer", "seconds left"})
        given = dict(lines)
        # gRPC makes the peer and the deadline: any text that is no number means that there is none.
        context: dict[str, Any] = {"remaining_s": _seconds(given.get("seconds left", ""))}
        if "peer" in given:
            context["peer"] = given["peer"]
        outcome = front.call(TRANSLATE, message, metadata=pairs, **context)
        bearer = next((value for key, value in pairs if key == "authorization"), "")
        known = {"OK", "DEADLINE_EXCEEDED"} if bearer.partition(" ")[2].strip() == TOKEN else set()
        allowed = known | {"UNAUTHENTICATED"}
        _check(outcome.code in allowed, f"{outcome.code} for {bearer!r}: {outcome.details}")
        _check(outcome.details.isprintable() and TOKEN not in outcome.details, repr(outcome.details))
        request_id = outcome.trailing["x-request-id"]
        _check(re.fullmatch(r"[!-~]{1,64}", str(request_id)) is not None, repr(request_id))
        tracing.begin(TRANSLATE, pairs, "7", 0.0)  # never ended, so nothing is exported

    return target


def _text(value: bytes) -> str:
    """As gRPC reads a value of metadata."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e9 else None


def files() -> Target:
    """The tokens file, the settings, the file of headers: each is read, or refused in one line."""
    folder = _folder()
    path = folder / "file"

    def tokens() -> None:
        table = TokenTable.read(path)
        for name in table.names:
            _check(name.isprintable(), repr(name))

    def settings() -> None:
        load_settings(path)

    def headers() -> None:
        for name, value in _headers_of(path).items():
            _check(name.isprintable() and value.isprintable(), repr((name, value)))

    readers = (tokens, settings, headers)

    def target(content: bytes) -> None:
        path.write_bytes(content[1:])
        try:
            readers[content[0] % len(readers) if content else 0]()
        except (CredentialsError, SettingsError) as error:
            _check(str(error).isprintable(), repr(str(error)))

    return target


def manifests() -> Target:
    """bundle.json: a bundle is read or refused in one line."""
    folder = _folder() / "spell" / "1"
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
    folder = _folder() / "spell" / "1"
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
    "inference": inference,
    "metadata": metadata,
    "files": files,
    "manifests": manifests,
    "tokenizers": tokenizers,
}
