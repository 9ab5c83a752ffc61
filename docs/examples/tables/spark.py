"""A column of Parquet files through a bundle, in Spark: python spark.py BUNDLE IN OUT."""

import sys
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.types import FloatType, StringType, StructField, StructType

from dragoman.files import TableModel

bundle, source, out = sys.argv[1:]


def translate(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Translate the batches of a partition."""
    yield from TableModel(bundle, input_column="text").map_batches(batches)


session = SparkSession.builder.getOrCreate()
frame = session.read.parquet(source)
schema = StructType(
    [
        *frame.schema.fields,
        StructField("translation", StringType()),
        StructField("translation_score", FloatType()),
        StructField("translation_finish_reason", StringType()),
        StructField("translation_error", StringType()),
    ]
)
frame.mapInArrow(translate, schema).write.parquet(out)
session.stop()
