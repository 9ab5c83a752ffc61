"""The bundle: the contract between export and server. The reader defines it.

    <models>/<name>/<version>/
        bundle.json      what `dragoman.server.bundle.manifest` describes
        tokenizer.json   a Hugging Face `tokenizers` file whose post-processor yields the model's input
        *.onnx           the graphs named in bundle.json, each with all of its weights

A bundle is believed only after every file's SHA-256 agrees. Graphs and tokenizer are made of bytes that were hashed
after they were read, so nothing can change a file between the check and its use. A file is a regular file in the
bundle's folder: a link out of the folder, a pipe or a device is refused before a byte of it is read.
"""

import errno
import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer

from dragoman.common.errors import DragomanError
from dragoman.common.normalization import prepare_tokenizer
from dragoman.server.bundle import graph_names
from dragoman.server.bundle.manifest import (
    FileRecord,
    Manifest,
    check_provenance,
    first_problem,
)
from dragoman.server.errors import BundleError, IncompleteBundle, ResourceUnavailable, shown

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "TOKENIZER_NAME",
    "Bundle",
    "make_tokenizer",
    "one_line",
]

SCHEMA_VERSION = 2
"""That of new bundles. 2: `decode` takes `num_best` and `needs_all`; prompts are read by `extend` alone."""
_READABLE = (1, SCHEMA_VERSION)
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"

MAX_MANIFEST_BYTES = 1 << 20
"""A manifest takes some 10 kB. `ListModels` sends the provenance of all models in one message of 4 MiB at most."""
_CHUNK_BYTES = 1 << 20
_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EHOSTDOWN,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errors of the machine or of a file system in a network, not of the bundle: another try may read it."""
_ONNXRUNTIME_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")


class Bundle:
    """A folder whose manifest and files have been checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def name(self) -> str:
        """The model's name: the folder above the version's."""
        return self.path.absolute().parent.name

    @property
    def version(self) -> str:
        """The version: the folder's own name."""
        return self.path.absolute().name

    def graph_path(self, name: str) -> Path:
        """Where the graph called `name` lies."""
        return self.path / self.manifest.graphs[name].file

    def graph_bytes(self, name: str) -> bytes:
        """The graph called `name`, serialised.

        Raises:
            BundleError: the file is not what the manifest says.
        """
        return self._content(self.manifest.graphs[name].file)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read once, ready to use.

        Raises:
            BundleError: the file is no tokenizer, or one of another vocabulary.
        """
        return self._tokenizer(cleans=True)

    def golden_inputs(self) -> list[list[int]]:
        """Token ids of the golden examples' texts, as the file itself reads them.

        They were recorded with it, perhaps before cleaning became a part of it.

        Raises:
            BundleError: as `tokenizer`.
        """
        texts = [example.text for example in self.manifest.golden_examples]
        cleaning_matters = not all(text.isascii() and text.isprintable() for text in texts)
        tokenizer = self._tokenizer(cleans=False) if cleaning_matters else self.tokenizer
        return [tokenizer.encode(text).ids for text in texts]

    def tokenizer_bytes(self) -> bytes:
        """Returns the content of `tokenizer.json`, which `make_tokenizer` takes.

        Raises:
            BundleError: the file is not what the manifest says.
        """
        return self._content(TOKENIZER_NAME)

    def _tokenizer(self, *, cleans: bool) -> Tokenizer:
        path, dims = self.path / TOKENIZER_NAME, self.manifest.dimensions
        content = self.tokenizer_bytes()
        try:
            tokenizer = make_tokenizer(content, cleans=cleans)
            ids = {*tokenizer.get_vocab().values(), *tokenizer.encode("").ids}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's own; a panic is no Exception
            raise BundleError(f"{path} is not a tokenizer: {one_line(error)}") from error
        if ids and max(ids) >= dims.vocabulary_size:
            raise BundleError(
                f"{path} has token id {max(ids)}; the manifest says vocabulary_size = {dims.vocabulary_size}"
            )
        return tokenizer

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the bundle in `folder`.

        Raises:
            IncompleteBundle: it is missing, misses a file, or a file's bytes differ from what the manifest promises;
                the message names the file.
            BundleError: it has another schema version, or its manifest describes no bundle.
            ResourceUnavailable: the system cannot read it now: too many open files, an error of the device.
        """
        manifest = _read_manifest(folder)
        path = folder / MANIFEST_NAME
        for (
            name,
            record,
        ) in manifest.files.items():  # sizes first: a bundle that is being copied is looked at often
            with _opened(folder, name) as file:
                _check_size(folder / name, file, record)
        for name, record in manifest.files.items():
            _check_file(folder, name, record)
        needed = {TOKENIZER_NAME, *(graph.file for graph in manifest.graphs.values())}
        for name in sorted(needed - manifest.files.keys()):
            raise BundleError(f"{path}: {name} is used but has no entry under files")
        for names in (graph_names.FIRST_GRAPHS[manifest.task], ("decode",)):
            if not manifest.graphs.keys() & set(names):
                raise BundleError(f"{path}: a {manifest.task} bundle needs a graph {names[0]!r}")
        known = graph_names.GRAPHS[manifest.task]
        if unknown := [name for name in manifest.graphs if name not in known]:
            raise BundleError(
                f"{path}: a {manifest.task} bundle has no graph {shown(unknown[0])}; this server knows "
                f"{', '.join(known)}"
            )
        if not manifest.golden_examples:
            raise BundleError(
                f"{path}: golden_examples is empty, so nothing shows that the bundle answers as it did when it was "
                "exported: export it again"
            )
        return cls(folder, manifest)

    def _content(self, name: str) -> bytes:
        """All bytes of a file, which are those that the manifest promises."""
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.path / MANIFEST_NAME}: {name} is used but has no entry under files")
        with _opened(self.path, name) as file:
            _check_size(self.path / name, file, record)
            content = file.read(record.num_bytes + 1)
        _check_digest(self.path / name, hashlib.sha256(content).hexdigest(), record)
        return content


