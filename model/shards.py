"""Token ids on disk: shards of flat arrays, memory-mapped, so that a corpus may be larger than memory.

A folder of shards holds an `index.json`, written last, and two numpy files a shard: `00000.tokens.npy`, all its
sequences one after the other, and `00000.offsets.npy`, where each begins, and where the last one ends.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dragoman.common.errors import OperationError
from dragoman.common.files import atomic_write
from dragoman.common.settings import Settings

__all__ = ["MIXED_SHARDS", "SHARD_TOKENS", "Shard", "ShardWriter", "Shards", "remove_shards"]

SHARD_TOKENS: Final = 1 << 24  # 32 MiB where the vocabulary fits 16 bits
MIXED_SHARDS: Final = 4  # so many are open, and shuffled together, at a time

_INDEX_FILE: Final = "index.json"


class Shard(NamedTuple):
    """Token sequences, one after the other."""

    tokens: NDArray[Any]  # (T,), unsigned
    offsets: NDArray[Any]  # (N + 1,)

    def sequence(self, number: int) -> NDArray[Any]:
        """The tokens of sequence `number`."""
        return self.tokens[int(self.offsets[number]) : int(self.offsets[number + 1])]

    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each sequence (N,)."""
        offsets = self.offsets.astype(np.int64)
        return offsets[1:] - offsets[:-1]


class _ShardEntry(Settings):
    name: str
    num_sequences: int
    num_tokens: int
    num_bytes: tuple[int, int]  # of the two files
    sha256: str  # of tokens and offsets

    def is_whole(self, folder: Path) -> bool:
        try:
            return self.num_bytes == tuple(file.stat().st_size for file in _files(folder, self.name))
        except OSError:
            return False


class _Index(Settings):
    schema_version: Literal[1] = 1
    made_from: str
    num_too_long: int
    shards: tuple[_ShardEntry, ...]


class Shards:
    """Shards in a row, of which at most `MIXED_SHARDS` are open.

    Attributes:
        open: gives a shard by its number.
        sequence_starts: (shards + 1,): how many sequences stand before each shard, and in all.
        token_starts: (shards + 1,): the same for tokens.
        num_too_long: examples that were left out when the shards were written.
    """

    def __init__(
        self,
        open_shard: Callable[[int], Shard],
        sizes: Sequence[tuple[int, int]],
        *,
        digests: Sequence[str] | None = None,
        num_too_long: int = 0,
    ) -> None:
        """`sizes` are the sequences and the tokens of each shard, `digests` hashes of their content, if known."""
        self.open = functools.lru_cache(MIXED_SHARDS)(open_shard)
        starts = np.zeros((len(sizes) + 1, 2), dtype=np.int64)
        np.cumsum(np.array(sizes, dtype=np.int64).reshape(-1, 2), axis=0, out=starts[1:])
        self.sequence_starts, self.token_starts = starts[:, 0].copy(), starts[:, 1].copy()
        self._digests = digests
        self.num_too_long = num_too_long

    def __len__(self) -> int:
        return len(self.sequence_starts) - 1

    def digest(self) -> str:
        """A hash of all tokens, and of where shards and sequences begin."""
        digests = self._digests or [_digest(self.open(number)) for number in range(len(self))]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @classmethod
    def in_memory(cls, sequences: Iterable[Sequence[int]]) -> "Shards":
        """All in one shard."""
        shard = _flatten(list(sequences), np.dtype(np.int64))
        return cls(lambda _: shard, [(len(shard.offsets) - 1, len(shard.tokens))])

    @classmethod
    def on_disk(cls, folder: Path, made_from: str) -> "Shards | None":
        """The shards in `folder`, if they are all there, whole, and made from what is wanted."""
        try:
            index = _Index.model_validate_json((folder / _INDEX_FILE).read_bytes())
        except (OSError, ValidationError):
            return None  # none, torn or of another release: they are made anew
        if index.made_from != made_from or not all(entry.is_whole(folder) for entry in index.shards):
            return None

        def open_shard(number: int) -> Shard:
            tokens, offsets = _files(folder, index.shards[number].name)
            try:
                # As plain arrays: slicing numpy's memmap class takes four times as long.
                return Shard(*(np.asarray(np.load(file, mmap_mode="r")) for file in (tokens, offsets)))
            except (OSError, ValueError) as error:
                raise OperationError(f"cannot read {tokens} or {offsets.name}: {error}") from error

        return cls(
            open_shard,
            [(entry.num_sequences, entry.num_tokens) for entry in index.shards],
            digests=[entry.sha256 for entry in index.shards],
            num_too_long=index.num_too_long,
        )


class ShardWriter:
    """Writes shards one after the other, in place of what was in a folder, and at the end the index.

    Raises:
        OperationError: the disk is full or the place cannot be written.
    """

    def __init__(self, folder: Path, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        """A shard ends with the call of `add` by which it reaches `shard_tokens`."""
        remove_shards(folder)
        self._folder, self.shard_tokens = folder, shard_tokens
        self._dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
        self._entries: list[_ShardEntry] = []
        self._parts: list[Shard] = []

    def add(self, sequences: Sequence[Sequence[int]]) -> None:
        """Put sequences that belong together at the end of the shard."""
        self._parts.append(_flatten(sequences, self._dtype))
        if sum(len(part.tokens) for part in self._parts) >= self.shard_tokens:
            self._end_shard()

    def finish(self, made_from: str, num_too_long: int) -> None:
        """Write what is left, and the index."""
        self._end_shard()
        index = _Index(made_from=made_from, num_too_long=num_too_long, shards=tuple(self._entries))
        atomic_write(self._folder / _INDEX_FILE, index.model_dump_json(indent=2) + "\n")

    def _end_shard(self) -> None:
        parts, self._parts = [part for part in self._parts if len(part.offsets) > 1], []
        if not parts:
            return
        starts = [0, *itertools.accumulate(len(part.tokens) for part in parts)]
        begins = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        shard = Shard(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([*begins, [starts[-1]]]).astype(np.uint32),
        )
        del parts  # not three times in memory
        name = f"{len(self._entries):05d}"
        sizes = []
        for file, array in zip(_files(self._folder, name), shard, strict=True):
            content = _npy(array)
            atomic_write(file, content)
            sizes.append(len(content))
        self._entries.append(
            _ShardEntry(
                name=name,
                num_sequences=len(shard.offsets) - 1,
                num_tokens=len(shard.tokens),
                num_bytes=(sizes[0], sizes[1]),
                sha256=_digest(shard),
            )
        )


def remove_shards(folder: Path) -> None:
    """Remove the shards and the index in a folder and, if nothing else is in it, the folder.

    Raises:
        OperationError: they cannot be removed.
    """
    try:
        for pattern in (_INDEX_FILE, "*.npy", f".{_INDEX_FILE}.*", ".*.npy.*"):  # the hidden ones a kill left
            for path in folder.glob(pattern):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise OperationError(f"cannot remove the shards in {folder}: {error.strerror}") from error


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.tokens.npy", folder / f"{name}.offsets.npy"


def _flatten(sequences: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> Shard:
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)), out=offsets[1:])
    tokens = np.fromiter(itertools.chain.from_iterable(sequences), dtype=dtype, count=int(offsets[-1]))
    return Shard(tokens, offsets)


def _digest(shard: Shard) -> str:
    """The same in memory and on disk, whatever the numbers' width."""
    digest = hashlib.sha256()
    for array in shard:
        for start in range(0, len(array), 1 << 20):
            digest.update(array[start : start + (1 << 20)].astype(np.uint32).data)
    return digest.hexdigest()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
