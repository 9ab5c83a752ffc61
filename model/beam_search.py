"""Beam search (Graves 2012; Sutskever et al. 2014, section 3.2) in plain PyTorch, over many inputs at once."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dragoman.model.incremental import DecodingBatch, decoding_batches
from dragoman.model.tokenizer import END_ID, WITHOUT_TEXT
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["BeamHypothesis", "beam_search"]

_MAX_ROWS = 320  # inputs times beams: more are no faster, as their caches no longer fit the processor's


@dataclasses.dataclass(frozen=True)
class BeamHypothesis:
    """One of the answers that were found for an input."""

    token_ids: list[int]  # with the end token, when it was reached within the limit
    log_probability: float  # of all `token_ids`, under the model's own distribution
    score: float  # log_probability / len(token_ids) ** length_penalty

    @property
    def finished(self) -> bool:
        """Whether the model ended the sequence itself."""
        return self.token_ids[-1:] == [END_ID]


@torch.inference_mode()
def beam_search(
    model: TranslationModel | LanguageModel,
    inputs: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    num_hypotheses: int = 1,
) -> list[list[BeamHypothesis]]:
    """Search for the sequences of best log-probability / length ** length_penalty.

    This is fairseq's convention (`--lenpen`; Ott et al. 2019): the length counts the end token, and a penalty
    above 0 favours long answers. As there, a hypothesis ends where the end token is among the `beam_size` best
    continuations of all beams; tokens without a text are never among them. The search for an input stops once it
    has `beam_size` finished hypotheses and, for a penalty of at most 0, no running beam beats the worst of them:
    none will then. Above 0 the search does not wait for that, as fairseq does not: a beam may always catch up by
    growing, and answers would get too long. With one beam and no penalty the result is that of `greedy_decode`.

    Args:
        model: in evaluation mode.
        inputs: ids as `tokenizer.encode` gives them: sources, or prompts, which start with the begin token.
        max_tokens: limit of output tokens, the end token included. The model's own limit holds as well:
            `max_target_tokens` and the end token, or what the prompt leaves of the context.
        beam_size: hypotheses that run at the same time for an input.
        length_penalty: the exponent of the length.
        num_hypotheses: answers returned for an input, at most `beam_size`.

    Returns:
        For each input, in their order, its hypotheses: finished ones first, by score. Those that the limit cut
        off follow where there are too few. Fewer than `num_hypotheses` when so few sequences exist.

    Raises:
        ValueError: an input is empty or longer than the model's limit, or `beam_size` or `num_hypotheses` is
            out of range.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size {beam_size} is not at least 1")
    if not 1 <= num_hypotheses <= beam_size:
        raise ValueError(f"num_hypotheses {num_hypotheses} is not within 1 and beam_size {beam_size}")
    found: dict[int, list[BeamHypothesis]] = {}
    for batch in decoding_batches(model, inputs, max_tokens, max(1, _MAX_ROWS // beam_size)):
        for row, hypotheses in zip(batch.rows, _Search(batch, beam_size, length_penalty).run(), strict=True):
            found[row] = hypotheses[:num_hypotheses]
    return [found[row] for row in range(len(inputs))]


class _Search:
    """The search for a batch of inputs. Those whose search is over leave the tensors."""

    def __init__(self, batch: DecodingBatch, beam_size: int, length_penalty: float) -> None:
        self._batch, self._beam_size, self._length_penalty = batch, beam_size, length_penalty
        self._finished: list[list[BeamHypothesis]] = [[] for _ in batch.rows]  # of each input, best first
        # The running hypotheses: as many for each input, best first.
        device = batch.decoder.device
        self._searched = list(range(len(batch.rows)))  # the inputs they are for
        self._token_ids = torch.empty((len(batch.rows), 1, 0), dtype=torch.long, device=device)
        # In fp64: the order of two hypotheses is then that of their logits, and that of a long sum is right.
        self._log_probabilities = torch.zeros((len(batch.rows), 1), dtype=torch.float64, device=device)

    def run(self) -> list[list[BeamHypothesis]]:
        """All hypotheses found for each input, the finished ones first, each part by score."""
        decoder, read = self._batch.decoder, self._batch.first
        for step in range(self._batch.max_steps):
            candidates = self._best_candidates(decoder.read(read))
            self._finish(*candidates)
            rows, kept = self._advance(*candidates)
            if not kept:
                return self._finished
            if step + 1 < self._batch.max_steps:
                if len(kept) < len(rows):
                    decoder.select_sources(torch.tensor(kept, device=decoder.device))
                decoder.select_rows(rows[kept].flatten())
                read = self._token_ids[:, :, -1].reshape(-1, 1)
        for place, number in enumerate(self._searched):
            self._finished[number] += [
                self._hypothesis(token_ids, log_probability)
                for token_ids, log_probability in zip(
                    self._token_ids[place].tolist(), self._log_probabilities[place].tolist(), strict=True
                )
            ]
        return self._finished

    def _best_candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (inputs * W, vocabulary) -> the best continuations of each input, best first.

        Returns:
            (inputs, candidates) each: log-probability, which of the W beams, token. Among them are as many
            that do not end as there are to be beams, where the vocabulary has so many.
        """
        num_inputs, width = self._log_probabilities.shape
        permitted = logits.clone()
        permitted[:, WITHOUT_TEXT] = -math.inf
        num_permitted = logits.shape[-1] - len(WITHOUT_TEXT)
        # A row has one way to end, so the beam_size best continuations that do not are among so many:
        values, tokens = permitted.topk(min(self._beam_size + 1, num_permitted))
        # Equal ones in the order of their tokens, which topk does not promise: as greedy decoding takes them.
        tokens, order = tokens.sort(dim=-1)
        values = values.gather(-1, order).double() - logits.logsumexp(dim=-1, keepdim=True).double()
        totals = self._log_probabilities[:, :, None] + values.view(num_inputs, width, -1)
        best, order = totals.flatten(1).sort(dim=-1, descending=True, stable=True)
        return best, order // tokens.shape[-1], tokens.view(num_inputs, -1).gather(-1, order)

    def _finish(self, log_probabilities: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Keep the hypotheses that end among the best `beam_size` candidates."""
        for place, rank in (tokens[:, : self._beam_size] == END_ID).nonzero().tolist():
            token_ids = [*self._token_ids[place, parents[place, rank]].tolist(), END_ID]
            finished = self._finished[self._searched[place]]
            finished.append(self._hypothesis(token_ids, float(log_probabilities[place, rank])))
            finished.sort(key=lambda hypothesis: -hypothesis.score)
            del finished[self._beam_size :]

    def _advance(
        self, log_probabilities: Tensor, parents: Tensor, tokens: Tensor
    ) -> tuple[Tensor, list[int]]:
        """Go on with the best candidates that do not end, of the inputs whose search is not over.

        Returns:
            The row of `logits` (inputs, W) each candidate continues, and the places of the inputs that go on.
        """
        num_inputs, width = self._log_probabilities.shape
        ends = tokens == END_ID
        num_running = min(self._beam_size, int((~ends).sum(dim=1).min()))
        ranks = ends.byte().sort(dim=1, stable=True).indices[:, :num_running]
        log_probabilities, parents, tokens = (
            column.gather(1, ranks) for column in (log_probabilities, parents, tokens)
        )
        length = self._token_ids.shape[-1] + 1
        attainable = (log_probabilities[:, 0] / (length + 1) ** self._length_penalty).tolist()
        kept = [place for place in range(num_inputs) if not self._is_over(place, attainable[place])]
        places = torch.arange(num_inputs, device=tokens.device)[:, None]
        extended = torch.cat([self._token_ids[places, parents], tokens[:, :, None]], dim=-1)
        self._token_ids, self._log_probabilities = extended[kept], log_probabilities[kept]
        self._searched = [self._searched[place] for place in kept]
        return places * width + parents, kept

    def _is_over(self, place: int, attainable: float) -> bool:
        finished = self._finished[self._searched[place]]
        if len(finished) < self._beam_size:
            return False
        return self._length_penalty > 0 or finished[-1].score >= attainable

    def _hypothesis(self, token_ids: list[int], log_probability: float) -> BeamHypothesis:
        length = max(1, len(token_ids))  # nothing is decoded where the limit is 0
        return BeamHypothesis(token_ids, log_probability, log_probability / length**self._length_penalty)
