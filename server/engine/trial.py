"""Every graph of a bundle, run once at its limits before a caller's request gets there.

Golden examples are short and greedy. What they do not reach is run here: a full lane, the longest source, beams, the
last position of a context, several steps in one call, an alignment. A graph that is too small for the manifest's
limits, gives numbers that are none or does not end is a `BundleError` when the bundle is loaded.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.common.errors import DragomanError
from dragoman.server.bundle.reader import Bundle, one_line
from dragoman.server.decoding.candidates import Predictions
from dragoman.server.engine.golden import check_golden_examples
from dragoman.server.errors import BundleError
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.encoding import ModelInput
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS
from dragoman.server.execution.rows import Rows

__all__ = ["MAX_RUN_S", "check_answers"]

MAX_RUN_S = 60.0
"""One run of a graph. The longest that is right, the longest source of a large model on a slow core, takes seconds."""
_MAX_ROWS = 32
_NUM_BEST = 12
_MAX_ERROR = 1e-2
"""Of probabilities and their sums: those of fp16 and int8 are computed in single precision as well."""


def check_answers(backend: Backend, *, num_rows: int = _MAX_ROWS, max_run_s: float = MAX_RUN_S) -> None:
    """Run every graph at its limits in `num_rows` rows, 32 at most, then decode the golden examples.

    The backend knows afterwards how long the slowest run took.

    Raises:
        BundleError: a graph fails, gives no numbers, does not end within `max_run_s`, or a golden example gets
            another answer.
        ResourceUnavailable: there is no memory for the rows.
    """
    watchdog = _Watchdog(max_run_s)
    with _watched(backend, watchdog) as watched:
        _Trial(watched, min(num_rows, _MAX_ROWS)).run()
        check_golden_examples(watched)
    backend.slowest_run_s = watchdog.slowest_run_s


class _Trial:
    """The rows of one lane, driven to the limits."""

    def __init__(self, backend: Backend, num_rows: int) -> None:
        self._backend = backend
        self._bundle = backend.bundle
        self._manifest = backend.bundle.manifest
        self._rows: Rows = backend.rows(num_rows)
        self._num_rows = num_rows
        self._last_id = self._manifest.dimensions.vocabulary_size - 1
        self._ids = self._golden_ids()

    def run(self) -> None:
        """All that a lane does, at the limits."""
        limits, slots = self._manifest.limits, self._rows.slots
        if self._manifest.facts.has_source:
            self._start(limits.max_source_tokens)
        else:
            self._start_prompts(min(limits.max_source_tokens, limits.max_context_tokens - 1))
        num_with_text = self._last_id + 1 - len(set(self._manifest.special_tokens.without_text))
        num_best = min(_NUM_BEST, max(1, num_with_text))
        self._check(self._rows.decode(self._num_rows, num_best), "the first step")
        if self._num_rows > 1:
            self._rows.fork([0], [1])
            self._rows.copy([0], [1])
        slots.seek(limits.max_context_tokens - 1)
        slots.feed([self._last_id] * self._num_rows)
        self._check(self._rows.decode(self._num_rows, needs_all=False), "the last position", needs_all=False)
        slots.seek(max(0, limits.max_context_tokens - self._rows.steps_per_run))
        if self._rows.has_room_for_steps(self._num_rows) and (
            steps := self._rows.decode_steps(self._num_rows)  # None: a token without a text was chosen
        ):
            self._check_chosen("decode_steps", *steps)
        slots.seek(0)
        self._check(self._rows.decode(1, num_best), "a step of one row")
        if "align" in self._backend.sessions:
            self._align(limits.max_source_tokens, limits.max_output_tokens)

    def _golden_ids(self) -> list[int]:
        """Token ids as texts have them: numbers that a model never meets might be too large for fp16."""
        texts = [example.text for example in self._manifest.golden_examples]
        encodings = self._bundle.tokenizer.encode_batch(texts)
        return [token_id for encoding in encodings for token_id in encoding.ids] or [self._last_id]

    def _input(self, num_tokens: int) -> list[int]:
        repeated = self._ids * (num_tokens // len(self._ids) + 1)
        return repeated[:num_tokens]

    def _start(self, num_tokens: int) -> None:
        """The longest input in the first row; in the others the token with the highest id."""
        sources = [self._input(num_tokens), *[[self._last_id]] * (self._num_rows - 1)]
        self._rows.start(range(self._num_rows), [ModelInput(source) for source in sources])

    def _start_prompts(self, num_tokens: int) -> None:
        if "extend" not in self._backend.sessions:
            self._start(num_tokens)
            return
        # Of the longest prompt its first block and its last: what lies between runs the same graph.
        block = self._input(min(BLOCK_TOKENS, num_tokens))
        for row, length in ((0, 0), (self._num_rows - 1, num_tokens - len(block))):
            self._rows.extend(row, length, block)
        self._start(1)

    def _check(self, predictions: Predictions, at: str, *, needs_all: bool = True) -> None:
        self._check_chosen("decode", predictions.token_ids, predictions.best, at)
        if not needs_all:
            return
        probabilities = np.exp(predictions.log_probabilities.astype(np.float64)).sum(axis=1)
        if not (np.abs(probabilities - 1) < _MAX_ERROR).all():  # nor where one is NaN
            raise self._error("decode", f"gives probabilities at {at} whose sum is not 1")
        with_text = predictions.log_probabilities.copy()
        with_text[:, list(self._manifest.special_tokens.without_text)] = -np.inf
        if not (np.abs(predictions.best[:, 0] - with_text.max(axis=1)) < _MAX_ERROR).all():
            raise self._error("decode", f"gives best tokens at {at} that are not the most probable ones")

    def _check_chosen(
        self,
        graph: str,
        token_ids: NDArray[np.int64],
        scores: NDArray[np.float32],
        at: str = "the last position",
    ) -> None:
        if token_ids.min() < 0 or token_ids.max() > self._last_id:
            raise self._error(graph, f"gives a token at {at} that the vocabulary does not have")
        if not np.isfinite(scores).all():
            raise self._error(graph, f"gives log-probabilities at {at} that are no numbers")

    def _align(self, max_source: int, max_output: int) -> None:
        for num_source, num_output in ((max_source, 1), (1, max_output)):
            [attention] = self._rows.align(self._input(num_source), [self._input(num_output)])
            num_targets = min(num_output + 1, max_output)
            if attention.shape != (num_targets, num_source):
                raise self._error(
                    "align", f"gives {attention.shape} where {num_targets} tokens look at {num_source}"
                )
            if not (np.abs(attention.sum(axis=1) - 1) < _MAX_ERROR).all():
                raise self._error("align", "gives attention whose sum is not 1")

    def _error(self, graph: str, problem: str) -> BundleError:
        return BundleError(f"{self._bundle.graph_path(graph)}: graph {graph!r} {problem}")


@contextlib.contextmanager
def _watched(backend: Backend, watchdog: "_Watchdog") -> Iterator[Backend]:
    """The same backend, whose graphs `watchdog` ends when they run too long; what they raise is a `BundleError`."""
    sessions = {
        name: _WatchedSession(session, backend.bundle, name, watchdog)
        for name, session in backend.sessions.items()
    }
    try:
        yield Backend(backend.bundle, sessions, device=backend.device, kernels=backend.kernels)
    except DragomanError:
        raise
    except (ValueError, LookupError, RuntimeError) as error:  # the graphs' outputs do not fit together
        raise BundleError(f"{backend.bundle.path} fails at its limits: {one_line(error)}") from error
    finally:
        watchdog.close()


class _Watchdog:
    """Has ONNX Runtime end a run that takes too long: a `Loop` may never end.

    Attributes:
        slowest_run_s: of those that have ended.
    """

    def __init__(self, max_run_s: float) -> None:
        self.max_run_s = max_run_s
        self.slowest_run_s = 0.0
        self._run: tuple[ort.RunOptions, float] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trial-watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self, options: ort.RunOptions) -> Iterator[None]:
        """One run with these options."""
        begin_s = time.monotonic()
        self._run = (options, begin_s + self.max_run_s)
        try:
            yield
        finally:
            self._run = None
            self.slowest_run_s = max(self.slowest_run_s, time.monotonic() - begin_s)

    def close(self) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.max_run_s / 20):
            run = self._run
            if run is not None and time.monotonic() > run[1]:
                run[0].terminate = True


class _WatchedSession:
    """An `InferenceSession`, as far as rows use one."""

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, name: str, watchdog: _Watchdog) -> None:
        self._session = session
        self._place = f"{bundle.graph_path(name)}: graph {name!r}"
        self._watchdog = watchdog
        self.get_inputs = session.get_inputs
        self.io_binding = session.io_binding

    def run(self, output_names: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """As the session's, within the time."""
        options = _quiet_options()
        with self._named(options):
            outputs: list[Any] = self._session.run(output_names, inputs, options)
        return outputs

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
        """As the session's, within the time."""
        options = options or _quiet_options()
        with self._named(options):
            self._session.run_with_iobinding(binding, options)

    @contextlib.contextmanager
    def _named(self, options: ort.RunOptions) -> Iterator[None]:
        try:
            with self._watchdog.watching(options):
                yield
        except Exception as error:  # onnxruntime raises bare exceptions of its own
            if options.terminate:
                message = f"does not end within {self._watchdog.max_run_s:g} s"
            else:
                message = f"fails when it is run at its limits: {one_line(error)}"
            raise BundleError(f"{self._place} {message}") from error


def _quiet_options() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4  # what fails is in the exception
    return options
