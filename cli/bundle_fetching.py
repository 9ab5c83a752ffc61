"""Bundles from a web server into a models folder: compared with a hash, unpacked, there whole or not at all."""

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from dragoman.common.errors import OperationError, UsageError
from dragoman.common.settings import Settings, read_toml

__all__ = ["Archive", "fetch_bundle", "read_list"]

_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 20
_MANIFEST = "bundle.json"


class Archive(Settings):
    """A tar file that holds one bundle, bundle.json at its top."""

    url: str
    """Where it is: http:// or https://."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the tar file, as `sha256sum` prints it."""


_PLACE = TypeAdapter(Annotated[str, Field(pattern="^[^/.][^/]*/[0-9]{1,18}$")])


def read_list(path: Path) -> dict[str, Archive]:
    """The archive of each NAME/VERSION that a TOML file lists.

    Raises:
        SettingsError: it is not TOML, or a value is of the wrong kind.
        UsageError: it lists nothing, a name is none, or an address is of no kind that can be fetched.
    """
    archives = {}
    for place, values in read_toml(path).items():
        try:
            _PLACE.validate_python(place)
        except ValidationError:
            raise UsageError(f'{path}: {place!r} is not of the form "NAME/VERSION"') from None
        if not isinstance(values, dict):
            raise UsageError(f"{path}: {place!r} needs url and sha256")
        archive = Archive.load(values, source=f"{path}: {place}")
        if urllib.parse.urlsplit(archive.url).scheme not in ("http", "https"):
            raise UsageError(f"{path}: {place}: {archive.url!r} is no address of http:// or https://")
        archives[place] = archive
    if not archives:
        raise UsageError(f"{path} lists no bundle")
    return archives


def fetch_bundle(archive: Archive, target: Path) -> int | None:
    """Put the bundle of an archive at `target`, MODELS/NAME/VERSION; returns the archive's size in bytes.

    A bundle that is there already stays as it is, and the result is None: a version of a model never changes.

    Raises:
        UsageError: something else is there.
        OperationError: it cannot be fetched or written, or is not what the hash says, or no archive of a bundle.
    """
    if (target / _MANIFEST).is_file():
        return None
    if target.exists():
        raise UsageError(f"{target} is there and is no bundle")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that a rename is enough; a server passes over names that begin with a dot.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            file, content = Path(scratch) / "archive", Path(scratch) / "bundle"
            size = _download(archive, file)
            _unpack(file, content, archive.url)
            content.rename(target)
    except (OSError, shutil.Error) as error:
        raise OperationError(f"cannot write {target}: {error.strerror or error}") from error
    return size


def _download(archive: Archive, file: Path) -> int:
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as sink:
        for block in _blocks(archive.url):
            digest.update(block)
            size += len(block)
            sink.write(block)
    if digest.hexdigest() != archive.sha256:
        raise OperationError(
            f"{archive.url}: its SHA-256 is {digest.hexdigest()}, the list says {archive.sha256}"
        )
    return size


def _blocks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  read_list looks at the scheme
            while block := answer.read(_BLOCK_BYTES):
                yield block
            _check_all_came(answer)
    except urllib.error.HTTPError as error:
        raise OperationError(f"cannot fetch {url}: HTTP status {error.code} {error.reason}") from error
    except http.client.IncompleteRead as error:
        raise OperationError(
            f"cannot fetch {url}: the connection ended {error.expected} bytes too early"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise OperationError(f"cannot fetch {url}: {reason}") from error


def _check_all_came(answer: http.client.HTTPResponse) -> None:
    """Reading block by block ends without an error where the connection ends."""
    if answer.length:  # what the server said, less what came
        raise http.client.IncompleteRead(b"", answer.length)


def _unpack(file: Path, folder: Path, url: str) -> None:
    folder.mkdir()
    try:
        with tarfile.open(file) as archive:
            # Nothing outside of the folder, no device, no link that leads out.
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise OperationError(f"cannot unpack {url}: {error}") from error
    if not (folder / _MANIFEST).is_file():
        raise OperationError(f"{url} is no archive of a bundle: it has no {_MANIFEST} at its top")
