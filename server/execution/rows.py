"""What a lane drives: rows of an arena, and the graphs bound to them.

Start inputs in rows, move a row, run one step over the first B rows. Nothing here knows of requests, queues or
threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman.server.bundle.graph_names import MEASURED_GRAPHS, step_name, steps_per_run
from dragoman.server.bundle.manifest import Manifest
from dragoman.server.decoding.candidates import Predictions, best_of_rows
from dragoman.server.execution.arena import Arena, Buffer
from dragoman.server.execution.prefix_cache import PrefixCache
from dragoman.server.execution.prompts import PromptReader
from dragoman.server.execution.sources import MAX_RUN_TOKENS, Encoded, Source, padded, runs_of

__all__ = ["GraphInputs", "Rows"]

_BEST_STEP = 4
"""Each number of best tokens is bound by itself; a step's time grows with it, 8 to 16 by an eighth."""
GraphInputs = dict[str, NDArray[np.int64] | NDArray[np.int32]]


@dataclass(slots=True)
class _BoundStep:
    """A graph bound to so many rows and, where it tells the best tokens, to where it puts so many of them."""

    binding: ort.IOBinding
    num_best: NDArray[np.int64] | None = None
    best: NDArray[np.float32] | None = None
    best_token_ids: NDArray[np.int64] | None = None