def make_tokenizer(content: bytes, *, cleans: bool = True) -> Tokenizer:
    """The tokenizer of a file's bytes, ready to use; with `cleans` it cleans texts as corpora are cleaned."""
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True
    if cleans:
        prepare_tokenizer(tokenizer)
    return tokenizer


def one_line(error: BaseException) -> str:
    """The first line of a library's message, without ONNX Runtime's prefix.

    A library repeats what a bundle holds. Characters that are not printed, such as a terminal's controls, are escaped.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    line = _ONNXRUNTIME_PREFIX.sub("", lines[0])
    return (
        line
        if line.isprintable()
        else "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
    )


class _Version(BaseModel):
    schema_version: int


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    with _opened(
        folder, MANIFEST_NAME, missing=f"no bundle in {folder}: cannot read {MANIFEST_NAME}"
    ) as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has more than {MAX_MANIFEST_BYTES} bytes: it is not a bundle manifest")
    try:
        version = _Version.model_validate_json(text).schema_version
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise BundleError(f"{path} has schema version {version}; this server reads versions {readable}")
        manifest = Manifest.model_validate_json(text)
        check_provenance(manifest.provenance)
    except ValidationError as error:
        is_json = error.errors()[0]["type"] != "json_invalid"
        kind = BundleError if is_json else IncompleteBundle
        raise kind(f"{path} is not a bundle manifest: {first_problem(error)}") from error
    except ValueError as error:
        raise BundleError(f"{path} is not a bundle manifest: {error}") from error
    return manifest


@contextmanager
def _opened(folder: Path, name: str, *, missing: str = "") -> Iterator[BinaryIO]:
    """A regular file of the folder, open for reading; a BundleError for anything else and for what reading raises.

    What ails the machine is a ResourceUnavailable.
    """
    path = folder / name
    try:
        # Links within the folder are how Kubernetes mounts a volume of configuration.
        real, inside = os.path.realpath(path, strict=True), os.path.realpath(folder, strict=True)
        if not Path(real).is_relative_to(inside):
            raise BundleError(f"{path} is a link out of its folder, to {real}")
        # Not blocking: the opening of a pipe would wait for a writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{path} is no regular file")
        with os.fdopen(descriptor, "rb") as file:
            yield file
    except OSError as error:
        kind: type[DragomanError] = BundleError
        if isinstance(error, FileNotFoundError):
            kind = IncompleteBundle
        elif error.errno in _PASSING:
            kind = ResourceUnavailable
        raise kind(f"{missing or f'cannot read {path}'}: {error.strerror}") from error


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    with _opened(folder, name) as file:
        _check_size(path, file, record)
        digest = hashlib.sha256()
        for _ in range(0, record.num_bytes + 1, _CHUNK_BYTES):  # no further, should it grow meanwhile
            digest.update(file.read(_CHUNK_BYTES))
    _check_digest(path, digest.hexdigest(), record)


def _check_size(path: Path, file: BinaryIO, record: FileRecord) -> None:
    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes != record.num_bytes:
        raise IncompleteBundle(
            f"{path} is corrupt: {num_bytes} bytes where the manifest says {record.num_bytes}"
        )


def _check_digest(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise IncompleteBundle(
            f"{path} is corrupt: its SHA-256 is {digest}, the manifest says {record.sha256}"
        )
