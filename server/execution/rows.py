"""The rows that a lane drives, and the graphs over them.

Start inputs in rows, move a row, run one step over the first B rows. Nothing here knows of requests, queues or
threads.
"""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import LAST, MEASURED_GRAPHS, OWN, CacheKind
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.execution.cache_memory import CacheMemory, GraphInputs
from dragoman.server.execution.encoding import MAX_RUN_TOKENS, Encoded, Encoder, ModelInput, padded
from dragoman.server.execution.prefix_cache import PrefixCache
from dragoman.server.execution.prompts import ChunkedPrefill
from dragoman.server.execution.slots import Slots
from dragoman.server.execution.steps import MultiStepRunner, StepRunner

__all__ = ["Rows"]

_MAX_PADDING_SHARE = 0.25


class Rows:
    """Slots, the memory of their keys and values, and the graphs over both, for the use of one thread at a time.

    Args:
        manifest: of the bundle.
        sessions: of its graphs.
        slots: the rows' token ids and lengths.
        memory: the rows' keys and values.
        step: runs one step of them.
        multi_step: runs several greedy steps at once, if the bundle can.
        prefix_cache: of prompts.
        turn: is held during each call.
        max_padding_share: of the longest input of a run that encodes several.
        encodes_ahead: whether inputs may be encoded before they have a row.

    Attributes:
        slots: the rows' token ids and lengths.
        memory: the rows' keys and values.
        start_graph: the graph that runs when inputs start, as metrics call it.
        steps_per_run: steps that a run of `decode_steps` takes; 0: the bundle has no such graph.
        encodes_ahead: whether inputs can be encoded before they have a row.
    """

    def __init__(
        self,
        manifest: Manifest,
        sessions: Mapping[str, ort.InferenceSession],
        *,
        slots: Slots,
        memory: CacheMemory,
        step: StepRunner,
        multi_step: MultiStepRunner | None,
        prefix_cache: PrefixCache,
        turn: contextlib.AbstractContextManager[object] | None = None,
        max_padding_share: float = _MAX_PADDING_SHARE,
        encodes_ahead: bool = True,
    ) -> None:
        self.slots = slots
        self.memory = memory
        self.start_graph = MEASURED_GRAPHS[manifest.task][0]
        self.steps_per_run = multi_step.steps_per_run if multi_step else 0
        self._manifest = manifest
        self._sessions = sessions
        self._step = step
        self._multi_step = multi_step
        self._prefix_cache = prefix_cache
        self._turn = turn or contextlib.nullcontext()
        self._encoder = Encoder(manifest, sessions, memory, max_padding_share)
        self._chunked_prefill: ChunkedPrefill | None = None
        if "extend" in sessions:
            graph = manifest.graphs["extend"]
            self._chunked_prefill = ChunkedPrefill(sessions["extend"], graph, memory, prefix_cache)
        self.encodes_ahead = encodes_ahead and self._chunked_prefill is None
        self._vocabulary_size = manifest.dimensions.vocabulary_size
        self._has_no_text: NDArray[np.bool_] = np.zeros(self._vocabulary_size, np.bool_)
        self._has_no_text[list(manifest.special_tokens.without_text)] = True

    def start(
        self, rows: Sequence[int], inputs: Sequence[ModelInput], ahead: Sequence[ModelInput] = ()
    ) -> int:
        """Put inputs into rows, ready for `decode`.

        Prompts are prefilled one by one, from where the prefix cache leaves off. Sources, and prompts of bundles
        without `extend`, share a run with those of similar length: at most a quarter of it, or eight tokens each, is
        padding; on a device all share a run. Inputs of `ahead` that fit into such a run are encoded in it as well, and
        keep their keys and values; where `encodes_ahead` is False they are left.

        Returns:
            How many were encoded or prefilled.
        """
        with self._turn:
            if self._chunked_prefill is not None:
                for row, each in zip(rows, inputs, strict=True):
                    self._prefill(self._chunked_prefill, row, each.token_ids)
                return len(rows)
            num_encoded = self._encoder.encode(
                [each for each in inputs if each.encoded is None], ahead if self.encodes_ahead else ()
            )
            together: dict[int, list[tuple[Encoded, int, ModelInput]]] = {}
            for row, each in zip(rows, inputs, strict=True):
                encoded, each.encoded = each.encoded, None
                assert encoded is not None
                together.setdefault(id(encoded.outputs), []).append((encoded, row, each))
            for group in together.values():
                self._begin(sorted(group, key=lambda member: member[0].position))
            return num_encoded

    def extend(self, row: int, num_tokens: int, block: Sequence[int]) -> None:
        """Append the keys and values of one block of a prompt to `row`, which holds `num_tokens` tokens.

        The slot stays as it is. Only for bundles with the graph `extend`.
        """
        assert self._chunked_prefill is not None
        with self._turn:
            self._chunked_prefill.extend(row, num_tokens, block)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the whole state of rows `sources`, one for each target, to rows `targets`; none is both."""
        with self._turn:
            self.slots.copy(sources, targets)
            for kind in self.memory.layout.names:
                self._copy_caches(kind, sources, targets)

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what rows have decoded to rows that were started with the same input; none is both."""
        with self._turn:
            self.slots.fork(sources, targets)
            self._copy_caches(OWN, sources, targets)

    def align(self, source_ids: Sequence[int], outputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Where in its source each output token looks, the heads' mean of one decoder layer.

        Outputs of one length share a run: a search may finish hundreds of them in one step. None depends on the length
        of another.

        Returns:
            For each output (T + 1, S), the end of sequence last, which an output of full length lacks; each row
            sums to 1.
        """
        special, longest = self._manifest.special_tokens, self._manifest.limits.max_output_tokens
        # Behind an answer of full length no end of sequence comes, and no position.
        targets = [[special.begin, *output][:longest] for output in outputs]
        alike: dict[int, list[int]] = {}
        for place, target in enumerate(targets):
            alike.setdefault(len(target), []).append(place)
        found: dict[int, NDArray[np.float32]] = {}
        for length, places in alike.items():
            most = max(1, MAX_RUN_TOKENS // (length + len(source_ids)))
            for start in range(0, len(places), most):
                together = places[start : start + most]
                source, lengths = padded([source_ids] * len(together), special.padding)
                target_ids = np.array([targets[place] for place in together], np.int64)
                run: GraphInputs = {"source_ids": source, "source_lengths": lengths, "target_ids": target_ids}
                with self._turn:
                    found |= zip(together, self._align(run), strict=True)
        return [found[place] for place in range(len(targets))]

    def decode(self, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        """Feed the tokens of the first `num_rows` rows; every row's length grows by one.

        Returns:
            What the next token may be, with at least `num_best` of the best of each row, if there are so many with a
            text: views that the next call overwrites. Unless `needs_all`, the others' log-probabilities may be
            anything.
        """
        # With room for the tokens without a text, but for greedy rows, whose best token hardly ever is one of them.
        num_candidates = num_best + (int(self._has_no_text.sum()) if num_best > 1 else 0)
        num_candidates = min(self._step.rounded(num_candidates), self._vocabulary_size)
        with self._turn:
            predictions = self._step.run(num_rows, num_candidates, needs_all=needs_all)
            if self._has_no_text[predictions.token_ids].any():
                predictions = self._with_text(predictions, num_best)
            self.slots.advance(num_rows)
        return predictions

    def _with_text(self, predictions: Predictions, num_best: int) -> Predictions:
        """The same with the `num_best` best tokens that have a text; what stands for no text is never chosen."""
        has_no_text = self._has_no_text[predictions.token_ids]
        order = has_no_text.argsort(axis=1, kind="stable")[:, :num_best]
        best = np.take_along_axis(predictions.best, order, axis=1)
        token_ids = np.take_along_axis(predictions.token_ids, order, axis=1)
        lacking = np.flatnonzero((~has_no_text).sum(axis=1) < order.shape[1])
        if lacking.size:
            # The same step again, which writes the same keys and values in the same places, to see all tokens.
            num_rows, num_candidates = predictions.token_ids.shape
            predictions = self._step.run(num_rows, num_candidates, needs_all=True)
            rows = np.where(self._has_no_text, np.float32(-np.inf), predictions.log_probabilities[lacking])
            best[lacking], token_ids[lacking] = best_of_rows(rows, order.shape[1])
        return Predictions(predictions.log_probabilities, best, token_ids)

    def has_room_for_steps(self, num_rows: int) -> bool:
        """Whether the first `num_rows` rows can take all steps of `decode_steps` before one of them is full."""
        if not self.steps_per_run:
            return False
        return (
            self.slots.max_tokens(num_rows) + self.steps_per_run <= self._manifest.limits.max_context_tokens
        )

    def decode_steps(self, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Feed the tokens of the first `num_rows` rows, then what they chose: the most probable token each time.

        Afterwards the rows feed the last ones. Nothing checks whether a row should have ended on the way.

        Returns:
            Token ids and their log-probabilities, (steps_per_run, num_rows): views that the next call overwrites. None
            where a token without a text was the most probable one before its row's end: then no step was taken.
        """
        assert self._multi_step is not None
        token_ids, log_probabilities = self._multi_step.run(num_rows)
        has_no_text = self._has_no_text[token_ids]
        if has_no_text.any():
            ended = np.logical_or.accumulate(token_ids == self._manifest.special_tokens.end, axis=0)
            if (has_no_text & ~ended).any():
                return None
        self.slots.advance(num_rows, self.steps_per_run)
        self.slots.feed(token_ids[-1])
        return token_ids, log_probabilities

    def _begin(self, group: Sequence[tuple[Encoded, int, ModelInput]]) -> None:
        """Put inputs that were encoded in one run into rows."""
        encoded, rows, inputs = zip(*group, strict=True)
        has_source = self._manifest.facts.has_source
        lengths = [len(each.token_ids) - (not has_source) for each in inputs]
        if outputs := encoded[0].outputs:
            self.memory.store(rows, lengths, outputs, [each.position for each in encoded])
        if has_source:
            self.slots.start(rows, self._manifest.special_tokens.begin, 0, lengths)
        else:
            self.slots.start(rows, [each.token_ids[-1] for each in inputs], lengths)
            self._prefix_cache.count(num_reused=0, num_computed=sum(lengths) + len(lengths))

    def _prefill(self, chunked: ChunkedPrefill, row: int, prompt: Sequence[int]) -> None:
        num_reused = chunked.prefill(row, prompt[:-1])
        self._prefix_cache.count(num_reused=num_reused, num_computed=len(prompt) - num_reused)
        self.slots.start([row], prompt[-1], len(prompt) - 1)

    def _copy_caches(self, kind: CacheKind, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the used part of each source row's caches of `kind` to its target row."""
        if kind == LAST:
            num_tokens = [1] * len(sources)
        elif kind == OWN:
            num_tokens = self.slots.num_tokens(sources)
        else:
            num_tokens = self.slots.num_source_tokens(sources)
        self.memory.copy(kind, sources, targets, num_tokens)

    def _align(self, inputs: GraphInputs) -> NDArray[np.float32]:
        """Attention (outputs, target tokens, source tokens) of outputs of one length."""
        [attention] = self._sessions["align"].run(["attention"], inputs)
        weights: NDArray[np.float32] = attention
        return weights
