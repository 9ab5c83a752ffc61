"""The execution provider is the one asked for, or the server does not start."""

from pathlib import Path

import onnxruntime as ort
import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.errors import ProviderUnavailable
from dragoman.server.execution.backend import Backend

FIXTURES = Path(__file__).parents[1] / "fixtures"
BUNDLE = FIXTURES / "halves" / "spell" / "1"


def test_a_provider_that_this_onnxruntime_does_not_have_is_named() -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    with pytest.raises(ProviderUnavailable, match="'cuda' needs CUDAExecutionProvider"):
        Backend.load(Bundle.read(BUNDLE), provider="cuda", num_threads=1)


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA on a machine without a usable GPU claims the provider, then does without it."""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    with pytest.raises(ProviderUnavailable, match="could not be started here"):
        Backend.load(Bundle.read(BUNDLE), provider="cuda", num_threads=1)


@pytest.mark.parametrize(("bundle", "precision"), [("bundles/spell/1", "fp32"), ("bundles/spell/2", "int8")])
def test_a_bundle_that_would_run_on_the_cpu_in_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, bundle: str, precision: str
) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    with pytest.raises(
        ProviderUnavailable, match=rf"runs fp16 bundles; .*{bundle} is {precision}: export it"
    ):
        Backend.load(Bundle.read(FIXTURES / bundle), provider="cuda", num_threads=1)


def test_halves_of_before_cannot_move_rows_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    bundle = Bundle.read(BUNDLE)
    graphs = {name: graph for name, graph in bundle.manifest.graphs.items() if name != "copy_tokens"}
    old = Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(ProviderUnavailable, match=r"halves/spell/1 does not have: export it again"):
        Backend.load(old, provider="cuda", num_threads=1)
