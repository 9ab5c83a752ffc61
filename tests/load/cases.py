"""Calls and the answers that they must get: drawn from a seed, answered one at a time by an engine in this process."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from dragoman.server.config import EngineSettings
from dragoman.server.fronts.in_process import InProcessServer
from dragoman.v1 import decoding_pb2, generation_pb2, translation_pb2

__all__ = ["STREAMED", "Case", "answer_cases", "joined", "malformed_cases"]

TRANSLATE = "/dragoman.v1.TranslationService/Translate"
STREAM_TRANSLATE = "/dragoman.v1.TranslationService/StreamTranslate"
SCORE_TRANSLATIONS = "/dragoman.v1.TranslationService/ScoreTranslations"
GENERATE = "/dragoman.v1.GenerationService/Generate"
SCORE_TEXTS = "/dragoman.v1.GenerationService/ScoreTexts"
STREAMED = frozenset({STREAM_TRANSLATE, GENERATE})

Options = decoding_pb2.DecodingOptions


@dataclass(frozen=True, slots=True)
class Case:
    """One call.

    Attributes:
        kind: what is asked for, for counts.
        path: of the method.
        message: the request as it goes over the wire.
        code: name of the status that it must end with.
        answer: what it must get, in the form of `joined`; empty where `code` is not OK.
    """

    kind: str
    path: str
    message: bytes
    code: str = "OK"
    answer: bytes = b""


async def answer_cases(
    bundle: Path, num_cases: int, seed: int, on_progress: Callable[[], object] = lambda: None
) -> list[Case]:
    """Draw `num_cases` calls for `bundle` and answer them, each one alone."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    texts = _texts(manifest, random.Random(seed))
    drawing = _Drawing(bundle.parent.name, manifest, texts, random.Random(seed))
    settings = EngineSettings.load({"lanes": 1, "threads_per_lane": 1}, source="engine")
    server = InProcessServer(bundle, settings)
    try:
        channel = server.channel()
        cases = []
        for _ in range(num_cases):
            kind, path, request = drawing.draw()
            cases.append(await _answered(channel, kind, path, request))
            on_progress()
        return cases
    finally:
        server.close()


async def _answered(channel: Any, kind: str, path: str, request: Any) -> Case:
    message = request.SerializeToString()
    try:
        if path in STREAMED:
            messages = [each.SerializeToString() async for each in channel.unary_stream(path)(request)]
        else:
            messages = [(await channel.unary_unary(path)(request)).SerializeToString()]
    except grpc.aio.AioRpcError as error:
        return Case("refused", path, message, error.code().name)
    return Case(kind, path, message, answer=joined(path, messages))


def joined(path: str, messages: Sequence[bytes]) -> bytes:
    """An answer as one value: where a stream's text was cut into pieces says nothing of the answer.

    Raises:
        ValueError: a stream's last part is missing, or came twice.
    """
    if path == STREAM_TRANSLATE:
        return b"".join(_joined_translations(messages))
    if path == GENERATE:
        pieces = [generation_pb2.GenerateResponse.FromString(each) for each in messages]
        summaries = [each for each in pieces if each.HasField("summary")]
        if len(summaries) != 1 or pieces[-1] is not summaries[0]:
            raise ValueError(f"{len(summaries)} summaries")
        text = "".join(each.text_delta for each in pieces)
        whole = generation_pb2.GenerateResponse(text_delta=text, summary=summaries[0].summary)
        return whole.SerializeToString(deterministic=True)
    [message] = messages
    return message


def _joined_translations(messages: Sequence[bytes]) -> Iterable[bytes]:
    by_index: dict[int, list[translation_pb2.StreamTranslateResponse]] = defaultdict(list)
    for message in messages:
        piece = translation_pb2.StreamTranslateResponse.FromString(message)
        by_index[piece.index].append(piece)
    for index, pieces in sorted(by_index.items()):
        if [each.HasField("translation") for each in pieces].count(True) != 1 or not pieces[-1].version:
            raise ValueError(f"input {index} was not answered once")
        whole = translation_pb2.StreamTranslateResponse()
        whole.CopyFrom(pieces[-1])
        whole.text_delta = "".join(each.text_delta for each in pieces)
        yield whole.SerializeToString(deterministic=True)


