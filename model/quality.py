"""How good answers are: exact match, BLEU, chrF and bits per byte.

A figure is known by its name alone: `bleu` in a run, in a bundle and in `dragoman evaluate` is the same measure with
the same settings, those of the recipe.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import sacrebleu
from sacrebleu.metrics.base import Metric, Score
from tokenizers import Tokenizer

from dragoman.model.batching import Stream
from dragoman.model.loss import mean_loss
from dragoman.model.recipe import BleuTokenization, Recipe
from dragoman.model.transformer import LanguageModel

__all__ = [
    "BleuTokenization",
    "Comparison",
    "Measure",
    "bits_per_byte",
    "bleu",
    "chrf",
    "exact_match",
    "headline",
    "signatures",
    "translation_figures",
]

Measure = Literal["exact_match", "bleu", "chrf", "bits_per_byte"]

_BLEU_ORDER = 4  # BLEU is the geometric mean of the precisions of runs of one to so many words


class Comparison(NamedTuple):
    """How translations are compared with their references.

    Attributes:
        bleu_tokenization: how BLEU cuts texts into words, by sacreBLEU's name.
        ignores_case: whether upper and lower case are the same, for each measure.
    """

    bleu_tokenization: BleuTokenization = "13a"
    ignores_case: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The comparison that a recipe asks for."""
        return cls(recipe.bleu_tokenization, recipe.ignores_case)


def headline(task: Literal["translation", "generation"], references: Sequence[str]) -> tuple[Measure, ...]:
    """The measures that say in short how good a model is, the most telling one first.

    BLEU counts runs of four words. Where most references are shorter (single words, dates, codes, or a language that
    puts no spaces between words), it is 0 or means little: exact match and chrF stand in its place.
    """
    if task == "generation":
        return ("bits_per_byte",)
    num_long = sum(len(reference.split()) >= _BLEU_ORDER for reference in references)
    return ("bleu",) if 2 * num_long >= max(1, len(references)) else ("exact_match", "chrf")


def translation_figures(
    hypotheses: Sequence[str], references: Sequence[str], comparison: Comparison | None = None
) -> dict[str, float]:
    """Exact match, BLEU and chrF in percent, by name, those of the headline first.

    BLEU is left out where it is 0 by definition: no reference has the four words that it counts runs of.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    comparison = comparison or Comparison()
    case = {"ignores_case": comparison.ignores_case}
    figures = {"exact_match": exact_match(hypotheses, references, **case)}
    if _has_bleu(references, comparison.bleu_tokenization):
        figures["bleu"] = bleu(hypotheses, references, comparison.bleu_tokenization, **case)
    figures["chrf"] = chrf(hypotheses, references, **case)
    first = headline("translation", references)
    return dict(sorted(figures.items(), key=lambda figure: figure[0] not in first))


def signatures(comparison: Comparison) -> dict[str, str]:
    """The signatures by which sacreBLEU names what exactly was measured: of `bleu` and of `chrf`."""
    told = {}
    for name, metric in (
        ("bleu", _bleu_metric(comparison.bleu_tokenization, ignores_case=comparison.ignores_case)),
        ("chrf", sacrebleu.CHRF(lowercase=comparison.ignores_case)),
    ):
        metric.corpus_score(["a"], [["a"]])  # the signature counts references
        told[name] = str(metric.get_signature())
    return told


def exact_match(hypotheses: Sequence[str], references: Sequence[str], *, ignores_case: bool = False) -> float:
    """Percentage of hypotheses that equal their reference, character by character.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    if ignores_case:
        hypotheses, references = [text.lower() for text in hypotheses], [text.lower() for text in references]
    equal = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return 100.0 * equal / len(references)


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    tokenize: BleuTokenization = "13a",
    *,
    ignores_case: bool = False,
) -> float:
    """Corpus BLEU (Papineni et al. 2002) in percent, by sacreBLEU.

    Args:
        hypotheses: what a model wrote.
        references: what is right, one each.
        tokenize: sacreBLEU's name for it: `13a`, its default, or `none` for text that is tokenized already.
        ignores_case: whether upper and lower case are the same.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    return _percent(_bleu_metric(tokenize, ignores_case=ignores_case), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, ignores_case: bool = False) -> float:
    """Corpus chrF2 (Popović 2015) in percent, by sacreBLEU.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    _check_pairing(hypotheses, references)
    return _percent(sacrebleu.CHRF(lowercase=ignores_case), hypotheses, references)


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


def _bleu_metric(tokenize: BleuTokenization, *, ignores_case: bool) -> sacrebleu.BLEU:
    # force: sacreBLEU warns of text that looks tokenized, which is what `none` says.
    return sacrebleu.BLEU(tokenize=tokenize, lowercase=ignores_case, force=tokenize == "none")


def _percent(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> float:
    score: Score = metric.corpus_score(hypotheses, [references])
    return min(100.0, float(score.score))  # sacreBLEU's own rounding errors go beyond 100


def _has_bleu(references: Sequence[str], tokenize: BleuTokenization) -> bool:
    tokenizer = _bleu_metric(tokenize, ignores_case=False).tokenizer
    return any(len(tokenizer(reference).split()) >= _BLEU_ORDER for reference in references)


def _check_pairing(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