class Rows:
    """An arena and the graphs over it, for the use of one thread at a time.

    Attributes:
        arena: the rows' state.
        first_graph: the one that starts inputs, as metrics call it.
        steps_per_run: steps that a run of `decode_steps` takes; 0: the bundle has no such graph.
        encodes_ahead: whether inputs can be encoded before they have a row.
    """

    _max_padding_share = 0.25

    def __init__(
        self,
        manifest: Manifest,
        sessions: Mapping[str, ort.InferenceSession],
        arena: Arena,
        prefix_cache: PrefixCache,
    ) -> None:
        self._manifest = manifest
        self._sessions = sessions
        self.arena = arena
        self._log_probabilities: NDArray[np.float32] = np.zeros(
            (arena.num_rows, manifest.dimensions.vocabulary_size), np.float32
        )
        self._needs_all: NDArray[np.int64] = np.ones(1, np.int64)
        self._has_no_text: NDArray[np.bool_] = np.zeros(manifest.dimensions.vocabulary_size, np.bool_)
        self._has_no_text[list(manifest.special_tokens.without_text)] = True
        self._steps: dict[tuple[str, int, int], _BoundStep] = {}
        self.steps_per_run = _steps_per_run(manifest)
        self._chosen: NDArray[np.int64] = np.zeros((self.steps_per_run, arena.num_rows), np.int64)
        self._scores: NDArray[np.float32] = np.zeros((self.steps_per_run, arena.num_rows), np.float32)
        self._prefix_cache = prefix_cache
        self._prompts: PromptReader | None = None
        if "extend" in sessions:
            self._prompts = PromptReader(sessions["extend"], manifest.graphs["extend"], arena, prefix_cache)
        self.encodes_ahead = self._prompts is None
        self.first_graph = MEASURED_GRAPHS[manifest.task][0]

    def start(self, rows: Sequence[int], sources: Sequence[Source], ahead: Sequence[Source] = ()) -> int:
        """Put inputs into rows, ready for `decode`.

        Prompts are read one by one, from where the prefix cache leaves off. Sources, and prompts of bundles without
        `extend`, share a run with those of similar length: at most a quarter of it, or eight tokens each, is padding.
        Those of `ahead` that fit into such a run are encoded in it as well, and keep what was made of them.

        Returns:
            How many were read.
        """
        if self._prompts is not None:
            for row, source in zip(rows, sources, strict=True):
                self._begin_prompt(self._prompts, row, source.token_ids)
            return len(rows)
        num_read = self._encode([source for source in sources if source.encoded is None], ahead)
        together: dict[int, list[tuple[Encoded, int, Source]]] = {}
        for row, source in zip(rows, sources, strict=True):
            encoded, source.encoded = source.encoded, None
            assert encoded is not None
            together.setdefault(id(encoded.computed), []).append((encoded, row, source))
        for group in together.values():
            self._begin(sorted(group, key=lambda each: each[0].place))
        return num_read

    def _encode(self, sources: Sequence[Source], ahead: Sequence[Source]) -> int:
        """Encode all of `sources`, and those of `ahead` that fit in. Returns how many were encoded."""
        num_encoded = 0
        for batch in runs_of(sources, ahead, self._max_padding_share):
            computed = self._compute([source.token_ids for source in batch])
            for place, source in enumerate(batch):
                source.encoded = Encoded(computed, place)
            num_encoded += len(batch)
        return num_encoded

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the whole state of rows `sources`, one for each target, to rows `targets`; none is both."""
        self.arena.copy(sources, targets)

    def fork(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what rows have decoded to rows that were started with the same input; none is both."""
        self.arena.fork(sources, targets)

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
                found |= zip(together, self._run("align", run)["attention"], strict=True)
        return [found[place] for place in range(len(targets))]

    def decode(self, num_rows: int, num_best: int = 1, *, needs_all: bool = True) -> Predictions:
        """Feed `arena.token_ids` of the first `num_rows` rows; every row's length grows by one.

        Returns:
            What the next token may be, with at least `num_best` of the best of each row, if there are so many with a
            text: views that the next call overwrites. Unless `needs_all`, the others' log-probabilities may be
            anything.
        """
        # With room for the tokens without a text, but for greedy rows, whose best token hardly ever is one of them.
        num_told = num_best + (int(self._has_no_text.sum()) if num_best > 1 else 0)
        num_told = min(self._rounded(num_told), self._log_probabilities.shape[1])
        predictions = self._predict(num_rows, num_told, needs_all=needs_all)
        if self._has_no_text[predictions.token_ids].any():
            predictions = self._with_text(predictions, num_best)
        self.arena.lengths[:num_rows] += 1
        return predictions

    def _rounded(self, num_best: int) -> int:
        """One of few numbers, not much larger: what is bound to so many rows and so many best stays bound."""
        return num_best if num_best <= 2 else -(-num_best // _BEST_STEP) * _BEST_STEP

    def _with_text(self, predictions: Predictions, num_best: int) -> Predictions:
        """The same with the `num_best` best tokens that have a text; what stands for no text is never chosen."""
        has_no_text = self._has_no_text[predictions.token_ids]
        order = has_no_text.argsort(axis=1, kind="stable")[:, :num_best]
        best = np.take_along_axis(predictions.best, order, axis=1)
        token_ids = np.take_along_axis(predictions.token_ids, order, axis=1)
        lacking = np.flatnonzero((~has_no_text).sum(axis=1) < order.shape[1])
        if lacking.size:
            # The same step again, which writes the same keys and values in the same places, to see all tokens.
            num_rows, num_told = predictions.token_ids.shape
            predictions = self._predict(num_rows, num_told, needs_all=True)
            rows = np.where(self._has_no_text, np.float32(-np.inf), predictions.log_probabilities[lacking])
            best[lacking], token_ids[lacking] = best_of_rows(rows, order.shape[1])
        return Predictions(predictions.log_probabilities, best, token_ids)

    def has_room_for_steps(self, num_rows: int) -> bool:
        """Whether the first `num_rows` rows can take all steps of `decode_steps` before one of them is full."""
        if not self.steps_per_run:
            return False
        longest = int(self.arena.lengths[:num_rows].max())
        return longest + self.steps_per_run <= self._manifest.limits.max_context_tokens

    def decode_steps(self, num_rows: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Feed `arena.token_ids` of the first `num_rows` rows, then what they chose: the most probable token each time.

        Afterwards `arena.token_ids` has the last ones. Nothing checks whether a row should have ended on the way.

        Returns:
            Token ids and their log-probabilities, (steps_per_run, num_rows): views that the next call overwrites. None
            where a token without a text was the most probable one before its row's end: then no step was taken.
        """
        self._run_bound("decode_steps", num_rows)
        has_no_text = self._has_no_text[self._chosen[:, :num_rows]]
        if has_no_text.any():
            ended = np.logical_or.accumulate(
                self._chosen[:, :num_rows] == self._manifest.special_tokens.end, axis=0
            )
            if (has_no_text & ~ended).any():
                return None
        self.arena.lengths[:num_rows] += self.steps_per_run
        self.arena.token_ids[:num_rows] = self._chosen[-1, :num_rows]
        return self._chosen[:, :num_rows], self._scores[:, :num_rows]

    def _predict(self, num_rows: int, num_best: int, *, needs_all: bool) -> Predictions:
        """Run `decode` as the arena is."""
        self._needs_all[0] = needs_all
        step = self._run_bound("decode", num_rows, num_best)
        log_probabilities = self._log_probabilities[:num_rows]
        if step.best is None or step.best_token_ids is None:
            return Predictions(log_probabilities, *best_of_rows(log_probabilities, num_best))
        return Predictions(log_probabilities, step.best, step.best_token_ids)

    def _run_bound(self, graph: str, num_rows: int, num_best: int = 1) -> _BoundStep:
        step = self._steps.get((graph, num_rows, num_best))
        if step is None:
            step = self._steps[graph, num_rows, num_best] = self._bind(graph, num_rows, num_best)
        self._sessions[graph].run_with_iobinding(step.binding)
        return step

    def _bind(self, graph: str, num_rows: int, num_best: int) -> _BoundStep:
        record, binding = self._manifest.graphs[graph], self._sessions[graph].io_binding()
        self.arena.bind_step(binding, record, num_rows)
        step = _BoundStep(binding)
        if graph == "decode":
            binding.bind_output("log_probabilities", *Buffer.of(self._log_probabilities).rows(0, num_rows))
            if "num_best" in record.inputs:
                step.best = np.zeros((num_rows, num_best), np.float32)
                step.best_token_ids = np.zeros((num_rows, num_best), np.int64)
                step.num_best = np.array([num_best])
                binding.bind_input("num_best", *Buffer.of(step.num_best).rows(0, 1))
                binding.bind_input("needs_all", *Buffer.of(self._needs_all).rows(0, 1))
                binding.bind_output("best", *Buffer.of(step.best).rows(0, num_rows))
                binding.bind_output("best_token_ids", *Buffer.of(step.best_token_ids).rows(0, num_rows))
        else:
            for index, (chosen, scores) in enumerate(zip(self._chosen, self._scores, strict=True)):
                binding.bind_output(step_name(index, "token_ids"), *Buffer.of(chosen).rows(0, num_rows))
                binding.bind_output(
                    step_name(index, "log_probabilities"), *Buffer.of(scores).rows(0, num_rows)
                )
        return step

    def _begin(self, group: Sequence[tuple[Encoded, int, Source]]) -> None:
        """Put inputs that were encoded in one run into rows."""
        encoded, rows, sources = zip(*group, strict=True)
        # The last token of a prompt goes through the first decode step, so that all tokens are chosen there.
        has_source = self._manifest.facts.has_source
        lengths = [len(source.token_ids) - (not has_source) for source in sources]
        if computed := encoded[0].computed:
            self.arena.keep(rows, lengths, computed, [each.place for each in encoded])
        index = list(rows)
        if has_source:
            self.arena.source_lengths[index] = lengths
            self.arena.lengths[index] = 0
            self.arena.token_ids[index] = self._manifest.special_tokens.begin
        else:
            self.arena.lengths[index] = lengths
            self.arena.token_ids[index] = [source.token_ids[-1] for source in sources]
            self._prefix_cache.count(num_reused=0, num_computed=sum(lengths) + len(lengths))

    def _begin_prompt(self, reader: PromptReader, row: int, prompt: Sequence[int]) -> None:
        num_reused = reader.read(row, prompt[:-1])
        self._prefix_cache.count(num_reused=num_reused, num_computed=len(prompt) - num_reused)
        self.arena.lengths[row] = len(prompt) - 1
        self.arena.token_ids[row] = prompt[-1]

    def _compute(self, inputs: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        """Read inputs in one run: keys and values of each by name, (inputs, ...); none of prompts of one token."""
        padding = self._manifest.special_tokens.padding
        if self._manifest.facts.has_source:
            source_ids, lengths = padded(inputs, padding)
            return self._run_reading("encode", {"source_ids": source_ids, "source_lengths": lengths})
        token_ids, _ = padded([prompt[:-1] for prompt in inputs], padding)
        return self._run_reading("prefill", {"token_ids": token_ids}) if token_ids.size else {}

    def _run_reading(self, graph: str, inputs: GraphInputs) -> Mapping[str, Any]:
        """Run a graph that reads inputs, its outputs where the caches are."""
        return self._run(graph, inputs)

    def _run(self, graph: str, inputs: GraphInputs) -> dict[str, NDArray[np.float32]]:
        return dict(
            zip(self._manifest.graphs[graph].outputs, self._sessions[graph].run(None, inputs), strict=True)
        )


def _steps_per_run(manifest: Manifest) -> int:
    graph = manifest.graphs.get("decode_steps")
    return steps_per_run(graph.outputs) if graph else 0
