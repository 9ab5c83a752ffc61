"""The files of a run's corpus when its training began, so that a later sitting notices a change.

A file with the same size and times is the same. Where they differ, the hash of its content decides.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from dragoman.common.errors import UsageError
from dragoman.common.files import atomic_write, sha256_of
from dragoman.common.settings import Settings
from dragoman.model.corpora.sources import SourceFile
from dragoman.model.errors import CorpusError
from dragoman.model.run import CORPUS_RECORD_FILE, read_settings

__all__ = ["CorpusRecord", "changes_since_training", "in_words", "record_files"]

_MAX_TOLD = 5


class FileRecord(Settings):
    """One file.

    Attributes:
        num_bytes: its size.
        modified_ns: when its content was last written.
        changed_ns: when anything of it was last changed, which a program that sets `modified_ns` back cannot hide.
        sha256: of its content.
    """

    num_bytes: int
    modified_ns: int
    changed_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, known: "FileRecord | None" = None) -> Self:
        """Return the record of a file as it is now. The file is not read if its size and times are those of `known`."""
        status = path.stat()
        facts = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        is_known = known is not None and facts == (known.num_bytes, known.modified_ns, known.changed_ns)
        return cls(
            num_bytes=facts[0],
            modified_ns=facts[1],
            changed_ns=facts[2],
            sha256=known.sha256 if known is not None and is_known else sha256_of(path),
        )


class CorpusRecord(Settings):
    """All files of a corpus, by the names that its recipe knows them by."""

    schema_version: Literal[1] = 1
    files: dict[str, FileRecord]

    @classmethod
    def of(cls, files: Sequence[SourceFile], known: "CorpusRecord | None" = None) -> Self:
        """Return the record of files as they are now. A file with the size and times of `known` is not read.

        Raises:
            CorpusError: a file cannot be read.
        """
        before = known.files if known else {}
        records = {}
        for file in files:
            name = _name_of(file)
            try:
                records[name] = FileRecord.of(file.path, before.get(name))
            except OSError as error:
                raise CorpusError(f"cannot read {file}: {error.strerror}") from error
        return cls(files=records)

    def changes(self, now: "CorpusRecord") -> list[str]:
        """Return a description of each file that changed, is new, or is no longer read."""
        told = []
        for name in sorted(self.files.keys() | now.files.keys()):
            old, new = self.files.get(name), now.files.get(name)
            if old is None or new is None:
                told.append(f"{name} is {'new' if old is None else 'no longer read'}")
            elif old.sha256 != new.sha256:
                sizes = f"{old.num_bytes:,} bytes, now {new.num_bytes:,}"
                told.append(
                    f"{name} has changed ({sizes if old.num_bytes != new.num_bytes else 'of the same size'})"
                )
        return told

    def digest(self) -> str:
        """A hash of the content of all files."""
        parts = (f"{name}\0{record.sha256}\n" for name, record in sorted(self.files.items()))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def in_words(changes: Sequence[str]) -> str:
    """Return changes as a part of a sentence; of many, the first few."""
    others = len(changes) - _MAX_TOLD
    return "; ".join(changes[:_MAX_TOLD]) + (f"; and {others:,} other files" if others > 0 else "")


def record_files(
    run: Path, files: Sequence[SourceFile], *, resumes: bool, accepts_changes: bool
) -> tuple[str, list[str]]:
    """Write the record of a run's corpus files into its folder.

    Returns:
        A hash of their content, and a description of each accepted change since training began.

    Raises:
        UsageError: a file changed and `accepts_changes` is False; the message names each change.
        RunError: the run's record is damaged.
        CorpusError: a file cannot be read, or has changed since it was found: what was read of it is unknown.
        OperationError: the record cannot be written.
    """
    path = run / CORPUS_RECORD_FILE
    # An earlier release left none.
    before = read_settings(path, CorpusRecord) if resumes and path.is_file() else None
    now = CorpusRecord.of(files, before)
    for file in files:
        record = now.files[_name_of(file)]
        if file.found not in {None, (record.num_bytes, record.modified_ns)}:
            raise CorpusError(f"while it was read, {file.name} has changed: begin again once it is whole")
    changes = before.changes(now) if before else []
    if changes and not accepts_changes:
        raise UsageError(
            f"the corpus is not as it was when the run in {run} began: {in_words(changes)}; bring back what was "
            "there, or give --accept-changes to go on with what is there now"
        )
    atomic_write(path, now.model_dump_json(indent=2) + "\n")
    return now.digest(), changes


def changes_since_training(run: Path, files: Sequence[SourceFile]) -> list[str]:
    """Return the changes of a corpus's files since the training of `run` began; none where they are unknown.

    Raises:
        RunError: the run's record of them is damaged.
        CorpusError: a file cannot be read.
    """
    path = run / CORPUS_RECORD_FILE
    if not path.is_file():  # an earlier release trained it
        return []
    record = read_settings(path, CorpusRecord)
    return record.changes(CorpusRecord.of(files, record))


def _name_of(file: SourceFile) -> str:
    """Return the name of a file in the record, which is UTF-8, as a file's name need not be."""
    return file.name.encode(errors="backslashreplace").decode()
