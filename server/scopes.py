"""The scopes of callers: each permits some of the methods."""

import enum

__all__ = ["Scope"]


class Scope(enum.StrEnum):
    """A right of a caller: to ask models, to change what is served, to read metrics over HTTP."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"
