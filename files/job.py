"""What a run was begun with: the same command goes on with it, and another one is refused."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from dragoman.common.errors import OperationError, UsageError
from dragoman.files.storage import Folder, InputFile

__all__ = ["BAD_FOLDER", "STATE_FOLDER", "WHOLE", "Job", "Share", "locked", "model_identity"]

STATE_FOLDER = "_dragoman"
BAD_FOLDER = "_bad"
_RECORD = f"{STATE_FOLDER}/job.json"
_FORMAT = 1
_MANIFEST = "bundle.json"
"""Of a bundle; its reader takes long to import."""
_MAX_NAMED = 3
_SPREAD = 1_000_003
"""A prime: shares take turns at the parts of a file, and at files of a part each."""


@dataclass(frozen=True)
class Share:
    """The parts that a run makes: number `index` of every `total`."""

    index: int = 0
    total: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.total}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Self:
        """The share that INDEX/TOTAL means. Of /TOTAL the index is that of the pod in an Indexed Job of Kubernetes.

        Raises:
            UsageError: it means none.
        """
        first, slash, second = text.partition("/")
        if slash and not first:
            first = environment.get("JOB_COMPLETION_INDEX", "")
            if not first:
                raise UsageError(
                    f"--shard {text}: JOB_COMPLETION_INDEX is not set; name the index, as in 0{text}"
                )
        if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            shown = text if text.partition("/")[0] else f"{first}{text}"
            raise UsageError(f"--shard {shown}: it is INDEX/TOTAL, from 0/TOTAL to TOTAL-1/TOTAL")
        return cls(int(first), int(second))

    def takes(self, file: int, part: int) -> bool:
        """Whether this share has part number `part` of file number `file`."""
        return (file * _SPREAD + part) % self.total == self.index

    @property
    def temporary(self) -> str:
        """How paths of files begin that this share is writing."""
        return f"{STATE_FOLDER}/part-{self.index}-of-{self.total}-"


WHOLE = Share()
"""All parts."""


@dataclass(frozen=True)
class Job:
    """What decides on the content of the output.

    Attributes:
        model: name, version and a hash of the bundle.
        settings: options by the names that the command has for them.
        inputs: by name: the size and the time of the last writing.
        seed: that a run without one has drawn; None for a run that draws nothing.
    """

    model: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, list[int | None]]
    seed: int | None = None

    @classmethod
    def of(
        cls, model: dict[str, str], settings: Mapping[str, Any], files: Sequence[InputFile], seed: int | None
    ) -> Self:
        """The job of these options and files."""
        given = {name: value for name, value in settings.items() if value not in (None, "", [], ())}
        inputs = {_place(file): [file.num_bytes, file.modified_ns] for file in files}
        return cls(model, json.loads(json.dumps(given)), inputs, seed)

    def begin(self, folder: Folder, share: Share) -> "Job":
        """Check that `folder` is this job's or new, before anything is computed; returns the job as it was begun.

        Raises:
            UsageError: it was begun with something else, which is named, or holds other files.
        """
        content = folder.read(_RECORD)
        if content is not None:
            try:
                record = json.loads(content)
                if record.pop("format") != _FORMAT:
                    raise UsageError(f"{folder}/{_RECORD} is of another release: name another --out")
                begun = Job(**record)
            except (ValueError, TypeError, KeyError) as error:
                raise UsageError(f"{folder}/{_RECORD} cannot be read: name another --out") from error
            self._check_same(begun, folder)
            return begun
        others = [path for path in folder.files() if not path.startswith(f"{STATE_FOLDER}/")]
        if others:
            raise UsageError(f"{folder} holds files already, {others[0]!r} for one: name a new folder")
        if share.total > 1 and self.seed is not None and "seed" not in self.settings:
            raise UsageError(
                "--temperature with --shard needs a --seed, so that all shards draw by the same one"
            )
        return self

    def write(self, folder: Folder, share: Share) -> None:
        """Record what the output is begun with, where nothing is recorded."""
        if folder.read(_RECORD) is not None:
            return
        content = json.dumps({"format": _FORMAT, **vars(self)}, indent=1, ensure_ascii=False)
        with folder.new_file(_RECORD, share.temporary) as file:
            file.write(content.encode())

    def _check_same(self, begun: "Job", folder: Folder) -> None:
        """Refuse to go on with what was begun differently."""
        wanted = replace(self, seed=begun.seed)
        if wanted == begun:
            return
        differences = (
            [f"model {_shown(begun.model)}, not {_shown(self.model)}"] if self.model != begun.model else []
        )
        for name in sorted(begun.settings.keys() | self.settings.keys()):
            before, now = begun.settings.get(name), self.settings.get(name)
            if before != now:
                option = f"--{name.replace('_', '-')}"
                differences.append(f"{_option(option, before)}, not {_option(option, now)}")
        for name in sorted(begun.inputs.keys() | self.inputs.keys()):
            if name not in self.inputs:
                differences.append(f"{name}, which is no input now")
            elif name not in begun.inputs:
                differences.append(f"inputs without {name}")
            elif begun.inputs[name] != self.inputs[name]:
                differences.append(f"{name} as it was before it was changed")
        more = f", and {len(differences) - _MAX_NAMED} more" if len(differences) > _MAX_NAMED else ""
        named = "; ".join(differences[:_MAX_NAMED])
        raise UsageError(
            f"{folder} was begun with {named}{more}: name another --out, or run the first command again"
        )


@contextlib.contextmanager
def locked(folder: Folder, share: Share) -> Iterator[None]:
    """Let no second process make the same share meanwhile, as far as the folder's store has locks.

    Without a lock two such processes do the work twice. The files are the same.

    Raises:
        OperationError: another process makes it.
    """
    if not folder.is_local:
        yield
        return
    folder.make(STATE_FOLDER)
    path = folder.local_path(f"{STATE_FOLDER}/lock-{share.index}-of-{share.total}")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperationError(f"another process writes shard {share} of {folder} now") from error
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL}:
                raise
        yield
    finally:
        os.close(handle)


def model_identity(bundle: Path) -> dict[str, str]:
    """What tells a bundle from all others: its manifest has the hashes of all its files.

    Raises:
        UsageError: the folder holds no bundle.
    """
    try:
        digest = sha256((bundle / _MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{bundle} is no bundle: {_MANIFEST}: {error.strerror}") from error
    folder = bundle.absolute()
    return {"name": folder.parent.name, "version": folder.name, "sha256": digest}


def _place(file: InputFile) -> str:
    store = file.store.type_name
    return file.path if store == "local" else f"{store}:{file.path}"


def _shown(model: Mapping[str, str]) -> str:
    return f"{model['name']}/{model['version']} ({model['sha256'][:12]})"


def _option(option: str, value: Any) -> str:
    return f"no {option}" if value is None else f"{option} {value}"
