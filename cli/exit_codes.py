"""Exit codes of the command; `dragoman.cli.app` says when which."""

__all__ = ["EXIT_FAILURE", "EXIT_INTERRUPTED", "EXIT_USAGE"]

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
