"""ONNX Runtime under the engine: sessions shared by all lanes, and one lane's rows bound to them.

`Backend` holds a bundle's sessions. `Rows` is what a lane drives: start inputs in rows, move a row, run one
step over the first B rows. Nothing here knows of requests, queues or threads.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from server.arena import Arena
from server.bundle import Bundle
from server.errors import BundleError, ProviderUnavailable
from server.prefix_cache import BLOCK_TOKENS, PrefixCache
from server.prompts import PromptReader

__all__ = ["Backend", "Rows"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MAX_PADDING_SHARE = 0.25


class Backend:
    """A bundle's graphs, loaded. Sessions may be run from several threads at once.

    Attributes:
        bundle: where the graphs come from.
        sessions: by graph name, those that are run.
        prefix_cache: what all rows share of prompts; keeps nothing unless `with_prefix_cache` made this backend.
    """

    def __init__(
        self, bundle: Bundle, sessions: dict[str, ort.InferenceSession], *, prefix_cache_bytes: int = 0
    ) -> None:
        self.bundle = bundle
        self.sessions = sessions
        dims = bundle.manifest.dimensions
        self.prefix_cache = PrefixCache(
            prefix_cache_bytes if self.reuses_prefixes else 0,
            (2 * dims.num_decoder_layers, dims.num_kv_heads, BLOCK_TOKENS, dims.head_size),
        )

    @property
    def reuses_prefixes(self) -> bool:
        """Whether the bundle can go on from a cached prefix; those without `extend` cannot."""
        return "extend" in self.sessions

    @classmethod
    def load(cls, bundle: Bundle, *, provider: str, num_threads: int) -> Self:
        """Load every graph for `provider`, with `num_threads` threads inside each operator.

        Raises:
            ProviderUnavailable: ONNX Runtime does not offer the provider, or cannot start it here.
            BundleError: a graph cannot be loaded.
        """
        wanted = _PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            offered = ", ".join(ort.get_available_providers())
            raise ProviderUnavailable(
                f"provider {provider!r} needs {wanted}; this onnxruntime offers {offered}"
            )
        if provider == "cuda":
            ort.preload_dlls()  # CUDA from pip's wheels lies where the system's loader does not look
        options = _session_options(num_threads)
        sessions = {}
        for name in _graphs_run(bundle):
            path = bundle.graph_path(name)
            try:
                sessions[name] = ort.InferenceSession(str(path), options, providers=[wanted])
            except Exception as error:  # onnxruntime raises bare exceptions of its own
                raise BundleError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
            # Where CUDA cannot start, ONNX Runtime says so in its log and goes on with the CPU.
            if wanted not in sessions[name].get_providers():
                raise ProviderUnavailable(f"provider {provider!r}: {wanted} could not be started here")
        return cls(bundle, sessions)

    def with_prefix_cache(self, max_bytes: int) -> "Backend":
        """The same sessions with a fresh prefix cache of at most `max_bytes`."""
        return Backend(self.bundle, self.sessions, prefix_cache_bytes=max_bytes)

    def rows(self, num_rows: int) -> "Rows":
        """A fresh arena of `num_rows` rows bound to these graphs, for the use of one thread at a time."""
        return Rows(self, num_rows)


def _graphs_run(bundle: Bundle) -> list[str]:
    """All of a bundle's graphs but `prefill` where `extend` does its work: it stays for older servers."""
    names = list(bundle.manifest.graphs)
    return [name for name in names if name != "prefill" or "extend" not in names]


