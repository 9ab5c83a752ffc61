"""Runs over files that are stopped and go on, that share a folder, and that are refused."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.played_pool import PlayedPool, answer, contents, play_pool

from dragoman.client.results import DecodingOptions
from dragoman.common.errors import OperationError, UsageError
from dragoman.files import run
from dragoman.files.job import Share, locked
from dragoman.files.storage import Folder


@pytest.fixture(autouse=True)
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    play_pool(monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three files: ten parts of up to four rows, of which three have bad rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"text": [f"p{n}" for n in range(13)], "n": range(13)}), folder / "a.parquet")
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"j{n}" + "!" * (n == 5)}) + "\n" for n in range(11))
    )
    (folder / "c.txt").write_text("".join(f"t{n}{'!' * (n in {2, 3, 9})}\n" for n in range(12)))
    return folder


class Killed(BaseException):
    """Stands for a SIGKILL."""


class DyingFolder(Folder):
    """A folder whose process is killed at its `moment`-th act: nothing is cleared up then."""

    moment, num_acts = 0, 0

    def act(self) -> None:
        DyingFolder.num_acts += 1
        if DyingFolder.num_acts == DyingFolder.moment:
            raise Killed

    @contextlib.contextmanager
    def new_file(self, path: str, temporary: str) -> Iterator[Any]:
        self.act()
        with super().new_file(path, temporary) as stream:
            self.act()
            yield stream
            stream.flush()
            self.act()
        self.act()

    def remove(self, path: str) -> None:
        if not DyingFolder.moment or DyingFolder.num_acts < DyingFolder.moment:
            super().remove(path)


def test_a_run_that_is_killed_at_any_moment_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(data, out=tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert len(expected) == 10 + 3
    monkeypatch.setattr(run, "Folder", DyingFolder)
    was_killed, moment = True, 0
    while was_killed:
        moment += 1
        out, DyingFolder.moment, DyingFolder.num_acts = tmp_path / f"out-{moment}", moment, 0
        try:
            answer(data, out=out)
        except Killed:
            there = contents(out)
            assert all(expected[name] == content for name, content in there.items()), "what is there is whole"
        else:
            was_killed = False
        DyingFolder.moment = 0
        summary = answer(data, out=out)
        assert contents(out) == expected
        assert summary.num_parts + summary.num_there == 10
        assert [path.name for path in sorted((out / "_dragoman").iterdir())] == ["job.json", "lock-0-of-1"]
    assert moment == 4 * (1 + 10 + 3) + 1


def test_an_interrupt_leaves_nothing_half_written(data: Path, tmp_path: Path) -> None:
    def interrupt(_what: str, done: float, _total: float) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(data, out=tmp_path / "out", progress=interrupt)
    assert not contents(tmp_path / "out")
    assert len(list((tmp_path / "out" / "_dragoman").iterdir())) == 2


class FullFolder(Folder):
    """A folder whose disk is full after some bytes."""

    @contextlib.contextmanager
    def new_file(self, path: str, temporary: str) -> Iterator[Any]:
        with super().new_file(path, temporary) as stream:
            yield stream
            if path == "b-00001.jsonl":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(data, out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(run, "Folder", FullFolder)
        with pytest.raises(OperationError) as caught:
            answer(data, out=tmp_path / "out")
    assert str(caught.value) == f"{tmp_path / 'out'}/b-00001.jsonl: No space left on device"
    assert "b-00001.jsonl" not in contents(tmp_path / "out")
    assert answer(data, out=tmp_path / "out").num_there == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("total", [2, 3, 8])
def test_shares_make_the_same_files_together(data: Path, tmp_path: Path, total: int) -> None:
    answer(data, out=tmp_path / "whole")
    counts = [
        answer(data, out=tmp_path / "out", share=Share(index, total)).num_parts
        for index in reversed(range(total))
    ]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sum(counts) == 10
    assert all(counts)


def test_two_processes_do_not_make_one_share(data: Path, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    with locked(folder, Share(0, 2)):
        with pytest.raises(OperationError, match=r"another process writes shard 0/2 of .*out now"):
            answer(data, out=tmp_path / "out", share=Share(0, 2))
        answer(data, out=tmp_path / "out", share=Share(1, 2))
    answer(data, out=tmp_path / "out", share=Share(0, 2))


def test_two_processes_without_a_lock_do_no_harm(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an object store: the second one begins and ends while the first one is at its second part."""
    monkeypatch.setattr(run, "locked", lambda *_: contextlib.nullcontext())
    answer(data, out=tmp_path / "whole")
    out, has_run = tmp_path / "out", False

    def run_another(*_: object) -> None:
        nonlocal has_run
        if not has_run and contents(out):
            has_run = True
            answer(data, out=out)

    with contextlib.suppress(OperationError):  # its temporary file was taken away
        answer(data, out=out, progress=run_another)
    assert has_run
    assert contents(out) == contents(tmp_path / "whole")
    assert answer(data, out=out).num_there == 10


def _change_inputs(data: Path) -> None:
    (data / "c.txt").write_text("other\n")


def _remove_input(data: Path) -> None:
    (data / "b.jsonl").unlink()


