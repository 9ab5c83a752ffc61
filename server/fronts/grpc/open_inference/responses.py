"""Messages of answers: a whole one, or those of a stream, of which the last one says that it is the last."""

from collections.abc import Awaitable, Callable, Sequence

from dragoman.inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from dragoman.server.errors import AnswerTooLarge
from dragoman.server.fronts.grpc.open_inference.requests import Inference
from dragoman.server.fronts.grpc.open_inference.tensors import Tensor, add_output

__all__ = ["FINAL_RESPONSE", "INDEX", "StreamedResponses", "response_to"]

FINAL_RESPONSE = "triton_final_response"
"""The parameter of a stream's response that says whether it is the last one to its request."""
INDEX = "index"
"""The parameter of a stream's response that says which of the texts it is about, from 0."""


def response_to(
    request: ModelInferRequest, inference: Inference, version: str, tensors: Sequence[Tensor]
) -> ModelInferResponse:
    """Returns the response to `request` with these outputs, in the form of its inputs."""
    response = ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    for tensor in tensors:
        add_output(response, tensor, is_raw=inference.is_raw)
    return response


class StreamedResponses:
    """Sends the responses to one request of a stream."""

    def __init__(
        self,
        request: ModelInferRequest,
        inference: Inference,
        num_parts: int,
        max_bytes: int | None,
        send: Callable[[ModelInferResponse], Awaitable[None]],
    ) -> None:
        """The answer has `num_parts` parts, each of any number of responses of up to `max_bytes`."""
        self._request = request
        self._inference = inference
        self._num_open = num_parts
        self._max_bytes = max_bytes
        self._send = send

    async def send(self, version: str, index: int, tensors: Sequence[Tensor], *, ends_part: bool) -> None:
        """Send outputs for text number `index`. The last ones of the last part are marked as final.

        Raises:
            AnswerTooLarge: they do not fit into a message.
        """
        response = response_to(self._request, self._inference, version, tensors)
        response.parameters[INDEX].int64_param = index
        self._num_open -= ends_part
        is_last, ends_empty = not self._num_open, self._inference.ends_empty
        response.parameters[FINAL_RESPONSE].bool_param = is_last and not ends_empty
        if ends_part and self._max_bytes is not None and response.ByteSize() > self._max_bytes:
            raise AnswerTooLarge(self._max_bytes)
        await self._send(response)
        if is_last and ends_empty:
            end = response_to(self._request, self._inference, version, ())
            end.parameters[FINAL_RESPONSE].bool_param = True
            await self._send(end)