def malformed_cases(model: str) -> list[Case]:
    """Calls that break a rule of the protocol or of the service, with the status that each must get."""
    request = translation_pb2.TranslateRequest

    def options(**changed: Any) -> bytes:
        return request(model=model, inputs=["12"], options=Options(**changed)).SerializeToString()

    invalid = {
        "not protobuf": b"\xff" * 40,
        "a field cut off": request(model=model, inputs=["12"]).SerializeToString()[:-1],
        "no input": request(model=model).SerializeToString(),
        "a thousand inputs": request(model=model, inputs=["1"] * 1000).SerializeToString(),
        "two million entries": request(model=model).SerializeToString() + b"\x1a\x00" * 2_000_000,
        "a temperature below 0": options(temperature=-1.0),
        "top_p beyond 1": options(temperature=1.0, top_p=1.5),
        "beams and a temperature": options(temperature=1.0, beam_size=4),
        "too long": request(model=model, inputs=["1" * 5_000]).SerializeToString(),
        "not UTF-8": b"\x0a\x01\xff",
    }
    cases = [Case("malformed", TRANSLATE, message, "INVALID_ARGUMENT") for message in invalid.values()]
    absent = request(model="absent", inputs=["12"]).SerializeToString()
    cases.append(Case("malformed", TRANSLATE, absent, "NOT_FOUND"))
    cases.append(Case("malformed", "/dragoman.v1.TranslationService/Absent", absent, "UNIMPLEMENTED"))
    return cases


def _texts(manifest: Any, rng: random.Random) -> list[str]:
    """The golden examples' inputs, and pairs of them: as many as calls can share beginnings."""
    golden = [example["text"] for example in manifest["golden_examples"]]
    joiner = "" if any(text.isdecimal() for text in golden) else " "
    most = manifest["limits"]["max_source_tokens"] // 4
    pairs = [joiner.join(rng.sample(golden, 2)) for _ in range(40)]
    return [*golden, *(text for text in pairs if len(text) <= max(most, len(golden[0])))]


class _Drawing:
    """Draws calls for one model."""

    def __init__(self, model: str, manifest: Any, texts: Sequence[str], rng: random.Random) -> None:
        self._model = model
        self._is_translation = manifest["task"] == "translation"
        self._has_alignment = "align" in manifest["graphs"]
        self._most_tokens = min(48, manifest["limits"]["max_output_tokens"])
        self._texts = texts
        self._rng = rng

    def draw(self) -> tuple[str, str, Any]:
        """Returns what the call asks for, its method and its request."""
        return self._draw_translation() if self._is_translation else self._draw_generation()

    def _draw_translation(self) -> tuple[str, str, Any]:
        rng = self._rng
        num_inputs = rng.choice((1, 1, 1, 1, 2, 5, 16))
        inputs = rng.choices(self._texts, k=num_inputs)
        if rng.random() < 0.08:
            pairs = [translation_pb2.ScoredPair(source=text, target=rng.choice(inputs)) for text in inputs]
            scoring = translation_pb2.ScoreTranslationsRequest(
                model=self._model, pairs=pairs, num_alternatives=rng.choice((0, 3))
            )
            return "score", SCORE_TRANSLATIONS, scoring
        kind, options = self._draw_options()
        path = rng.choice((TRANSLATE, TRANSLATE, TRANSLATE, STREAM_TRANSLATE))
        kind = f"{kind}, streamed" if path == STREAM_TRANSLATE else kind
        request = translation_pb2.TranslateRequest(model=self._model, inputs=inputs, options=options)
        return kind, path, request

    def _draw_generation(self) -> tuple[str, str, Any]:
        rng = self._rng
        if rng.random() < 0.08:
            texts = rng.choices(self._texts, k=rng.choice((1, 4)))
            return "score", SCORE_TEXTS, generation_pb2.ScoreTextsRequest(model=self._model, texts=texts)
        kind, options = self._draw_options()
        if not options.HasField("max_tokens"):
            options.max_tokens = rng.choice((4, 16, 32))
        prompt = rng.choice(self._texts)
        request = generation_pb2.GenerateRequest(model=self._model, prompt=prompt, options=options)
        return f"{kind}, streamed", GENERATE, request

    def _draw_options(self) -> tuple[str, Options]:
        rng = self._rng
        match rng.choices(("greedy", "beams", "sample", "rules", "alternatives"), (50, 12, 18, 12, 8))[0]:
            case "beams":
                beam_size = rng.choice((2, 4, 5))
                options = Options(beam_size=beam_size, num_hypotheses=rng.randint(1, beam_size))
                options.length_penalty = rng.choice((0.6, 1.0))
                return "beams", options
            case "sample":
                options = Options(temperature=rng.choice((0.3, 1.0, 1.7)), seed=rng.randrange(1 << 63))
                options.top_k, options.top_p = rng.choice((0, 5, 20)), rng.choice((0.8, 1.0))
                options.num_hypotheses = rng.choice((1, 1, 3))
                return "sample", options
            case "rules":
                options = Options(repetition_penalty=1.3, no_repeat_ngram_size=3)
                options.suppressed_texts.append(rng.choice(("two", "nine")))
                options.stop.append("seven")
                return "rules", options
            case "alternatives":
                options = Options(num_alternatives=rng.randint(1, 5))
                options.alignment = self._is_translation and self._has_alignment
                return "alternatives", options
            case _:
                options = Options()
                if rng.random() < 0.5:
                    options.max_tokens = rng.randint(1, self._most_tokens)
                if rng.random() < 0.1:
                    options.min_tokens = min(8, options.max_tokens or 8)
                return "greedy", options
