"""Is there memory for the server's processes alone? Asked before any is started, as what they lack shows much later.

What models need besides is asked when they are loaded (`execution/memory_budget.py`).
"""

from dragoman.common.memory import available_memory, readable_bytes
from dragoman.server.errors import ResourceUnavailable

__all__ = ["FRONT_BYTES", "LANE_BYTES", "check_processes_fit"]

FRONT_BYTES = 48 * 2**20
"""A further front at rest took 41 MiB of its own: the interpreter, gRPC, the tokenizer."""
LANE_BYTES = 8 * 2**20
"""A lane's process at rest took 5 MiB of its own; the rest it shares with the host."""


def check_processes_fit(num_fronts: int, num_lanes: int) -> None:
    """Refuse settings whose processes have no room. This process is the first of `num_fronts`, and has its memory.

    Raises:
        ResourceUnavailable: the message has the numbers, and what to lower.
    """
    available = available_memory()
    num_bytes = (num_fronts - 1) * FRONT_BYTES + num_lanes * LANE_BYTES
    if available is not None and num_bytes > available.num_bytes:
        raise ResourceUnavailable(
            f"server.fronts = {num_fronts} and engine.lanes = {num_lanes} take {readable_bytes(num_bytes)} of memory "
            f"for their processes alone; {readable_bytes(available.num_bytes)} are available ({available.limit}): "
            "lower one of them"
        )
