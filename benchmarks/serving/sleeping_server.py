"""`dragoman serve` with graphs that sleep: `python -m benchmarks.serving.sleeping_server --models DIR ...`."""

import sys

from benchmarks.serving.sleeping_graphs import install

from dragoman.server.__main__ import main

if __name__ == "__main__":
    install()
    sys.exit(main())
