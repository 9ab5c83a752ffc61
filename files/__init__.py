"""Tables and files through a bundle, without a server.

    from dragoman.files import TableModel

    model = TableModel("models/dates/1", input_column="text")
    table = model(table)

`TableModel` is loaded when it is first asked for: it needs the extra `files`.
"""

import importlib

__all__ = ["TableModel"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dragoman.files.table_model import TableModel
else:

    def __getattr__(name):
        if name in __all__:
            return importlib.import_module("dragoman.files.table_model").TableModel
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
