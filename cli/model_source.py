"""The model that a command calls: on a server, or in a bundle's folder."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dragoman.cli.credentials import with_credentials
from dragoman.cli.option_groups import Command, option, options_for
from dragoman.cli.options import (
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    Bundle,
    ModelOrBundle,
    ModelVersion,
    Priority,
    PriorityName,
    Target,
    Timeout,
)
from dragoman.client.credentials import Credentials
from dragoman.common.errors import UsageError

if TYPE_CHECKING:
    from dragoman.client.asynchronous import AsyncClient
    from dragoman.client.blocking import Client

__all__ = ["ModelSource", "with_model_source"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that a command calls.

    Attributes:
        target: The server that holds it.
        model: The model's name; empty for a bundle, which holds only one model.
        version: Its version; empty is the highest.
        timeout_s: Deadline of each call, and how long a call may be repeated while the server has no room.
        priority: Of each call.
        credentials: TLS and a token for the server; None: what the environment names.
        bundle: The bundle's folder, which is loaded into this process; None for a server.
    """

    target: str = DEFAULT_TARGET
    model: str = ""
    version: str = ""
    timeout_s: float
    priority: PriorityName = "normal"
    bundle: Path | None = None
    credentials: Credentials | None = None

    @contextlib.asynccontextmanager
    async def connect(self) -> "AsyncIterator[AsyncClient]":
        """Give an asyncio client of the model."""
        from dragoman.client.asynchronous import AsyncClient

        if self.bundle is None:
            async with AsyncClient(
                self.target, timeout_s=self.timeout_s, credentials=self.credentials
            ) as client:
                yield client
        else:
            from dragoman.client.local import local_async_client

            async with local_async_client(self.bundle, timeout_s=self.timeout_s) as client:
                yield client

    @contextlib.contextmanager
    def connect_blocking(self) -> "Iterator[Client]":
        """Give a blocking client of the model."""
        from dragoman.client.blocking import Client

        if self.bundle is None:
            with Client(self.target, timeout_s=self.timeout_s, credentials=self.credentials) as client:
                yield client
        else:
            from dragoman.client.local import local_client

            with local_client(self.bundle, timeout_s=self.timeout_s) as client:
                yield client


def with_model_source(command: Command) -> Command:
    """Put the options that name a model, on a server or in a bundle, in the place of the parameter `source`."""
    options = [
        option("model", ModelOrBundle),
        option("model_version", ModelVersion, ""),
        option("target", Target, DEFAULT_TARGET),
        option("bundle", Bundle),
        option("timeout_s", Timeout, DEFAULT_TIMEOUT_S),
        option("priority", Priority, "normal"),
        option("credentials", Credentials, inspect.Parameter.empty),
    ]
    return with_credentials(options_for("source", options, _model_source)(command))


def _model_source(
    *,
    model: str | None,
    model_version: str,
    target: str,
    bundle: Path | None,
    timeout_s: float,
    priority: PriorityName,
    credentials: Credentials,
) -> ModelSource:
    """Returns the model that the options of a command name.

    Raises:
        UsageError: they name no model, or two.
    """
    if bundle is None:
        if model is None:
            raise UsageError("missing option '--model' / '-m' (or '--bundle', without a server)")
        return ModelSource(
            target=target,
            model=model,
            version=model_version,
            timeout_s=timeout_s,
            priority=priority,
            credentials=credentials,
        )
    given = {
        "--target": target != DEFAULT_TARGET,
        "--model": model,
        "--model-version": model_version,
        "--priority": priority != "normal",
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"--bundle {bundle} and {name}: give one of them")
    return ModelSource(timeout_s=timeout_s, bundle=bundle)
