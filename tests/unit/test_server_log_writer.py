"""Log lines: a standard error that is not read, is full or is gone costs lines, never the one that logs."""

import os
import threading

from tests.conftest import Pipe

from dragoman.server.operations.log_limits import BURST, LINES_PER_SECOND, MAX_KINDS, LogLimiter, Suppressed
from dragoman.server.operations.log_writer import (
    DroppedLinesCollector,
    LogStream,
    LogWriter,
    descriptor_writer,
)

PATIENCE_S = 20.0


def dropped(writer: LogWriter) -> float:
    [family] = DroppedLinesCollector(writer).collect()
    [sample] = family.samples
    assert sample.name == "dragoman_log_lines_dropped_total"
    return sample.value


def test_lines_arrive_in_their_order(pipe: Pipe) -> None:
    writer = LogWriter(descriptor_writer(pipe.writer.fileno()))
    lines = [f"line {number} \udce9\n" for number in range(1000)]  # a byte that is not UTF-8 costs no line
    for line in lines:
        writer.put(line)
    assert writer.flush(PATIENCE_S)
    assert os.read(pipe.reader.fileno(), 1 << 16).decode() == "".join(lines).replace("\udce9", "\\udce9")
    assert dropped(writer) == 0


def test_a_pipe_that_nobody_reads_holds_up_nobody(pipe: Pipe) -> None:
    writer = LogWriter(descriptor_writer(pipe.writer.fileno()), max_characters=10_000)
    num_lines = 0
    while writer.num_dropped < 100:
        writer.put("x" * 99 + "\n")
        num_lines += 1
    while writer.flush(0.05):  # the thread had no turn yet: the pipe takes more
        writer.put("x" * 99 + "\n")
        num_lines += 1
    num_dropped = dropped(writer)
    received = 0
    while received < (num_lines - num_dropped) * 100:  # somebody reads after all
        received += len(os.read(pipe.reader.fileno(), 1 << 16))
    assert writer.flush(PATIENCE_S)
    assert dropped(writer) == num_dropped


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer.fileno(), False)
    writer = LogWriter(descriptor_writer(pipe.writer.fileno()))
    for _ in range(3000):
        writer.put("x" * 99 + "\n")
    received = 0
    while received < 300_000:
        received += len(os.read(pipe.reader.fileno(), 1 << 16))
    assert writer.flush(PATIENCE_S)
    assert dropped(writer) == 0


def test_a_reader_that_has_gone_and_a_full_disk_are_counted(pipe: Pipe) -> None:
    pipe.reader.close()
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (pipe.writer.fileno(), full):
        writer = LogWriter(descriptor_writer(descriptor))
        for _ in range(10):
            writer.put("x\n")
            assert writer.flush(PATIENCE_S)
        assert dropped(writer) == 10
    os.close(full)


def test_what_stands_in_for_standard_error_never_raises() -> None:
    may_write = threading.Event()

    def write(text: str) -> None:
        assert may_write.wait(PATIENCE_S)
        raise OSError(text)

    writer = LogWriter(write, max_characters=10)
    stream = LogStream(writer, is_terminal=False)
    print("a line", file=stream, flush=True)
    print("one too many", file=stream, flush=True)
    assert stream.write("") == 0
    assert not stream.isatty()
    may_write.set()
    assert writer.flush(PATIENCE_S)
    assert writer.num_dropped >= 2


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_kind_has_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    limiter = LogLimiter(clock)
    assert sum(limiter.admit("refused") for _ in range(1000)) == BURST
    assert limiter.admit("another kind")
    assert limiter.take_suppressed() == [Suppressed("refused", 1000 - BURST)]
    assert limiter.take_suppressed() == []
    clock.now_s += 3 / LINES_PER_SECOND
    assert sum(limiter.admit("refused") for _ in range(10)) == 3
    clock.now_s += 1e6
    assert sum(limiter.admit("refused") for _ in range(1000)) == BURST


def test_the_number_of_kinds_is_bounded() -> None:
    limiter = LogLimiter()
    assert sum(limiter.admit(number) for number in range(10 * MAX_KINDS)) == MAX_KINDS
