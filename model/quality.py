"""How good answers are: exact match, BLEU, chrF and bits per byte."""

import math
from collections.abc import Sequence
from typing import Literal

import sacrebleu
from tokenizers import Tokenizer

from model.batching import Stream
from model.loss import mean_loss
from model.transformer import LanguageModel

__all__ = ["BleuTokenization", "bits_per_byte", "bleu", "chrf", "exact_match"]

BleuTokenization = Literal["13a", "none"]


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Percentage of hypotheses that equal their reference, character by character.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    equal = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return 100.0 * equal / len(references)


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: BleuTokenization = "13a") -> float:
    """Corpus BLEU (Papineni et al. 2002) in percent, by sacreBLEU.

    Args:
        hypotheses: what a model wrote.
        references: what is right, one each.
        tokenize: sacreBLEU's name for it: `13a`, its default, or `none` for text that is tokenized already.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    # force: sacreBLEU warns of text that looks tokenized, which is what `none` says.
    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize, force=tokenize == "none").score


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 (Popović 2015) in percent, by sacreBLEU.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    return sacrebleu.corpus_chrf(hypotheses, [references]).score


def bits_per_byte(
    model: LanguageModel, tokenizer: Tokenizer, documents: Sequence[str], batch_tokens: int = 8_192
) -> float:
    """Bits the model needs for a byte of UTF-8: comparable between tokenizers, unlike loss a token.

    Documents are read in windows of the model's context without overlap; each document's end token counts
    as something to predict, not as a byte.

    Raises:
        ValueError: the documents hold no byte.
    """
    num_bytes = sum(len(document.encode()) for document in documents)
    if not num_bytes:
        raise ValueError("there is no byte of text to measure bits per byte on")
    encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    token_ids = [encoding.ids for encoding in encodings]
    num_labels = sum(len(ids) + 1 for ids in token_ids)
    loss = mean_loss(model, Stream(token_ids, model.dims.max_target_tokens), batch_tokens)
    return loss * num_labels / math.log(2) / num_bytes


def _check_pairing(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
