"""Hosts on a network of their own: network namespaces at one switch.

The program runs in namespaces of its own, too (`enter_own_network`). So names and addresses are free, nothing of it can
be seen from outside, and all of it is gone when the last process in it has ended.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Network", "enter_own_network", "why_impossible"]

_INSIDE = "LOAD_NETWORK"
_OWN = ("unshare", "--net", "--mount")
_NAMESPACES = Path("/run/netns")
_SUBNET = "10.213.78"


def why_impossible() -> str:
    """Why no host can be made here; empty where they can be."""
    for program in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian packages util-linux, mount and iproute2)"
    _NAMESPACES.parent.mkdir(exist_ok=True)
    tried = (
        "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip netns add host && ip link add type bridge"
        " && ip link add ours type veth peer name theirs netns host"
    )
    tried_out = subprocess.run([*_OWN, "sh", "-c", tried], capture_output=True, text=True, check=False)
    return (
        f"network namespaces cannot be made here: {tried_out.stderr.strip()}" if tried_out.returncode else ""
    )


def enter_own_network(module: str, arguments: Sequence[str]) -> None:
    """Replace this process by the same program in namespaces of its own, unless it is there already."""
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        os.execvp(_OWN[0], [*_OWN, sys.executable, "-m", module, *arguments])


class Network:
    """Hosts by their names, which all of them can look up. This process is a host beside them.

    Attributes:
        addresses: of the hosts, by name.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """Make the hosts. `folder` is for files that have to stay.

        Raises:
            subprocess.CalledProcessError: this process is not in namespaces of its own.
        """
        self.addresses = {name: f"{_SUBNET}.{number}" for number, name in enumerate(names, 11)}
        _NAMESPACES.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "tmpfs", str(_NAMESPACES))
        _run(*["ip", "link", "set", "lo", "up"])
        _run(*["ip", "link", "add", "switch", "type", "bridge"])
        _run("ip", "address", "add", f"{_SUBNET}.1/24", "dev", "switch")
        _run(*["ip", "link", "set", "switch", "up"])
        for name in names:
            self._add(name)
        hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        hosts.write_text("\n".join([*lines, ""]))
        _run("mount", "--bind", str(hosts), "/etc/hosts")

    def enter(self, name: str) -> list[str]:
        """What runs a command on that host when it stands before it."""
        return ["nsenter", f"--net={_NAMESPACES / name}"]

    def cut_off(self, name: str) -> None:
        """No packet comes to that host or from it any more."""
        _run("ip", "link", "set", self._port(name), "down")

    def join(self, name: str) -> None:
        """The host can be reached again."""
        _run("ip", "link", "set", self._port(name), "up")

    def _add(self, name: str) -> None:
        port, inside = self._port(name), ("ip", "-n", name)
        _run("ip", "netns", "add", name)
        _run(*f"ip link add {port} type veth peer name eth0 netns {name}".split())
        _run("ip", "link", "set", port, "master", "switch", "up")
        _run(*inside, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*inside, "link", "set", device, "up")

    def _port(self, name: str) -> str:
        return f"port{self.addresses[name].rpartition('.')[2]}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
