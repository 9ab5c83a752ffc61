"""What the extras of the distribution install, beyond the client and its commands."""

import importlib.util
from collections.abc import Mapping
from typing import Final

from dragoman.common.errors import MissingExtraError

__all__ = ["EXTRAS", "require_extra"]

_SERVE = (
    *("onnxruntime", "grpc_channelz", "grpc_reflection", "grpc_status", "msgspec", "numpy", "structlog"),
    *("tokenizers", "waitress", "watchfiles"),
)
_TRAIN = (
    *("torch", "babel", "jinja2", "matplotlib", "onnx", "onnxscript", "platformdirs", "pyarrow", "sacrebleu"),
    *("sacremoses", "safetensors", "tensorboard"),
)
_FILES = ("pyarrow",)
_TRACING = ("opentelemetry",)
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "files": (*_FILES, *_SERVE),
    "serve": _SERVE,
    "tracing": (*_TRACING, *_SERVE),
    "train": (*_TRAIN, *_SERVE),
}
"""The modules that each extra installs."""


def require_extra(extra: str) -> None:
    """Check that all modules of the extra `extra` are installed. They are not imported.

    Raises:
        MissingExtraError: naming the first module that is missing, and the extra.
    """
    for name in EXTRAS[extra]:
        if importlib.util.find_spec(name) is None:
            message = f"this needs {name}, which is not installed: pip install 'dragoman[{extra}]'"
            raise MissingExtraError(message, name=name)
