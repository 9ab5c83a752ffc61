"""The bundle: the contract between export and server. The reader defines it.

    <models>/<name>/<version>/
        bundle.json      what this module describes
        tokenizer.json   a Hugging Face `tokenizers` file whose post-processor yields the model's input
        *.onnx           the graphs named in bundle.json

A bundle is believed only after every file's SHA-256 agrees.
"""

import functools
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from common.files import sha256_of
from common.text import prepare_tokenizer
from server.errors import BundleError

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "Dimensions",
    "FileRecord",
    "GoldenExample",
    "GraphRecord",
    "Limits",
    "Manifest",
    "QualityFigure",
    "SpecialTokens",
]

SCHEMA_VERSION = 2
"""Of bundles that are written. 2: `decode` takes `num_best` and `needs_all`; prompts are read by `extend` alone."""
_READABLE = (1, SCHEMA_VERSION)
MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"

Task = Literal["translation", "generation"]
Precision = Literal["fp32", "fp16", "int8"]


class _Record(BaseModel):
    # Newer writers may add keys; an older reader of the same schema version passes them by.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Dimensions(_Record):
    """Sizes of the network. Caches are (rows, num_kv_heads, tokens, head_size) for each decoder layer."""

    vocabulary_size: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    feed_forward_width: int
    num_encoder_layers: int
    num_decoder_layers: int
    num_parameters: int


class Limits(_Record):
    """Token counts, special tokens included.

    Translation: a source up to `max_source_tokens`, an answer up to `max_output_tokens`. Generation: a prompt up
    to `max_source_tokens`, and prompt plus answer up to `max_context_tokens`.
    """

    max_source_tokens: int
    max_output_tokens: int
    max_context_tokens: int


class SpecialTokens(_Record):
    """Ids with a meaning to the engine."""

    padding: int
    unknown: int
    begin: int
    end: int

    @property
    def without_text(self) -> tuple[int, ...]:
        """Those that stand for no text. No answer holds them: two answers could read the same."""
        return self.padding, self.unknown, self.begin


class GraphRecord(_Record):
    """One ONNX graph: its file and the names it takes and gives, in order."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class FileRecord(_Record):
    """What a file must be, byte for byte."""

    sha256: str
    num_bytes: int


class QualityFigure(_Record):
    """A figure measured at export through the serving backend."""

    metric: str
    value: float
    num_examples: int
    data: str


class GoldenExample(_Record):
    """A greedy answer that this bundle must give again wherever it is loaded."""

    text: str
    max_tokens: int
    token_ids: tuple[int, ...]
    log_probability: float


class Manifest(_Record):
    """The content of bundle.json."""

    schema_version: int
    task: Task
    precision: Precision
    dimensions: Dimensions
    limits: Limits
    special_tokens: SpecialTokens
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    provenance: dict[str, Any]
    quality: tuple[QualityFigure, ...] = ()
    verification: dict[str, Any] = {}
    golden_examples: tuple[GoldenExample, ...]


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

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer lies."""
        return self.path / TOKENIZER_NAME

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer, read once, ready to use.

        Raises:
            BundleError: the file is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer_path))
        except Exception as error:  # the library raises bare exceptions
            raise BundleError(f"{self.tokenizer_path} is not a tokenizer: {error}") from error
        prepare_tokenizer(tokenizer)
        return tokenizer

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the bundle in `folder`.

        Raises:
            BundleError: it is missing, has another schema version, misses a file, or a file's bytes differ
                from what the manifest promises; the message names the file.
        """
        manifest = _read_manifest(folder / MANIFEST_NAME)
        for name, record in manifest.files.items():
            _check_file(folder, name, record)
        needed = {TOKENIZER_NAME, *(graph.file for graph in manifest.graphs.values())}
        for name in sorted(needed - manifest.files.keys()):
            raise BundleError(f"{folder / MANIFEST_NAME}: {name} is used but has no entry under files")
        # Version 1 reads prompts by `prefill`, perhaps by `extend` as well.
        first = {"encode"} if manifest.task == "translation" else {"extend", "prefill"}
        for names in (first, {"decode"}):
            if not names & manifest.graphs.keys():
                raise BundleError(
                    f"{folder / MANIFEST_NAME}: a {manifest.task} bundle needs a graph {min(names)!r}"
                )
        return cls(folder, manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(f"no bundle in {path.parent}: cannot read {path.name}: {error.strerror}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise BundleError(
            f"{path} is not a bundle manifest: {where + ': ' if where else ''}{problem['msg']}"
        ) from error
    if manifest.schema_version not in _READABLE:
        readable = " and ".join(map(str, _READABLE))
        raise BundleError(
            f"{path} has schema version {manifest.schema_version}; this server reads versions {readable}"
        )
    return manifest


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if Path(name).name != name:
        raise BundleError(f"{folder / MANIFEST_NAME}: {name!r} is not a plain file name")
    try:
        num_bytes = path.stat().st_size
        if num_bytes != record.num_bytes:
            raise BundleError(
                f"{path} is corrupt: {num_bytes} bytes where the manifest says {record.num_bytes}"
            )
        digest = sha256_of(path)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if digest != record.sha256:
        raise BundleError(f"{path} is corrupt: its SHA-256 is {digest}, the manifest says {record.sha256}")
