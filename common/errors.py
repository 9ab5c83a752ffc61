"""The exception tree that every package shares.

    DragomanError
    ├── UsageError        the caller's fault: one line with the offending value, exit code 2
    │   └── SettingsError a recipe or server configuration that does not fit its type
    ├── OperationError    the environment's fault (disk full, port in use): one line, exit code 1
    └── MissingExtraError the installation lacks packages (also a ModuleNotFoundError): one line, exit code 1

A package adds its own leaves under these (`dragoman.server.errors`, `dragoman.model.errors`); anything outside
the tree is a bug and may show a traceback.
"""

__all__ = ["DragomanError", "MissingExtraError", "OperationError", "SettingsError", "UsageError"]


class DragomanError(Exception):
    """Base of every error whose message is meant for the user: one line, no internals."""


class UsageError(DragomanError):
    """What was asked for cannot be right, however often it is tried."""


class SettingsError(UsageError):
    """A settings file or an override holds an unknown key or a value of the wrong kind."""


class OperationError(DragomanError):
    """What was asked for is right, but the machine or the data did not allow it."""


class MissingExtraError(DragomanError, ModuleNotFoundError):
    """What was asked for needs packages that an extra of the distribution installs."""
