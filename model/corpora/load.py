"""The one way in: a recipe's corpus, whatever its kind."""

import dataclasses
from pathlib import Path

from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.dates import make_dates
from dragoman.model.corpora.files import read_document_files, read_pair_files
from dragoman.model.corpora.public import read_multi30k, read_shakespeare
from dragoman.model.corpora.settings import (
    DatesSettings,
    FolderSettings,
    JsonLinesSettings,
    Multi30kSettings,
    PairSettings,
    ParquetSettings,
    ShakespeareSettings,
    StdlibSettings,
    TextSettings,
)
from dragoman.model.corpora.sources import SourceFiles
from dragoman.model.corpora.stdlib import read_stdlib
from dragoman.model.corpora.synthetic import with_synthetic_pairs
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import Recipe

__all__ = ["load_corpus"]


def load_corpus(recipe: Recipe, data: Path | None = None) -> Corpus[Pair] | Corpus[str]:
    """Read or make the corpus of `recipe`: pairs for translation, documents for generation.

    `data` is the folder its files are in (`--data`), in place of the recipe's own. `corpus.report` says what
    was left out or mended, `corpus.files` what was read.

    Raises:
        RecipeError: `data` is given and the recipe reads no files.
        CorpusError: the corpus is missing, empty or does not fit together.
        DownloadError: it has to be fetched and could not be.
    """
    recipe = recipe.with_data(data)
    settings = recipe.corpus
    match settings:
        case DatesSettings():
            return make_dates(settings, recipe.seed)
        case StdlibSettings():
            return read_stdlib()
        case Multi30kSettings():
            return _with_synthetic_pairs(
                read_multi30k(settings), settings, SourceFiles(Path(settings.folder or ""))
            )
        case ShakespeareSettings():
            return read_shakespeare(settings)
    files = SourceFiles(_folder(recipe.name, settings))
    if isinstance(settings, TextSettings) or (
        isinstance(settings, JsonLinesSettings | ParquetSettings) and recipe.task == "generation"
    ):
        documents = read_document_files(recipe.name, settings, files)
        return dataclasses.replace(documents, files=tuple(files.found))
    return _with_synthetic_pairs(read_pair_files(recipe.name, settings, files), settings, files)


def _with_synthetic_pairs(corpus: Corpus[Pair], settings: PairSettings, files: SourceFiles) -> Corpus[Pair]:
    whole = with_synthetic_pairs(corpus, settings, files)
    return dataclasses.replace(whole, files=(*corpus.files, *files.found))


def _folder(name: str, settings: FolderSettings) -> Path:
    folder = Path(settings.folder or "")
    if not folder.is_dir():
        raise CorpusError(f"corpus {name!r}: there is no folder {folder}")
    return folder
