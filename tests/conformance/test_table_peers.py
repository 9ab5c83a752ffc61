"""`TableModel` in Ray Data and in Spark: the programs that docs/files.md shows, unmodified.

`make table-peers` installs both into an environment of their own. Spark also needs Java 17 or newer.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integration.serving import BUNDLES

from dragoman.files import TableModel

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "tables"
PEERS = Path(os.environ.get("TABLE_PEERS", "")).resolve()
SPELL = BUNDLES / "spell" / "2"
PATIENCE_S = 280.0

pytestmark = pytest.mark.skipif(
    "TABLE_PEERS" not in os.environ, reason="make table-peers installs Ray and Spark and runs it"
)


def run_example(name: str, *arguments: object, **environment: str) -> None:
    """Run a program of the examples in the environment that `make table-peers` makes, as if it was activated."""
    path = f"{PEERS / 'bin'}{os.pathsep}{os.environ['PATH']}"  # Spark's workers are the first python3 of it
    done = subprocess.run(
        [str(PEERS / "bin" / "python"), str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": "", "PATH": path, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files in a folder: numbers to spell, a text over the model's limit, one that is blank, and a null."""
    folder = tmp_path_factory.mktemp("tables")
    texts = [str(number * 7919 % 9973) for number in range(3000)]
    rows = pa.table({"n": range(3003), "text": [*texts, "7" * 100, " ", None]})
    pq.write_table(rows.slice(0, 1000), folder / "a.parquet", row_group_size=300)
    pq.write_table(rows.slice(1000), folder / "b.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(tables: Path) -> pa.Table:
    """The same tables, answered in this process."""
    answered = TableModel(SPELL)(pq.read_table(tables))
    errors = answered.column("translation_error").to_pylist()
    assert errors[3000:] == ["101 tokens are more than 32, the model's limit", None, None]
    assert answered.column("translation").null_count == 3
    return answered


def check_answers(out: Path, expected: pa.Table) -> None:
    """Each row is there once, with its answer; scores may differ in their last digits."""
    found = pq.read_table(out).sort_by("n")
    assert found.schema.names == expected.schema.names
    score = expected.schema.get_field_index("translation_score")
    assert found.remove_column(score).to_pylist() == expected.remove_column(score).to_pylist()
    scores = [each.column(score).drop_null().to_pylist() for each in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.timeout(300)
def test_ray_data_maps_batches(tables: Path, expected: pa.Table, tmp_path: Path) -> None:
    run_example("ray_data.py", SPELL, tables, tmp_path / "out", RAY_USAGE_STATS_ENABLED="0")
    check_answers(tmp_path / "out", expected)


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17 or newer: no java on PATH")
@pytest.mark.timeout(300)
def test_spark_maps_in_arrow(tables: Path, expected: pa.Table, tmp_path: Path) -> None:
    run_example("spark.py", SPELL, tables, tmp_path / "out", SPARK_LOCAL_IP="127.0.0.1")
    check_answers(tmp_path / "out", expected)
