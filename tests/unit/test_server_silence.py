"""A new sign of life ends a silence; what has nothing to do is not silent."""

from dragoman.server.processes.silence import Silence


def test_looks_without_a_new_sign_are_counted_in_a_row() -> None:
    silence = Silence(7)
    assert [silence.look(sign) for sign in (7, 7, 8, 8, 8, 9)] == [1, 2, 0, 1, 2, 0]


def test_what_is_idle_is_not_silent() -> None:
    silence = Silence(7)
    looks = [silence.look(7, is_idle=is_idle) for is_idle in (False, True, True, False, False)]
    assert looks == [1, 0, 0, 1, 2]


def test_a_sign_that_goes_back_is_a_sign() -> None:
    """A process that takes the place of another begins to count anew."""
    silence = Silence(7.5)
    assert silence.look(0.0) == 0
