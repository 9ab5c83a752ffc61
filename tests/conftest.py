"""What holds for every test."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Models of tests gain nothing from a second thread, and lose much by it where other work runs beside them."""
    if "torch" in sys.modules:  # a test of the server must not be the one to import it
        sys.modules["torch"].set_num_threads(1)
