"""Rows that are read, sent and submitted together: enough to sort them by length, and no more than fit into memory."""

import queue
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integration.serving import BUNDLES
from tests.unit.played_pool import answer, play_pool

from dragoman.files import TableModel
from dragoman.files.blocks import BLOCK_BYTES, RowBlock
from dragoman.files.host import _take_window
from dragoman.files.offline_model import WINDOW_ROWS
from dragoman.files.parquet import ParquetTables
from dragoman.files.pool import depth
from dragoman.files.protocol import Block
from dragoman.server.engine.offline import OfflineLane
from dragoman.server.engine.sequence import LaneSequence

SPELL = BUNDLES / "spell" / "2"


def test_a_worker_has_a_second_of_blocks_within_bounds() -> None:
    assert depth(0, 5.0) == 2
    assert depth(5, 10.0) == 2
    assert depth(40, 5.0) == 8
    assert depth(1000, 5.0) == 16
    assert depth(1, 0.0) == 16


def test_a_worker_takes_the_blocks_that_are_there_up_to_a_window() -> None:
    blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
    assert _take_window(blocks, waits=False) == []
    for number in range(20):
        blocks.put(Block(number, ["1"] * 256, number * 256))
    assert [block.number for block in _take_window(blocks, waits=True)] == list(range(8))
    assert [block.number for block in _take_window(blocks, waits=False)] == list(range(8, 16))
    assert [block.number for block in _take_window(blocks, waits=True)] == list(range(16, 20))
    assert _take_window(blocks, waits=False) == []


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what a lane gets, in that order."""
    lengths: list[int] = []
    submit = OfflineLane.submit

    def note(self: OfflineLane, *sequences: LaneSequence) -> None:
        lengths.extend(sequence.num_input_tokens for sequence in sequences)
        submit(self, *sequences)

    monkeypatch.setattr(OfflineLane, "submit", note)
    return lengths


@pytest.mark.parametrize("batch_rows", [10, 1000, 5000])
def test_a_window_of_rows_is_sorted_by_length_whatever_the_batches_are(
    batch_rows: int, submitted: list[int]
) -> None:
    texts = [str(number * 7919 % 9973) for number in range(5000)]
    table = pa.table({"text": texts, "n": range(5000)})
    model = TableModel(SPELL)
    submitted.clear()  # the bundle's own examples
    answered = list(model.map_batches(iter(table.to_batches(max_chunksize=batch_rows))))
    found = pa.Table.from_batches(answered)
    assert found.select(["text", "n"]) == table
    assert found.column("translation").null_count == 0
    # Where a length grows a window begins: it ended with the shortest texts of the one before.
    begins = [at for at in range(1, 5000) if submitted[at] > submitted[at - 1]]
    assert (
        begins
        == {
            10: [2050, 4100],
            1000: [3000],
            5000: [WINDOW_ROWS, 2 * WINDOW_ROWS],
        }[batch_rows]
    )


def test_wide_rows_make_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_pool(monkeypatch)
    blobs = [bytes([number]) * (BLOCK_BYTES // 8) for number in range(60)]
    table = pa.table({"text": [f"t{number}" for number in range(60)], "blob": blobs})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False, row_group_size=25)
    read, sizes = ParquetTables.read, list[int]()

    def note(self: ParquetTables, *arguments: object) -> object:
        for block in read(self, *arguments):  # type: ignore[arg-type]
            assert isinstance(block, RowBlock)
            sizes.append(block.kept.num_rows)
            yield block

    monkeypatch.setattr(ParquetTables, "read", note)
    answer(tmp_path / "a.parquet", out=tmp_path / "out", rows_per_part=30)
    assert max(sizes) == 7, "eight rows are over a block, with what Parquet adds"
    assert sum(sizes) == 60
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in files] == [30, 30]
    assert pa.concat_tables(map(pq.read_table, files)).column("blob") == table.column("blob")
