"""What gRPC's core counts for the server."""

import grpc

from dragoman.server.fronts.grpc.listening import count_of_started_calls, grpc_server_ids

NUM_OTHERS = 120


def test_a_server_is_found_among_more_than_a_hundred() -> None:
    """gRPC's core tells a hundred at a time."""
    others = [grpc.server(None) for _ in range(NUM_OTHERS)]  # type: ignore[arg-type]  # none of them is started
    before = grpc_server_ids()
    assert len(before) >= NUM_OTHERS
    server = grpc.server(None)  # type: ignore[arg-type]
    mine = grpc_server_ids() - before
    assert len(mine) == 1
    assert count_of_started_calls(mine)() == 0
    assert count_of_started_calls(before)() is not None
    del others, server
