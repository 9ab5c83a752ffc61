"""dragoman.v1.TranslationService."""

import grpc.aio

from dragoman.server.fronts.grpc.dragoman_v1 import messages
from dragoman.server.fronts.grpc.dragoman_v1.fields import naming_fields
from dragoman.server.fronts.grpc.sticky import sticky_key
from dragoman.server.requests.calls import Call, Delta, ScoringCall
from dragoman.server.requests.pace import Pace
from dragoman.server.requests.runtime import Runtime
from dragoman.v1 import translation_pb2, translation_pb2_grpc

__all__ = ["TranslationServicer"]

Request = translation_pb2.TranslateRequest
Context = grpc.aio.ServicerContext[Request, translation_pb2.TranslateResponse]
ScoringRequest = translation_pb2.ScoreTranslationsRequest
ScoringContext = grpc.aio.ServicerContext[ScoringRequest, translation_pb2.ScoreTranslationsResponse]
StreamContext = grpc.aio.ServicerContext[Request, translation_pb2.StreamTranslateResponse]


class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """Encoder-decoder models over gRPC."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @naming_fields(prefixes="target_prefixes[{}]")
    async def Translate(self, request: Request, context: Context) -> translation_pb2.TranslateResponse:
        """Translate every input and answer when all are done."""
        answers = await self._runtime.answer(_call(request, context))
        response = translation_pb2.TranslateResponse(version=answers[0].version)
        pace = Pace()
        for answer in answers:
            await messages.fill_translation(response.translations.add(), answer)
            await pace()
        return response

    # grpc.aio takes a coroutine that writes just as well as the generator that the stubs know; cancelling
    # the call reaches a coroutine wherever it waits.
    @naming_fields(prefixes="target_prefixes[{}]")
    async def StreamTranslate(  # type: ignore[override]
        self, request: Request, context: StreamContext
    ) -> None:
        """Translate every input and send text as it is produced."""

        async def send(delta: Delta) -> None:
            response = translation_pb2.StreamTranslateResponse(index=delta.index, text_delta=delta.text)
            if delta.answer:
                await messages.fill_translation(response.translation, delta.answer)
                messages.check_size(response, self._runtime.max_message_bytes)
                response.version = delta.answer.version
            await context.write(response)

        await self._runtime.stream(_call(request, context), send)

    @naming_fields(sources="pairs[{}].source", texts="pairs[{}].target")
    async def ScoreTranslations(
        self, request: ScoringRequest, context: ScoringContext
    ) -> translation_pb2.ScoreTranslationsResponse:
        """Return how probable given translations are."""
        scores = await self._runtime.score(
            ScoringCall(
                model=request.model,
                version=request.version,
                task="translation",
                sources=messages.FieldOfEach(request.pairs, "source"),
                texts=messages.FieldOfEach(request.pairs, "target"),
                num_alternatives=request.num_alternatives,
                priority=messages.priority(request.priority),
                deadline_s=messages.deadline_s(context.time_remaining()),
                sticky_key=sticky_key(),
            )
        )
        response = translation_pb2.ScoreTranslationsResponse(version=scores[0].version)
        pace = Pace()
        for score in scores:
            messages.fill_text_score(response.scores.add(), score)
            await pace()
        return response


def _call(request: Request, context: Context | StreamContext) -> Call:
    return Call(
        model=request.model,
        version=request.version,
        task="translation",
        inputs=request.inputs,
        prefixes=request.target_prefixes,
        options=messages.options(request.options),
        priority=messages.priority(request.priority),
        deadline_s=messages.deadline_s(context.time_remaining()),
        sticky_key=sticky_key(),
    )
