"""`python -m dragoman.server.fronts.processes MODULE ...`: a front process, which goes on as `MODULE.main()`."""

import importlib
import signal
import sys

from dragoman.server.operations.grpc_core import set_up_grpc_core
from dragoman.server.processes.linux import die_with_parent, name_process


def main() -> None:
    """First of all, as the imports that follow take a while: be deaf to signals, and end with the server."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)  # the server says when it is over
    module, place, *_, server = sys.argv[1:]
    die_with_parent(int(server))
    name_process(f"front-{place}")
    set_up_grpc_core()
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
