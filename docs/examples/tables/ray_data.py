"""A column of Parquet files through a bundle, in Ray Data: python ray_data.py BUNDLE IN OUT."""

import sys

import ray.data

from dragoman.files import TableModel

bundle, source, out = sys.argv[1:]

dataset = ray.data.read_parquet(source).map_batches(
    TableModel,
    fn_constructor_args=[bundle],
    fn_constructor_kwargs={"input_column": "text"},
    batch_format="pyarrow",
    batch_size=2048,
    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),  # a core each
)
dataset.write_parquet(out)
