"""The one way in: a recipe's corpus, whatever its kind."""

from pathlib import Path

from model.corpora.corpus import Corpus, Pair
from model.recipe import Recipe

__all__ = ["load_corpus"]


def load_corpus(recipe: Recipe, data: Path | None = None) -> Corpus[Pair] | Corpus[str]:
    """Read or make the corpus of `recipe`; `data` is the folder its files are in (`--data`).

    Raises:
        CorpusError: it is missing, empty or does not fit together.
        DownloadError: it has to be fetched and could not be.
    """
    raise NotImplementedError(recipe, data)
