"""Everything that generates: Dragoman's engine in process, and each peer in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.serving.dragoman_systems import EngineCallers, num_tokens, repeat
from benchmarks.serving.peers import PEERS_FOLDER, PeerWorker
from benchmarks.serving.systems import Answers, Reading, Setting, System, Workload

from dragoman.server.bundle.manifest import Precision
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.execution.backend import Backend

__all__ = ["CTranslate2Generator", "DragomanGenerator", "Generator", "OnnxRuntimeGenai", "Transformers"]


class Generator(System, Protocol):
    """A system whose answers can be looked at."""

    def decode(self, workload: Workload) -> Answers:
        """Decode once, for the answers."""


class DragomanGenerator:
    """The engine that serves, without its prefix cache: the same prompts come back in every turn."""

    name = "dragoman"

    def __init__(self, bundle: Bundle, num_cores: int) -> None:
        self._bundle, self._num_cores = bundle, num_cores
        self.precision: str = bundle.manifest.precision
        self._callers = EngineCallers()
        self._backend: Backend | None = None
        self._num_threads = 0

    def settings(self, workload: Workload) -> list[Setting]:
        num_inputs = len(workload.inputs)
        return [
            {"lanes": lanes, "threads_per_lane": threads, "slots_per_lane": -(-num_inputs // lanes)}
            for lanes, threads in _ways_to_share(self._num_cores, num_inputs)
        ]

    def prepare(self, setting: Setting) -> None:
        threads = int(setting["threads_per_lane"])
        if self._backend is None or threads != self._num_threads:
            self._backend = Backend.load(self._bundle, provider="cpu", num_threads=threads)
            self._num_threads = threads
        settings = EngineSettings.model_validate(
            {**setting, "prefix_cache_bytes": 0, "max_waiting": 1_000_000}
        )
        self._callers.open(self._backend, settings)

    def run(self, workload: Workload, turn_s: float) -> Reading:
        parameters = _parameters(workload)
        return repeat(lambda: num_tokens(self._callers.ask(workload.inputs, parameters)), turn_s)

    def decode(self, workload: Workload) -> Answers:
        answers = [each.best for each in self._callers.ask(workload.inputs, _parameters(workload))]
        token_ids = [list(answer.token_ids) for answer in answers]
        return Answers(token_ids, [answer.log_probability for answer in answers])

    def close(self) -> None:
        self._callers.close()


class _PeerGenerator:
    """A worker in the peers' environment that knows the requests `load` and `decode`."""

    name: str
    _script: str

    def __init__(self, python: Path, precision: Precision, num_cores: int, model: Mapping[str, Any]) -> None:
        """`model` is what `load` takes beside the setting."""
        self._worker = PeerWorker(python, PEERS_FOLDER / self._script)
        self.precision: str = precision
        self._num_cores, self._model = num_cores, model
        self._loaded: Setting = {}

    def prepare(self, setting: Setting) -> None:
        if setting != self._loaded:
            self._worker.ask("load", **self._model, **setting)
            self._loaded = setting

    def run(self, workload: Workload, turn_s: float) -> Reading:
        answer = self._ask(workload, turn_s)
        return Reading(answer["seconds"], answer["num_tokens"])

    def decode(self, workload: Workload) -> Answers:
        answer = self._ask(workload, 0.0, answers=True)
        return Answers(answer["token_ids"], answer["log_probabilities"])

    def close(self) -> None:
        self._worker.close()

    def _ask(self, workload: Workload, turn_s: float, *, answers: bool = False) -> dict[str, Any]:
        assert workload.forced, "peers are asked for answers of one length"
        return self._worker.ask(
            "decode", inputs=workload.inputs, num_tokens=workload.max_tokens, turn_s=turn_s, answers=answers
        )


class CTranslate2Generator(_PeerGenerator):
    """`Generator.generate_batch`, whose workers share a batch out among them."""

    name = "CTranslate2"
    _script = "ctranslate2_generator_worker.py"

    def settings(self, workload: Workload) -> list[Setting]:
        num_inputs = len(workload.inputs)
        return [
            {"inter_threads": workers, "intra_threads": threads, "max_batch_size": -(-num_inputs // workers)}
            for workers, threads in _ways_to_share(self._num_cores, num_inputs)
        ]


class OnnxRuntimeGenai(_PeerGenerator):
    """`Generator` with the inputs as one batch, and the threads in each of its products."""

    name = "onnxruntime-genai"
    _script = "genai_worker.py"

    def settings(self, workload: Workload) -> list[Setting]:  # noqa: ARG002  the same for all
        return [{"threads": threads} for threads in dict.fromkeys([self._num_cores, 1])]


class Transformers(_PeerGenerator):
    """`GPT2LMHeadModel.generate`: one batch, all threads in each of its products."""

    name = "transformers"
    _script = "transformers_worker.py"

    def settings(self, workload: Workload) -> list[Setting]:
        # One input may gain more from having no barriers than from a second core.
        counts = [self._num_cores] if len(workload.inputs) > 1 else [self._num_cores, 1]
        return [{"threads": threads} for threads in dict.fromkeys(counts)]


def _ways_to_share(num_cores: int, num_inputs: int) -> list[tuple[int, int]]:
    """(decoding loops, threads in each): a loop for each core where there is work for it, or one with all cores."""
    loops = min(num_cores, num_inputs)
    return list(dict.fromkeys([(loops, 1), (1, num_cores)]))


def _parameters(workload: Workload) -> DecodingParameters:
    return DecodingParameters(max_tokens=workload.max_tokens, min_tokens=workload.min_tokens)
