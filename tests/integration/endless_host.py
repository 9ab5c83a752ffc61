"""A host that loads for ever."""

import time
from typing import NoReturn

import structlog

from dragoman.server.engine.processes.entry import run_host
from dragoman.server.engine.processes.host import Host
from dragoman.server.engine.processes.messages import Begin


def main() -> None:
    run_host(load)


def load(host: Host, begin: Begin) -> NoReturn:
    structlog.get_logger().info("endless")
    time.sleep(600)
    raise AssertionError
