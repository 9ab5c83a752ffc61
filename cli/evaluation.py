"""Quality on the unseen test split of the corpus a model was trained on: what, and by which measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from dragoman.common.errors import UsageError
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.quality import Comparison, headline, signatures, translation_figures
from dragoman.model.recipe import Recipe
from dragoman.server.requests.options import MAX_PENALTY

__all__ = [
    "GREEDY",
    "Evaluation",
    "Progress",
    "Search",
    "corpus_of",
    "recipe_of",
    "split_name",
    "test_pairs",
    "translation_quality",
]

Progress = Callable[[str, float, float], None]
"""Told what is going on, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Search:
    """How translations are looked for; the default is greedy."""

    beam_size: int = 1
    length_penalty: float = 1.0

    @classmethod
    def of(cls, beam_size: int | None, length_penalty: float | None) -> Self:
        """Returns the decoding that the options ask for.

        Raises:
            UsageError: it has no meaning.
        """
        if beam_size is not None and beam_size < 1:
            raise UsageError(f"--beam-size {beam_size} is less than 1")
        if length_penalty is not None and (beam_size or 1) == 1:
            raise UsageError(
                f"--length-penalty {_number(length_penalty)} has no meaning without a --beam-size above 1"
            )
        if (
            length_penalty is not None and not -MAX_PENALTY <= length_penalty <= MAX_PENALTY
        ):  # NaN is not either
            raise UsageError(
                f"--length-penalty {_number(length_penalty)} is not between -{MAX_PENALTY:g} and {MAX_PENALTY:g}"
            )
        return cls(beam_size or 1, 1.0 if length_penalty is None else length_penalty)


GREEDY: Final = Search()


@dataclass(frozen=True)
class Evaluation:
    """Figures with what they were measured on.

    Attributes:
        model: The model's name.
        version: Its version.
        task: Translation or generation.
        precision: "fp32", "fp16" or "int8".
        through: "grpc" or "bundle": a server, or the serving backend in this process.
        data: Corpus and split.
        num_examples: Examples of the split that were used.
        num_refused: Inputs among them that are longer than the model's limit; they count as wrong.
        search: How translations were looked for; None where texts were scored.
        headline: Names of the metrics that fit the task best, the most telling one first.
        metrics: By name: exact_match, bleu and chrf in percent, bits_per_byte. BLEU is left out where no reference has
            the four words that it counts runs of.
        signatures: Of bleu and chrf, by which sacreBLEU names what exactly was measured: as the recipe says.
        seconds: How long the answers took.
    """

    model: str
    version: str
    task: str
    precision: str
    through: str
    data: str
    num_examples: int
    num_refused: int
    search: Search | None
    headline: tuple[str, ...]
    metrics: dict[str, float]
    signatures: dict[str, str]
    seconds: float


def corpus_of(
    provenance: Mapping[str, Any], data: Path | None, *, task: str, source: str
) -> Corpus[Pair] | Corpus[str]:
    """The corpus that a model's provenance names, without pairs that another model made for its training.

    Args:
        provenance: As the bundle and the server give it.
        data: Folder of the corpus, if it lies elsewhere than it did at training.
        task: The model's.
        source: Whose provenance it is, for messages.

    Raises:
        UsageError: the provenance holds no recipe, or one of another task.
        CorpusError: the corpus cannot be read.
    """
    recipe = recipe_of(provenance, source=source)
    if recipe.task != task:
        raise UsageError(
            f"{source} is a {task} model, but the recipe that it was trained with is for {recipe.task}: "
            "there is nothing to measure it on"
        )
    return load_corpus(recipe.without_synthetic_pairs(), data)


def recipe_of(provenance: Mapping[str, Any], *, source: str) -> Recipe:
    """The recipe that a model's provenance holds; arguments and errors as `corpus_of`."""
    recipe = provenance.get("recipe")
    if not isinstance(recipe, dict):
        raise UsageError(f"{source} does not say which recipe it was trained with")
    return Recipe.load(recipe, source=source)


def split_name(corpus: Corpus[Pair] | Corpus[str]) -> str:
    """Returns the name of `corpus.held_out`, in words."""
    return f"{corpus.name} {'test' if corpus.test else 'validation'} split"


def test_pairs(
    provenance: Mapping[str, Any], data: Path | None, limit: int | None, *, source: str
) -> tuple[str, list[Pair]]:
    """The name of the held-out split, and its first `limit` pairs; arguments and errors as `corpus_of`."""
    corpus = corpus_of(provenance, data, task="translation", source=source)
    return split_name(corpus), [pair for pair in corpus.held_out[:limit] if isinstance(pair, Pair)]


def translation_quality(
    provenance: Mapping[str, Any], answers: Sequence[str | None], pairs: Sequence[Pair], *, source: str
) -> dict[str, Any]:
    """`headline`, `metrics` and `signatures` of an evaluation, measured as the model's recipe says.

    No answer counts as an empty one. Arguments and errors otherwise as `corpus_of`.
    """
    comparison = Comparison.of(recipe_of(provenance, source=source))
    hypotheses, references = [answer or "" for answer in answers], [pair.target for pair in pairs]
    metrics = translation_figures(hypotheses, references, comparison)
    signed = {name: signature for name, signature in signatures(comparison).items() if name in metrics}
    return {"headline": headline("translation", references), "metrics": metrics, "signatures": signed}


def _number(value: float) -> str:
    return str(value).removesuffix(".0")
