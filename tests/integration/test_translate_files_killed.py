"""Shards of `dragoman translate-files` that are killed at moments nobody chose, and go on: each row comes out once."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tests.integration.child_server import ENVIRONMENT, ROOT
from tests.integration.serving import BUNDLES, PATIENCE_S

from dragoman.files import TableModel

SPELL = BUNDLES / "spell" / "2"
NUM_ROWS, NUM_SHARDS, NUM_KILLS = 900, 2, 3
BAD_ROW = 444


def start(data: Path, out: Path, shard: int) -> "subprocess.Popen[str]":
    command = ["translate-files", str(data), "--bundle", str(SPELL), "--out", str(out)]
    command += ["--rows-per-file", "20", "--workers", "1", "--shard", f"{shard}/{NUM_SHARDS}"]
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from dragoman.cli.main import main; sys.exit(main())", *command],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(moment: int, process: "subprocess.Popen[str]", out: Path) -> None:
    """Kill a process once it has made `moment` changes that show in `out`, unless it ends before."""
    seen: set[str] = set()
    give_up_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and len(seen) < moment and time.monotonic() < give_up_s:
        seen |= {path.name for path in out.glob("**/*")}
        time.sleep(0.001)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1], "its processes end with it"


def rows_of(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, object]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_shards_that_are_killed_at_any_moment_give_each_row_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, data, out = random.Random(seed), tmp_path / "data", tmp_path / "out"
    texts = [str(number * 7919 % 9973) for number in range(NUM_ROWS)]
    texts[BAD_ROW] = "7" * 100
    table = pa.table({"n": range(NUM_ROWS), "text": texts})
    data.mkdir()
    pq.write_table(table.slice(0, 390), data / "a.parquet", row_group_size=150)
    lines = (json.dumps(row) + "\n" for row in table.slice(390).to_pylist())
    (data / "b.jsonl").write_text("".join(lines))
    for _ in range(NUM_KILLS):  # both at a time, each killed at a moment of its own
        shards = [start(data, out, shard) for shard in range(NUM_SHARDS)]
        for shard in chance.sample(shards, NUM_SHARDS):
            kill_at(chance.randrange(30), shard, out)
    for ended in [start(data, out, shard) for shard in range(NUM_SHARDS)]:
        _, said = ended.communicate(timeout=PATIENCE_S)
        assert ended.returncode == 0, said

    files = sorted(path for path in out.iterdir() if path.is_file())
    names = [*(f"a-{part:05d}.parquet" for part in range(20)), *(f"b-{part:05d}.jsonl" for part in range(26))]
    assert [path.name for path in files] == names
    found = [(row["n"], row["translation"]) for path in files for row in rows_of(path)]
    answered = TableModel(SPELL)(table).to_pylist()
    assert found == [(row["n"], row["translation"]) for row in answered if row["n"] != BAD_ROW]
    [kept] = (out / "_bad").iterdir()
    [bad] = rows_of(kept)
    assert bad["text"] == texts[BAD_ROW]
    left = {path.name for path in (out / "_dragoman").iterdir()}
    assert left == {"job.json", *(f"lock-{shard}-of-{NUM_SHARDS}" for shard in range(NUM_SHARDS))}
