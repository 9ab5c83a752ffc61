"""Lanes as threads and one client of them, as tests of the engine use them."""

from collections.abc import Sequence
from typing import Any

from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.observation import EngineObserver, Occupancy
from dragoman.server.engine.threads import CLOSE_LIMIT_S, LaneThreads
from dragoman.server.engine.ticket import Ticket
from dragoman.server.execution.backend import Backend


class ThreadedEngine:
    """A backend's lanes, and a client of the event loop that submits first."""

    def __init__(
        self, backend: Backend, settings: EngineSettings, observer: EngineObserver | None = None
    ) -> None:
        self.lanes = LaneThreads.of(backend, settings)
        self.client = self.lanes.connect(observer)

    @classmethod
    def of(cls, bundle: Bundle, **settings: Any) -> "ThreadedEngine":
        """One lane of a thread, unless the settings say otherwise."""
        backend = Backend.load(bundle, provider="cpu", num_threads=1)
        return cls(backend, EngineSettings(**{"lanes": 1, **settings}))

    def submit(
        self,
        input_ids: Sequence[int],
        parameters: DecodingParameters,
        *,
        deadline_s: float | None = None,
        is_streamed: bool = False,
    ) -> Ticket:
        return self.client.submit(input_ids, parameters, deadline_s=deadline_s, is_streamed=is_streamed)

    def occupancy(self) -> Occupancy:
        return self.client.occupancy()

    def oldest_waiting_s(self) -> float:
        return self.client.oldest_waiting_s()

    def close(self, timeout_s: float = CLOSE_LIMIT_S) -> bool:
        return self.lanes.close(timeout_s)
