"""What holds for every test."""

import sys
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Models of tests gain nothing from a second thread, and lose much by it where other work runs beside them."""
    if "torch" in sys.modules:  # a test of the server must not be the one to import it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _log_as_it_was() -> Iterator[None]:
    """A file of tests that sets up its process's log, such as one with a `Translator`, leaves none of it behind."""
    yield
    structlog.reset_defaults()
