"""The processes that answer blocks of texts: a host that loads the bundle, and a worker for each core.

The host has one thread and forks the workers, so that they share the pages of the weights. A worker answers blocks with
one lane. It takes all blocks that are there, up to a window of rows, and sorts their texts by length. Rows are still
busy with earlier ones then, so that none is empty between blocks.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from dragoman.common.errors import DragomanError, UsageError
from dragoman.files.offline_model import WINDOW_ROWS, OfflineModel, OfflineRules, TextBatch
from dragoman.files.protocol import Begin, Block, Done, Ended, Failed, Ready
from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import RequestError
from dragoman.server.processes.linux import die_with_parent, how_it_ended, name_process

__all__ = ["load_rules", "main"]


def load_rules(begin: Begin) -> OfflineRules:
    """Load a bundle and check the options.

    Raises:
        UsageError: the folder holds no sound bundle, or an option breaks a rule.
        OperationError: there is no memory for the lanes.
    """
    bundle = Bundle.read(begin.bundle)
    if bundle.manifest.task != begin.task:
        raise UsageError(f"{begin.bundle} is a {bundle.manifest.task} model, not for {begin.task}")
    try:
        return OfflineRules(
            bundle, begin.settings, task=begin.task, options=begin.options, prefix=begin.prefix
        )
    except RequestError as error:
        raise UsageError(str(error)) from error


def main() -> NoReturn:
    """Be the host: load, fork, and say of each worker how it ended. Ends when all workers have."""
    control, *connections = (Connection(int(each)) for each in sys.argv[2:-1])
    try:
        rules = load_rules(control.recv())
    except DragomanError as error:
        control.send(Failed(str(error), isinstance(error, UsageError)))
        os._exit(1)
    except EOFError:  # the command has ended
        os._exit(0)
    control.send(Ready())
    host = os.getpid()
    for number, connection in enumerate(connections):
        if not os.fork():
            die_with_parent(host)
            name_process(f"worker-{number}")
            control.close()
            for other in connections[number + 1 :]:
                other.close()
            _work(rules, connection)
        connection.close()
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            os._exit(0)
        if status:
            with contextlib.suppress(OSError):
                control.send(Ended(how_it_ended(os.waitstatus_to_exitcode(status))))


def _work(rules: OfflineRules, connection: Connection) -> NoReturn:
    """Be a worker until the command ends; never returns into the host's code."""
    try:
        _answer_blocks(OfflineModel(rules), connection)
        os._exit(0)
    except DragomanError as error:
        connection.send(Failed(str(error), is_usage=False))
    except BaseException as error:  # noqa: BLE001  the command says it
        with contextlib.suppress(OSError):
            connection.send(Failed(f"a step failed: {type(error).__name__}: {error}", is_usage=False))
    os._exit(1)


def _answer_blocks(model: OfflineModel, connection: Connection) -> None:
    # A thread reads: the command is never kept waiting with a block while this process waits to send an answer.
    blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, blocks), daemon=True).start()
    running: list[tuple[int, TextBatch]] = []
    while True:
        while model.wants_texts:
            window = _take_window(blocks, waits=not running)
            if not window:
                break
            batches = model.submit(*((block.texts, block.first) for block in window))
            running += zip((block.number for block in window), batches, strict=True)
            _send_complete(running, connection)
        if model.has_work:
            model.step()
            _send_complete(running, connection)


def _take_window(blocks: "queue.SimpleQueue[Block]", *, waits: bool) -> list[Block]:
    """The blocks that are there, up to a window of rows; `waits` for the first one."""
    window: list[Block] = []
    with contextlib.suppress(queue.Empty):
        while sum(len(block.texts) for block in window) < WINDOW_ROWS:
            window.append(blocks.get(block=waits and not window))
    return window


def _send_complete(running: list[tuple[int, TextBatch]], connection: Connection) -> None:
    for each in [each for each in running if each[1].is_complete]:
        number, batch = each
        running.remove(each)
        connection.send(Done(number, batch.results))


def _receive(connection: Connection, blocks: "queue.SimpleQueue[Any]") -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            blocks.put(connection.recv())
    os.kill(os.getpid(), signal.SIGKILL)  # the command has ended, and nobody waits for an answer
