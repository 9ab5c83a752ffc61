"""What is in a folder, to tell whether a command left it as it was."""

from pathlib import Path

__all__ = ["Tree", "tree"]

Tree = dict[str, bytes | str | None]


def tree(folder: Path) -> Tree:
    """All that is in a folder, hidden things too: contents of files, where links lead, None for folders."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }
