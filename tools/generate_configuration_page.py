"""Write docs/configuration.md from the settings classes, or check that it is current."""

import argparse
import sys
from pathlib import Path

from dragoman.common.settings_reference import as_markdown, sections_of
from dragoman.model.recipe import Recipe
from dragoman.server.config import ServerSettings

HEADER = """# Configuration

Every key of `server.toml` and of a recipe, with its default and its meaning. This page comes from the settings classes:
`make configuration` writes it. `dragoman config server` and `dragoman config recipe` print the same as TOML.

`--set SECTION.KEY=VALUE` changes one key on the command line of `dragoman serve` and `dragoman train`.
"""


def configuration_page() -> str:
    """The page, as Markdown."""
    parts = [
        HEADER,
        "## server.toml\n",
        as_markdown(sections_of(ServerSettings)),
        "## A recipe\n",
        as_markdown(sections_of(Recipe)),
    ]
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="docs/configuration.md")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    options = parser.parse_args()
    if not options.check:
        options.page.write_text(configuration_page(), encoding="utf-8")
    elif options.page.read_text(encoding="utf-8") != configuration_page():
        sys.exit(f"{options.page} is stale: run `make configuration`")


if __name__ == "__main__":
    main()
