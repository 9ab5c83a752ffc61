"""Errors of training, under the tree of `dragoman.common.errors`.

UsageError
├── RecipeError    a recipe that does not exist
├── CorpusError    a corpus that is missing, empty or does not fit together
└── RunError       a run folder that is missing or cannot be read
OperationError
├── DownloadError  a public corpus that could not be fetched
└── TrainingError  training that could not go on (no finite loss, disk full)

TrainingStopped is no error: somebody asked for it.
"""

from dragoman.common.errors import OperationError, UsageError

__all__ = ["CorpusError", "DownloadError", "RecipeError", "RunError", "TrainingError", "TrainingStopped"]


class RecipeError(UsageError):
    """There is no such recipe."""


class CorpusError(UsageError):
    """The corpus is missing, empty, or its parts do not fit together."""


class RunError(UsageError):
    """The run folder is missing or its files cannot be read."""


class DownloadError(OperationError):
    """A public corpus could not be fetched, or what came is not what it should be."""


class TrainingError(OperationError):
    """Training could not go on."""


class TrainingStopped(Exception):
    """A signal ended training; all of it is saved, to be resumed."""

    def __init__(self, step: int | None, *, interrupted: bool = False) -> None:
        """`step` is none where there was nothing to save yet; `interrupted`: by a person's Ctrl-C."""
        super().__init__(step)
        self.step, self.interrupted = step, interrupted
