"""The Open Inference Protocol with Triton's extensions: messages of the protobuf package `inference`.

The two .proto files are those of github.com/triton-inference-server/common (folder protobuf, commit 83adf7cf),
unchanged, under their own licence (LICENSE). `tools/generate_stubs.py` generates the modules beside them.

The descriptors are in a pool of their own. tritonclient and kserve put the same names into protobuf's default pool,
which holds each name once: a process with both would fail at the second import.
"""

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
