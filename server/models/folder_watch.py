"""What comes into the models folder while the server runs: a complete bundle of a new version is served.

An event only wakes the watch. What it does depends on what lies in the folder then.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import watchfiles

from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import BundleError, FailedChange, IncompleteBundle, ResourceUnavailable
from dragoman.server.models.discovery import UNAVAILABLE
from dragoman.server.models.repository import Repository

__all__ = ["Fingerprint", "FolderWatch", "changes_in", "fingerprint_of"]

RESCAN_MS = 5_000
"""The folder is looked at so often also without an event: some file systems, NFS among them, tell of none."""
QUIET_MS = 200
"""Events that follow each other within this time are one."""

MIN_DELAY_S, MAX_DELAY_S = 5.0, 300.0
"""Before a version is tried again for which memory, files or a device were missing; doubled with each try in vain."""

_log = structlog.get_logger(__name__)

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Tried:
    """A version that could not be served.

    Attributes:
        fingerprint: of its folder, as it was tried.
        delay_s: until it is tried again.
        retry_at_s: when it is tried again though its folder is the same; infinite: the bundle itself is wrong.
    """

    fingerprint: Fingerprint
    delay_s: float = 0.0
    retry_at_s: float = math.inf


class FolderWatch:
    """Serves what comes into the models folder.

    A version that could not be served is tried again when a file of it has changed, and after a while where this
    server could not have it at the moment.
    """

    def __init__(
        self,
        repository: Repository,
        directory: Path,
        *,
        serves_all: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`serves_all`: each new version is served, not the highest alone."""
        self._repository = repository
        self._directory = directory
        self._serves_all = serves_all
        self._clock = clock
        self._tried: dict[Path, _Tried] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set."""
        for folder in await self._repository.look_at_folders():
            if self._repository.why_failed(folder) not in {"", UNAVAILABLE}:
                self._tried[folder] = _Tried(await asyncio.to_thread(fingerprint_of, folder))
        async for _ in changes_in(self._directory, stop):
            try:
                await self.look()
            except Exception:  # noqa: BLE001  a fault of ours may not end the watch
                _log.exception("watch_failed", directory=str(self._directory))

    async def look(self) -> None:
        """Serve what is new and complete. Say of what is not why it is not served."""
        folders = await self._repository.look_at_folders()
        self._tried = {folder: tried for folder, tried in self._tried.items() if folder in set(folders)}
        taken_up: set[str] = set()
        for folder in folders:  # highest first
            name = folder.parent.name
            if name not in taken_up and self._repository.is_news(folder) and await self._try(folder):
                taken_up |= set() if self._serves_all else {name}

    async def _try(self, folder: Path) -> bool:
        """Serve a version whose files have changed, or whose time has come; returns whether it is served now."""
        fingerprint = await asyncio.to_thread(fingerprint_of, folder)
        delay_s, tried = MIN_DELAY_S, self._tried.get(folder)
        if tried is not None and tried.fingerprint == fingerprint:
            if self._clock() < tried.retry_at_s:
                return False
            delay_s = min(2 * tried.delay_s, MAX_DELAY_S)
        self._tried[folder] = _Tried(fingerprint)
        if problem := await asyncio.to_thread(_incompleteness, folder):
            await self._repository.refuse(folder, "incomplete", problem)
            return False
        try:
            await self._repository.take_up(folder, retry_s=delay_s)
        except FailedChange:  # it is in the log and in the catalog
            if self._repository.why_failed(folder) == UNAVAILABLE:
                self._tried[folder] = _Tried(fingerprint, delay_s, self._clock() + delay_s)
            return False
        return True


def _incompleteness(folder: Path) -> str | None:
    """What is missing of a bundle that may still be copied, or None. What is wrong with a whole one comes out later."""
    try:
        Bundle.read(folder)
    except IncompleteBundle as error:
        return str(error)
    except (BundleError, ResourceUnavailable):
        return None
    return None


def fingerprint_of(folder: Path) -> Fingerprint:
    """Names, sizes, times and inodes of the files of a folder: the same as long as nothing in it has changed."""
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as error:  # it is being moved, or may not be read
        files.append((str(error.strerror), 0, 0, 0))
    return tuple(sorted(files))


async def changes_in(directory: Path, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield at once and whenever something has changed in `directory` or below, until `stop` is set."""
    last_error = ""
    while not stop.is_set():
        yield
        try:
            async for _ in watchfiles.awatch(
                directory,
                watch_filter=None,
                step=QUIET_MS,
                rust_timeout=RESCAN_MS,
                yield_on_timeout=True,
                stop_event=stop,
                ignore_permission_denied=True,
            ):
                yield
        except (OSError, RuntimeError) as error:
            # The folder is gone for now, or the system has no watch left: the folder is looked at without events.
            if str(error) != last_error:
                last_error = str(error)
                _log.warning("watch_failed", directory=str(directory), error=last_error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESCAN_MS / 1_000):
                    await stop.wait()