def _add_input(data: Path) -> None:
    (data / "d.txt").write_text("a\n")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_change_inputs, "c.txt as it was before it was changed"),
        (_remove_input, "b.jsonl, which is no input now"),
        (_add_input, "inputs without "),
    ],
)
def test_changed_inputs_are_refused_by_name(
    data: Path, tmp_path: Path, act: Callable[[Path], None], message: str
) -> None:
    answer(data, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    act(data)
    with pytest.raises(UsageError, match=f"out was begun with .*{message}"):
        answer(data, out=tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": DecodingOptions(beam_size=4)}, "no --beam-size, not --beam-size 4"),
        ({"target_prefix": "x"}, "no --target-prefix, not --target-prefix x"),
        ({"rows_per_part": 5}, "--rows-per-file 4, not --rows-per-file 5"),
        ({"output_column": "en"}, "--output-column translation, not --output-column en"),
    ],
)
def test_other_options_are_refused_by_name(
    data: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    answer(data, out=tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        answer(data, out=tmp_path / "out", **changed)
    assert str(caught.value).startswith(f"{tmp_path / 'out'} was begun with {message}: name another --out")


def test_another_model_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    answer(data, out=tmp_path / "out")
    other = tmp_path / "spell" / "3"
    other.mkdir(parents=True)
    (other / "bundle.json").write_text("{}")
    with pytest.raises(UsageError, match=r"begun with model spell/2 \(\w+\), not spell/3 \(\w+\)"):
        answer(data, out=tmp_path / "out", bundle=other)


def test_other_folders_are_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"full holds files already, 'mine.txt' for one"):
        answer(data, out=tmp_path / "full")
    with pytest.raises(UsageError, match=r"--out .*data holds .*a.parquet, which is an input"):
        answer(data, out=data)
    with pytest.raises(UsageError, match=r"mine.txt is a file: --out names a folder"):
        answer(data, out=tmp_path / "full" / "mine.txt")
    (tmp_path / "c.txt").write_text("a\n")
    with pytest.raises(UsageError, match=r"would be written to the same c-00000.txt: name the folder above"):
        answer(data / "c.txt", tmp_path / "c.txt", out=tmp_path / "out")
    (tmp_path / "spare").mkdir()
    with pytest.raises(UsageError, match="nothing is not there"):
        answer(tmp_path / "nothing", out=tmp_path / "out")
    with pytest.raises(UsageError, match="holds no file that ends with "):
        answer(tmp_path / "spare", out=tmp_path / "out")


def test_samples_without_a_seed_go_on_with_the_seed_that_was_drawn(data: Path, tmp_path: Path) -> None:
    def seed() -> int | None:
        assert PlayedPool.begun is not None
        return PlayedPool.begun.options.seed

    options = DecodingOptions(temperature=0.7)
    with pytest.raises(UsageError, match="--temperature with --shard needs a --seed"):
        answer(data, out=tmp_path / "out", options=options, share=Share(0, 2))
    answer(data, out=tmp_path / "out", options=options)
    first = seed()
    answer(data, out=tmp_path / "out", options=options)
    assert seed() == first
    answer(data, out=tmp_path / "other", options=options)
    assert seed() != first


def test_a_share_is_named_or_that_of_the_pod() -> None:
    assert Share.parse("3/8", {}) == Share(3, 8)
    assert Share.parse("/8", {"JOB_COMPLETION_INDEX": "5"}) == Share(5, 8)
    for text, message in {
        "/8": "--shard /8: JOB_COMPLETION_INDEX is not set; name the index, as in 0/8",
        "8/8": "--shard 8/8: it is INDEX/TOTAL, from 0/TOTAL to TOTAL-1/TOTAL",
        "x": "--shard x: it is INDEX/TOTAL, from 0/TOTAL to TOTAL-1/TOTAL",
        "-1/2": "--shard -1/2: it is INDEX/TOTAL, from 0/TOTAL to TOTAL-1/TOTAL",
    }.items():
        with pytest.raises(UsageError) as caught:
            Share.parse(text, {})
        assert str(caught.value) == message
    with pytest.raises(UsageError, match="--shard 8/8"):
        Share.parse("/8", {"JOB_COMPLETION_INDEX": "8"})


def test_files_of_an_object_store(tmp_path: Path, data: Path) -> None:
    """The same by a store that pyarrow knows as no local folder, as all that fsspec has."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket", recursive=True) if memory.exists("/bucket") else None
    for path in data.iterdir():
        memory.pipe(f"/bucket/in/{path.name}", path.read_bytes())
    answer(data, out=tmp_path / "whole")
    source, out = "fsspec+memory:///bucket/in", "fsspec+memory:///bucket/out"
    counts = [answer(source, out=out, share=Share(index, 2)).num_parts for index in range(2)]
    assert sum(counts) == 10
    assert answer(source, out=out).num_there == 10
    expected = contents(tmp_path / "whole")
    found = {name.removeprefix("/bucket/out/"): memory.cat(name) for name in memory.find("/bucket/out")}
    assert {name for name in found if not name.startswith("_dragoman")} == expected.keys()
    assert all(found[name] == content for name, content in expected.items() if not name.startswith("_bad"))
