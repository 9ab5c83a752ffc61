"""dragoman.v1.GenerationService."""

import grpc.aio

from dragoman.server.fronts.grpc.dragoman_v1 import messages
from dragoman.server.fronts.grpc.dragoman_v1.fields import naming_fields
from dragoman.server.fronts.grpc.sticky import sticky_key
from dragoman.server.requests.calls import Call, Delta, ScoringCall
from dragoman.server.requests.pace import Pace
from dragoman.server.requests.runtime import Runtime
from dragoman.v1 import generation_pb2, generation_pb2_grpc

__all__ = ["GenerationServicer"]

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]

ScoringContext = grpc.aio.ServicerContext[generation_pb2.ScoreTextsRequest, generation_pb2.ScoreTextsResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Decoder-only models over gRPC."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # grpc.aio takes a coroutine that writes just as well as the generator that the stubs know; cancelling
    # the call reaches a coroutine wherever it waits.
    @naming_fields(inputs="prompt")
    async def Generate(  # type: ignore[override]
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> None:
        """Continue a prompt and send text as it is produced."""

        async def send(delta: Delta) -> None:
            response = generation_pb2.GenerateResponse(text_delta=delta.text)
            if answer := delta.answer:
                await messages.fill_summary(response.summary, answer)
                messages.check_size(response, self._runtime.max_message_bytes)
            await context.write(response)

        call = Call(
            model=request.model,
            version=request.version,
            task="generation",
            inputs=[request.prompt],
            options=messages.options(request.options),
            priority=messages.priority(request.priority),
            deadline_s=messages.deadline_s(context.time_remaining()),
            sticky_key=sticky_key(),
        )
        await self._runtime.stream(call, send)

    @naming_fields(sources="texts[{}]")
    async def ScoreTexts(
        self, request: generation_pb2.ScoreTextsRequest, context: ScoringContext
    ) -> generation_pb2.ScoreTextsResponse:
        """Return how probable given texts are."""
        scores = await self._runtime.score(
            ScoringCall(
                model=request.model,
                version=request.version,
                task="generation",
                sources=(),
                texts=request.texts,
                num_alternatives=request.num_alternatives,
                priority=messages.priority(request.priority),
                deadline_s=messages.deadline_s(context.time_remaining()),
                sticky_key=sticky_key(),
            )
        )
        response = generation_pb2.ScoreTextsResponse(version=scores[0].version)
        pace = Pace()
        for score in scores:
            messages.fill_text_score(response.scores.add(), score)
            await pace()
        return response
