"""A lane's loop: the models on a lane take turns at its core, one step each. It knows nothing of threads or processes.

    receive commands -> the next model that has work takes a step and reports -> receive commands -> ...

So a model waits for one step of each other model at most, however much the others have to do.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from dragoman.server.engine.api import Command, Failed, FailureReason, LaneLoad, Report, Submit

__all__ = ["AddWorker", "DropWorker", "LaneLoop", "LanePort", "ModelFront", "Worker"]

_Front = TypeVar("_Front", bound=Hashable)

ModelFront: TypeAlias = tuple[str, _Front]
"""A model's key and a front: what a worker knows as one of its fronts, so that workers know nothing of each other."""


class Worker(Protocol):
    """What computes for one model on a lane."""

    @property
    def has_work(self) -> bool:
        """Whether there is another step to take."""

    def obey(self, front: Any, command: Command) -> None:
        """Take a command of a front. A turn follows."""

    def take_turn(self) -> None:
        """Take a step if there is one to take, and report."""


@dataclass(frozen=True, slots=True)
class AddWorker:
    """From whoever runs the lane: it has one more model."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class DropWorker:
    """From whoever runs the lane: it has a model less, whose rows are freed. What a front has left there is lost."""


class LanePort(Protocol[_Front]):
    """Where commands come from and reports go to. A front is whatever the port knows it by."""

    def receive(
        self, *, wait: bool
    ) -> Sequence[tuple[ModelFront[_Front], Command | AddWorker | DropWorker]] | None:
        """The commands that have come, in their order; with `wait` at least one. None: all fronts have gone, end."""

    def send(self, front: ModelFront[_Front], report: Report) -> None:
        """Report to a front. Where that has gone, `receive` gives a `Leave` of it, and this does nothing."""


class LaneLoop(Generic[_Front]):
    """Runs the workers of a lane with what comes through its port."""

    def __init__(
        self,
        port: LanePort[_Front],
        workers: Mapping[str, Worker] | None = None,
        *,
        on_dropped: Callable[[str], object] = lambda _: None,
    ) -> None:
        """A loop to run.

        Args:
            port: of the lane.
            workers: those that are there from the beginning, by model.
            on_dropped: called with a model's key when its worker has gone.
        """
        self._port = port
        self._on_dropped = on_dropped
        self._workers = dict(workers or {})
        self._turns: dict[str, Worker] = {}  # those that have work, by model; the next one first
        self._last = ""  # that took a turn

    def run(self) -> None:
        """Work until all fronts have gone.

        Raises:
            LaneBroken: every step of a model fails.
        """
        turns = self._turns
        while True:
            received = self._port.receive(wait=not turns)
            if received is None:
                return
            for front, command in received:
                self._take(front, command)
            del received  # nothing here keeps a worker that is dropped next
            if self._last in turns:  # behind those that have come meanwhile
                turns[self._last] = turns.pop(self._last)
            if turns:
                self._take_turn()

    def _take_turn(self) -> None:
        model = self._last = next(iter(self._turns))
        worker = self._turns[model]
        worker.take_turn()
        if not worker.has_work:
            del self._turns[model]

    def _take(self, front: ModelFront[_Front], command: Command | AddWorker | DropWorker) -> None:
        model = front[0]
        if isinstance(command, AddWorker):
            self._workers[model] = command.worker
        elif isinstance(command, DropWorker):
            self._turns.pop(model, None)
            if self._workers.pop(model, None) is not None:
                self._on_dropped(model)
        elif (worker := self._workers.get(model)) is None:
            self._refuse(front, command)
        else:
            worker.obey(front, command)
            if model not in self._turns:
                self._turns[model] = worker

    def _refuse(self, front: ModelFront[_Front], command: Command) -> None:
        """Nothing hangs that comes for a model which has gone."""
        if isinstance(command, Submit):
            message = f"{front[0]} has been unloaded"
            lost = [Failed(request.id, FailureReason.LOST, message) for request in command.requests]
            self._port.send(front, Report([*lost], [], LaneLoad(0, 0)))
