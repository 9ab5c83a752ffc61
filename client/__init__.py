"""The Python client of Dragoman.

from dragoman import Client

with Client("localhost:8500") as client:
    print(client.translate("le 3 mars 2024", model="dates")[0].text)

`AsyncClient` has the same calls for asyncio code; `dragoman.client.errors` draws the tree of what they raise.
`Translator` and `Generator` are for a bundle's folder, without a server.
"""

import importlib

TYPE_CHECKING = False  # as `typing` has it, whose import would delay the first line of the command
if TYPE_CHECKING:
    from dragoman.client.asynchronous import AsyncClient
    from dragoman.client.asynchronous_streams import AsyncGeneration, AsyncTranslationStream
    from dragoman.client.blocking import Client
    from dragoman.client.blocking_streams import Generation, TranslationStream
    from dragoman.client.channel import ChannelSettings
    from dragoman.client.credentials import Credentials
    from dragoman.client.errors import (
        CallCancelledError,
        CallError,
        DeadlineExceededError,
        FieldViolation,
        InvalidRequestError,
        MessageTooLargeError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        ServerError,
        UnauthenticatedError,
        UnavailableError,
    )
    from dragoman.client.local import Generator, Translator
    from dragoman.client.results import (
        DecodingOptions,
        FinishReason,
        GenerationSummary,
        Hypothesis,
        ModelAlias,
        ModelInfo,
        ModelList,
        ModelVersion,
        NotLoadedModel,
        OutputToken,
        PriorityName,
        QualityFigure,
        Task,
        TextScore,
        TokenAlternative,
        Translation,
        TranslationDelta,
    )

__all__ = [
    "AsyncClient",
    "AsyncGeneration",
    "AsyncTranslationStream",
    "CallCancelledError",
    "CallError",
    "ChannelSettings",
    "Client",
    "Credentials",
    "DeadlineExceededError",
    "DecodingOptions",
    "FieldViolation",
    "FinishReason",
    "Generation",
    "GenerationSummary",
    "Generator",
    "Hypothesis",
    "InvalidRequestError",
    "MessageTooLargeError",
    "ModelAlias",
    "ModelInfo",
    "ModelList",
    "ModelVersion",
    "NotFoundError",
    "NotLoadedModel",
    "OutputToken",
    "OverloadedError",
    "PermissionDeniedError",
    "PriorityName",
    "QualityFigure",
    "ServerError",
    "Task",
    "TextScore",
    "TokenAlternative",
    "Translation",
    "TranslationDelta",
    "TranslationStream",
    "Translator",
    "UnauthenticatedError",
    "UnavailableError",
]

# gRPC takes a tenth of a second to import. `dragoman --help` and `dragoman serve` pass through this
# package without calling anybody, so a name's module is imported when the name is first asked for (PEP 562).
_MODULES = (
    "dragoman.client.results",
    "dragoman.client.errors",
    "dragoman.client.channel",
    "dragoman.client.credentials",
    "dragoman.client.blocking",
    "dragoman.client.blocking_streams",
    "dragoman.client.asynchronous",
    "dragoman.client.asynchronous_streams",
    "dragoman.client.local",
)


if not TYPE_CHECKING:  # or every name would have a type, those that do not exist too

    def __getattr__(name):
        if name in __all__:
            for module_name in _MODULES:
                module = importlib.import_module(module_name)
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
