"""gRPC's core as a server wants it: it reads variables of the environment when grpc is first imported."""

import os

__all__ = ["set_up_grpc_core"]

LISTENER = "-event_engine_listener"
"""The thread that hands over completions also reads and writes the connections. With the event engine's listener other
threads do, and each event of a call is handed from thread to thread first: a call then costs the front a tenth more
CPU (docs/performance-log.md). A version of gRPC that has no such choice ignores the name."""


def set_up_grpc_core() -> None:
    """Switch gRPC core's own log off and choose how it waits, unless the environment says otherwise.

    The log (`GRPC_VERBOSITY`) repeats on standard error what clients send. `GRPC_EXPERIMENTS` has the choice of the
    listener. Call this before the first import of grpc.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_EXPERIMENTS", LISTENER)
