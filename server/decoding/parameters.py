"""How one sequence is decoded: what a caller's options come to, once they are checked."""

import msgspec

__all__ = ["DecodingParameters"]


class DecodingParameters(msgspec.Struct, frozen=True, array_like=True):
    """How one sequence is decoded: plain data. Values are taken as valid; the runtime checks what callers send.

    Attributes:
        max_tokens: most tokens to produce, the end of sequence included.
        min_tokens: fewest tokens to produce, the end of sequence not included.
        temperature: 0 is greedy.
        top_k: 0 is all.
        top_p: 1 is all.
        seed: used when the temperature is above 0.
        sample: which of several samples of one input this is; each has random numbers of its own.
        beam_size: 1 is no beam search.
        num_hypotheses: answers to give, best first; at most round(beam_size * patience).
        length_penalty: the score is log-probability / length ** this; the length counts the end of sequence.
        coverage_penalty: weight of the coverage penalty (Wu et al. 2016, section 7) in the score.
        patience: the search ends with round(beam_size * patience) finished hypotheses (Kasai et al. 2022).
        repetition_penalty: 1 is none.
        no_repeat_ngram_size: 0 is none.
        suppressed_token_ids: tokens that are never produced.
        suppressed_texts: texts that the output does not hold, as the tokenizer leaves texts.
        stop: strings before which the output ends, as the tokenizer leaves texts.
        prefix: tokens that the output begins with; an end of sequence may be the last of them.
        num_alternatives: how many of the most probable tokens to tell beside each chosen one; None tells
            nothing of single tokens.
        align: whether to tell which source token each output token looks at.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0
    beam_size: int = 1
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    patience: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    suppressed_token_ids: tuple[int, ...] = ()
    suppressed_texts: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    prefix: tuple[int, ...] = ()
    num_alternatives: int | None = None
    align: bool = False

    @property
    def num_finished(self) -> int:
        """Finished hypotheses that end a beam search."""
        return max(1, round(self.beam_size * self.patience))

    @property
    def limits_choice(self) -> bool:
        """Whether some tokens are impossible after some outputs."""
        return bool(self.no_repeat_ngram_size or self.suppressed_token_ids or self.suppressed_texts)

    @property
    def is_constrained(self) -> bool:
        """Whether more than `min_tokens` constrains the next token; a greedy row has that for nearly nothing."""
        return self.repetition_penalty != 1.0 or self.limits_choice

    @property
    def needs_chooser(self) -> bool:
        """Whether the token of highest probability is not always the one, but for an end that comes too early."""
        return self.temperature > 0 or bool(self.prefix) or self.is_constrained
