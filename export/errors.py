"""What can go wrong between a run and a bundle.

DragomanError
└── OperationError
    └── ExportError   a graph does not answer as its model does: no bundle is written
"""

from dragoman.common.errors import OperationError

__all__ = ["ExportError"]


class ExportError(OperationError):
    """The exported graphs are not the model; nothing was written."""
