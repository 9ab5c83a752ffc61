"""How often a watched loop, thread or process was looked at and had given no sign of life since."""

__all__ = ["Silence"]


class Silence:
    """Counts the looks in a row at which there was no new sign of life.

    Looks are counted, not time: the process that looks may have been stopped itself.
    """

    def __init__(self, sign: float = 0) -> None:
        """The watched one has given `sign` so far: a count of signs, or the moment of the last one."""
        self._sign = sign
        self._num_looks = 0

    def look(self, sign: float, *, is_idle: bool = False) -> int:
        """Returns the number of looks in a row, this one included, without a new `sign`.

        It is 0 for a watched one that `is_idle`: it gives no signs, as it has nothing to do.
        """
        self._num_looks = self._num_looks + 1 if sign == self._sign and not is_idle else 0
        self._sign = sign
        return self._num_looks
