"""Dragoman trains a Transformer, exports it to ONNX and serves it. This module is its Python client.

from dragoman import Client

with Client("localhost:8500") as client:
    print(client.translate("le 3 mars 2024", model="dates")[0].text)

The names are those of `dragoman.client`, which imports gRPC when one of them is first asked for.
"""

import importlib

from dragoman.client import __all__ as __all__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dragoman.client import *  # noqa: F403  as many names as the client has
else:

    def __getattr__(name):
        if name in __all__:
            return getattr(importlib.import_module("dragoman.client"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
