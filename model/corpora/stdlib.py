"""The `stdlib` corpus: the Python source of the interpreter's own standard library, a document a file."""

import sysconfig
from pathlib import Path
from typing import Final

from dragoman.common.text import clean_text, is_blank
from dragoman.model.corpora.corpus import Corpus, stable_share
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError

__all__ = ["read_stdlib"]

# Tests, installed packages, and tables that a program wrote.
_SKIPPED_FOLDERS: Final = {
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}


def read_stdlib(root: Path | None = None) -> Corpus[str]:
    """Split by file: a stable hash of its path puts 90 % into training, 5 % each into validation and test.

    Raises:
        CorpusError: the interpreter has no source files beside it (some minimal installs do not).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    files = list[SourceFile]()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        try:
            text = clean_text(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # a handful declare another encoding
        if not is_blank(text):
            share = stable_share(relative.as_posix())
            splits["train" if share < 0.9 else "validation" if share < 0.95 else "test"].append(text)
            files.append(SourceFile(path, relative.as_posix()))
    if not splits["train"]:
        raise CorpusError(f"corpus 'stdlib' is empty: no Python source in {root}")
    return Corpus("stdlib", splits["train"], splits["validation"], splits["test"], files=tuple(files))
