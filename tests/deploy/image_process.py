"""What a container runtime does, for an unpacked image: `python image_process.py ROOT MODELS CONFIG COMMAND...`.

It runs as process 1 of new namespaces (`unshare --mount --pid --fork`). COMMAND takes its place: as user 10001, without
any capability, on the files of ROOT, of which none can be written, and without a shell among them. It gets this
process's environment.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

USER = 10001
DEVICES = ("null", "zero", "random", "urandom")
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _bind_read_only(source: Path, target: Path) -> None:
    _mount("--bind", source, target)
    _mount("-o", "remount,bind,ro,nosuid", target)


def _prepare(root: Path, models: Path, config: Path) -> None:
    for folder in ("models", "etc/dragoman"):  # a runtime makes these as well
        (root / folder).mkdir(exist_ok=True, mode=0o755)
    _bind_read_only(root, root)
    _bind_read_only(models, root / "models")
    _bind_read_only(config, root / "etc" / "dragoman")
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for device in DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", Path("/dev", device), root / "dev" / device)
    nothing = root / "dev" / "nothing"
    nothing.touch(mode=0o444)
    lines = (root / "etc" / "shells").read_text().splitlines()
    shells = {root / line[1:] for line in lines if line.startswith("/")}
    for shell in {
        each.resolve() for each in shells if not each.is_symlink()
    }:  # /bin may be a link to /usr/bin
        _mount("--bind", nothing, shell)
    _mount("-o", "remount,ro", root / "dev")


def _drop_privileges() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def main() -> None:
    root, models, config = (Path(each).resolve() for each in sys.argv[1:4])
    _prepare(root, models, config)
    os.chroot(root)
    os.chdir("/")
    _drop_privileges()
    os.execvp(sys.argv[4], sys.argv[4:])


if __name__ == "__main__":
    main()
