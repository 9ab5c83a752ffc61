"""The command's side of the processes that answer blocks (`host.py`): blocks out, outcomes in, in order."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from dragoman.common.errors import OperationError, UsageError
from dragoman.files.answers import Outcome
from dragoman.files.processes import Processes
from dragoman.files.protocol import Begin, Block, Done, Ended, Failed, Ready

__all__ = ["Pool", "depth"]

_MIN_DEPTH, _MAX_DEPTH = 2, 16
"""Blocks that a worker has: it computes some, and the next ones are there when rows become free."""
_DEPTH_S = 1.0
"""A worker has the blocks that it answers in this time: more are sorted better by length, and let it compute on while
this process waits for a disk; fewer end at the same time as those of other workers."""
_REASON_S = 2.0

_Item = TypeVar("_Item")


class _Entry(Generic[_Item]):
    """A block that was read, with its outcomes once they are there."""

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.outcomes: list[Outcome] | None = None


class Pool:
    """Processes that answer blocks of texts."""

    def __init__(self, begin: Begin, processes: Processes) -> None:
        """Wait until the processes have loaded the bundle.

        Raises:
            UsageError: the folder holds no sound bundle, or an option breaks a rule.
            OperationError: there is no memory.
        """
        self._control, self._workers = processes.control, processes.workers
        self._num_given = dict.fromkeys(self._workers, 0)
        self._depth = _MIN_DEPTH
        self._give(self._control, begin)
        self._take(self._control)

    def map(
        self, items: Iterable[_Item], block_of: Callable[[_Item, int], Block]
    ) -> Generator[tuple[_Item, list[Outcome]]]:
        """Give each item with the outcomes of its block, in order. At most a few blocks a worker are in memory.

        Where taking an item fails, those before it are given first.

        Raises:
            OperationError: a process has ended, or cannot go on.
        """
        source, is_over, number, num_done = iter(items), False, 0, 0
        failure: Exception | None = None
        entries: deque[_Entry[_Item]] = deque()  # in order
        asked: dict[int, _Entry[_Item]] = {}  # by number
        began_s = time.monotonic()
        while True:
            # As many as are asked may be complete while an earlier one is not.
            most = 2 * self._depth * len(self._workers)
            while not is_over and len(entries) < most and (worker := self._free_worker()) is not None:
                try:
                    item = next(source)
                except StopIteration:
                    is_over = True
                    break
                except Exception as error:  # noqa: BLE001  raised below
                    is_over, failure = True, error
                    break
                entries.append(_Entry(item))
                block = block_of(item, number)
                if block.texts:
                    asked[number], number = entries[-1], number + 1
                    self._num_given[worker] += 1
                    self._give(worker, block)
                else:
                    entries[-1].outcomes = []
            while entries and (outcomes := entries[0].outcomes) is not None:
                yield entries.popleft().item, outcomes
            if not entries and is_over:
                if failure is not None:
                    raise failure
                return
            for ready in wait(self._workers) if asked else ():
                assert isinstance(ready, Connection)
                done = self._take(ready)
                asked.pop(done.number).outcomes = done.outcomes
                self._num_given[ready] -= 1
                num_done += 1
                self._depth = depth(num_done / len(self._workers), time.monotonic() - began_s)

    def _free_worker(self) -> Connection | None:
        worker = min(self._workers, key=self._num_given.__getitem__)
        return worker if self._num_given[worker] < self._depth else None

    def _give(self, connection: Connection, message: Begin | Block) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def _take(self, connection: Connection) -> Any:
        """Receive a message of the host or a worker."""
        try:
            message: Ready | Done | Failed | Ended = connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(message, Failed):
            raise UsageError(message.message) if message.is_usage else OperationError(message.message)
        return message

    def _ended(self) -> OperationError:
        """The error that says how a process ended."""
        how = "the host"
        if self._control.poll(_REASON_S):
            try:
                message = self._control.recv()
            except (EOFError, OSError):
                message = None
            if isinstance(message, Failed):
                return OperationError(message.message)
            if isinstance(message, Ended):
                how = message.how
        return OperationError(f"a process that computes has ended ({how}); is there enough memory?")


def depth(num_blocks: float, seconds: float) -> int:
    """Returns how many blocks a worker may have that has answered `num_blocks` in so many seconds."""
    wanted = int(_DEPTH_S * num_blocks / seconds) if seconds else _MAX_DEPTH
    return max(_MIN_DEPTH, min(_MAX_DEPTH, wanted))
