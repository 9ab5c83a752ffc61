"""Exit 0 when a package index answers within a few seconds. Used by the Makefile to choose where torch comes from."""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0

try:
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/torch/", timeout=TIMEOUT_S) as answer:  # noqa: S310
        sys.exit(answer.status != 200)
except (urllib.error.URLError, OSError):
    sys.exit(1)
