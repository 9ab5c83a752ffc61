"""Settings of the section [admission]: what one client may do."""

from typing import Annotated

from pydantic import Field

from dragoman.common.settings import Settings

__all__ = ["AdmissionSettings"]

_MAX_CALLS = 1_000_000
_MAX_TOKENS = 10**9
_DEFAULT_BURST_S = 10.0


class AdmissionSettings(Settings):
    """What one client may do. A client is what its credentials name, or the address of a caller without any. A call
    beyond a limit is refused with RESOURCE_EXHAUSTED before its message is read. Several fronts count together.
    """

    max_calls_a_client: Annotated[int, Field(ge=0, le=_MAX_CALLS)] = 0
    """Most calls of one client at one time. 0: no limit."""
    tokens_a_second_a_client: Annotated[float, Field(ge=0, le=_MAX_TOKENS)] = 0.0
    """Tokens that one client may use in a second in the long run: those of its inputs and of its answers. A call pays
    when its tokens are known, so a client may owe some; it is then refused until it has paid. 0: no limit."""
    burst_tokens_a_client: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] = 0
    """Tokens that one client may use at once after a pause. 0: what `tokens_a_second_a_client` gives in ten
    seconds."""

    ipv6_prefix_bits: Annotated[int, Field(ge=1, le=128)] = 64
    """Callers without credentials whose IPv6 addresses begin with the same bits are one client: a network gives a
    machine 64 bits of addresses to choose from. 128: each address is a client."""

    @property
    def burst_tokens(self) -> float:
        """Tokens that one client may use at once after a pause."""
        return self.burst_tokens_a_client or _DEFAULT_BURST_S * self.tokens_a_second_a_client
