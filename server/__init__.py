"""Serving: bundles in, gRPC out. `dragoman.server.app` puts it together; docs/architecture.md follows one request."""

import os

# onnxruntime reports usage to its maker unless told not to before it is imported (its Privacy.md). What this server
# does is its owner's business; ORT_DISABLE_TELEMETRY=0 turns the reports back on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