def _session_options(num_threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A lane that waits for requests must not burn the core that another lane computes on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The fused kernel takes four times as long as Add and LayerNormalization on CPUs.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    return options


class Rows:
    """An arena and the graphs over it."""

    def __init__(self, backend: Backend, num_rows: int) -> None:
        self._manifest = backend.bundle.manifest
        self._sessions = backend.sessions
        self.arena = Arena(self._manifest, num_rows)
        self._log_probabilities: NDArray[np.float32] = np.zeros(
            (num_rows, self._manifest.dimensions.vocabulary_size), np.float32
        )
        self._bindings: dict[int, ort.IOBinding] = {}
        self._prefix_cache = backend.prefix_cache
        self._prompts: PromptReader | None = None
        if backend.reuses_prefixes:
            graph = self._manifest.graphs["extend"]
            self._prompts = PromptReader(self._sessions["extend"], graph, self.arena, backend.prefix_cache)
        self._begin = (
            self._begin_translations if self._manifest.task == "translation" else self._begin_prompts
        )
        self.first_graph = "encode" if self._manifest.task == "translation" else "prefill"

    def start(self, rows: Sequence[int], inputs: Sequence[Sequence[int]]) -> None:
        """Put inputs (token ids, special tokens included) into rows, ready for `decode`.

        Prompts are read one by one, from where the prefix cache leaves off. Sources, and prompts of bundles without
        `extend`, share a run with those of similar length; no more than a quarter of it is padding.
        """
        if self._prompts is not None:
            for row, prompt in zip(rows, inputs, strict=True):
                self._begin_prompt(self._prompts, row, prompt)
            return
        order = sorted(range(len(rows)), key=lambda i: len(inputs[i]))
        while order:
            longest = len(inputs[order[-1]])
            batch = [i for i in order if len(inputs[i]) >= longest * (1 - _MAX_PADDING_SHARE)]
            del order[-len(batch) :]
            self._begin([rows[i] for i in batch], [inputs[i] for i in batch])

    def copy(self, source: int, target: int) -> None:
        """Copy the state of row `source` to row `target`."""
        self.arena.copy(source, target)

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what rows have decoded to rows that were started with the same input; none is both."""
        self.arena.fork(sources, targets)

    def align(self, source_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Where in its source each output token looks, the heads' mean of one decoder layer.

        Each output has a run of its own, so that none depends on the length of another.

        Returns:
            For each output (T + 1, S), the end of sequence last; each row sums to 1.
        """
        special = self._manifest.special_tokens
        source, length = _padded([source_ids], special.padding)
        return [
            self._run(
                "align",
                {
                    "source_ids": source,
                    "source_lengths": length,
                    "target_ids": np.array([[special.begin, *output]], np.int64),
                },
            )["attention"][0]
            for output in outputs
        ]

    def decode(self, num_rows: int) -> NDArray[np.float32]:
        """Feed `arena.token_ids` of the first `num_rows` rows; every row's length grows by one.

        Returns:
            Log-probabilities of the next token, (num_rows, V): a view that the next call overwrites.
        """
        binding = self._bindings.get(num_rows)
        if binding is None:
            binding = self._bindings[num_rows] = self._bind(num_rows)
        self._sessions["decode"].run_with_iobinding(binding)
        self.arena.lengths[:num_rows] += 1
        return self._log_probabilities[:num_rows]

    def _bind(self, num_rows: int) -> ort.IOBinding:
        arena, binding = self.arena, self._sessions["decode"].io_binding()
        arrays: dict[str, NDArray[np.generic]] = {
            "token_ids": arena.token_ids,
            "lengths": arena.lengths,
            "source_lengths": arena.source_lengths,
            "log_probabilities": self._log_probabilities,
            **arena.caches,
        }
        values = {name: ort.OrtValue.ortvalue_from_numpy(array[:num_rows]) for name, array in arrays.items()}
        graph = self._manifest.graphs["decode"]
        for name in graph.inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in graph.outputs:
            # new_key_0 is key_0: the same memory, so the operator appends in place.
            binding.bind_ortvalue_output(name, values[name.removeprefix("new_")])
        return binding

    def _begin_translations(self, rows: list[int], sources: list[Sequence[int]]) -> None:
        source_ids, lengths = _padded(sources, self._manifest.special_tokens.padding)
        outputs = self._run("encode", {"source_ids": source_ids, "source_lengths": lengths})
        self._keep(rows, lengths, outputs)
        self.arena.source_lengths[rows] = lengths
        self.arena.lengths[rows] = 0
        self.arena.token_ids[rows] = self._manifest.special_tokens.begin

    # The last token of a prompt goes through the first decode step, so that all tokens are chosen there.

    def _begin_prompt(self, reader: PromptReader, row: int, prompt: Sequence[int]) -> None:
        num_reused = reader.read(row, prompt[:-1])
        self._prefix_cache.count(num_reused=num_reused, num_computed=len(prompt) - num_reused)
        self.arena.lengths[row] = len(prompt) - 1
        self.arena.token_ids[row] = prompt[-1]

    def _begin_prompts(self, rows: list[int], prompts: list[Sequence[int]]) -> None:
        token_ids, lengths = _padded(
            [prompt[:-1] for prompt in prompts], self._manifest.special_tokens.padding
        )
        outputs = self._run("prefill", {"token_ids": token_ids}) if token_ids.size else {}
        self._keep(rows, lengths, outputs)
        self.arena.lengths[rows] = lengths
        self.arena.token_ids[rows] = [prompt[-1] for prompt in prompts]
        self._prefix_cache.count(num_reused=0, num_computed=sum(map(len, prompts)))

    def _keep(
        self, rows: list[int], lengths: NDArray[np.int32], outputs: dict[str, NDArray[np.float32]]
    ) -> None:
        """Copy what the first graph computed for each input to its row, without the padding."""
        for name, output in outputs.items():
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                self.arena.keep(row, name, output[index], int(length))

    def _run(
        self, graph: str, inputs: dict[str, NDArray[np.int64] | NDArray[np.int32]]
    ) -> dict[str, NDArray[np.float32]]:
        return dict(
            zip(self._manifest.graphs[graph].outputs, self._sessions[graph].run(None, inputs), strict=True)
        )


def _padded(sequences: Sequence[Sequence[int]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Ids (B, longest), padded to the right, and lengths (B)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    padded = np.full((len(sequences), int(lengths.max())), padding, np.int64)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, lengths
