"""Whatever chooses a sequence's tokens, made beside the lane from the sequence's parameters and the bundle."""

import weakref
from collections.abc import Sequence

from dragoman.server.decoding.beam import BeamSearch
from dragoman.server.decoding.constraints import Constraints
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.decoding.sampling import TokenChooser
from dragoman.server.decoding.stopping import StopCondition
from dragoman.server.decoding.suppression import SuppressedTexts
from dragoman.server.decoding.text import StopStrings
from dragoman.server.execution.backend import Backend

__all__ = ["Choosers"]


class Choosers:
    """Makes what chooses the tokens of a lane's sequences; for the use of one thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        manifest = backend.bundle.manifest
        self._end = manifest.special_tokens.end
        self._never = manifest.special_tokens.without_text
        self._continues = not manifest.facts.has_source
        # The sequences of a call have the same texts: what is made of them is made once, and kept while it is used.
        self._suppressed: weakref.WeakValueDictionary[tuple[str, ...], SuppressedTexts] = (
            weakref.WeakValueDictionary()
        )

    def stop_strings(self, parameters: DecodingParameters, input_ids: Sequence[int]) -> StopStrings:
        """What ends the sequence at one of its stop strings."""
        return StopStrings(
            self._backend.bundle.tokenizer, context_ids=self._context(input_ids), stop=parameters.stop
        )

    def search(
        self,
        parameters: DecodingParameters,
        input_ids: Sequence[int],
        rows: Sequence[int],
        stop: StopCondition | None,
    ) -> BeamSearch:
        """The beam search over these rows; it sees to `min_tokens` itself."""
        constraints = self._constraints(parameters, input_ids) if parameters.is_constrained else None
        return BeamSearch(parameters, self._end, list(rows), constraints, stop)

    def chooser(self, parameters: DecodingParameters, input_ids: Sequence[int]) -> TokenChooser | None:
        """What chooses for a single row; None: the most probable token is always taken."""
        if not parameters.needs_chooser:
            return None
        return TokenChooser(parameters, self._constraints(parameters, input_ids))

    def _constraints(self, parameters: DecodingParameters, input_ids: Sequence[int]) -> Constraints:
        return Constraints(
            parameters,
            self._end,
            self._context(input_ids),
            never=self._never,
            suppressed_texts=self._suppressed_texts(parameters.suppressed_texts),
        )

    def _context(self, input_ids: Sequence[int]) -> Sequence[int]:
        """What the output goes on from: a generated text continues its prompt, a translation begins anew."""
        return input_ids if self._continues else ()

    def _suppressed_texts(self, texts: tuple[str, ...]) -> SuppressedTexts | None:
        if not texts:
            return None
        suppressed = self._suppressed.get(texts)
        if suppressed is None:
            suppressed = self._suppressed[texts] = SuppressedTexts(self._backend.vocabulary, texts)
        return suppressed
