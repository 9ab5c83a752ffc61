"""HTTP proxies between a client and its server. gRPC's core takes them from the environment, without a word.

It sends even calls to this machine through them. So a channel to this machine is told to use none, and an error of any
other channel says which variable named the proxy.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

__all__ = ["is_loopback", "proxy_in_use"]

# In the order in which gRPC's core looks: https://grpc.github.io/grpc/core/md_doc_environment_variables.html
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
_SCHEME = re.compile(r"(?P<scheme>[a-z0-9-]+):(?://[^/]*/)?(?=[^/])")


def is_loopback(target: str) -> bool:
    """Whether every address of `target` is on this machine: localhost, a loopback address or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    if target.startswith("xds:"):  # a control plane says which addresses the name has
        return False
    return all(map(_is_loopback_host, _hosts(target)))


def proxy_in_use(target: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy through which gRPC reaches `target`, as `variable=host:port`, or None where it uses none.

    A user name and a password in the variable are left out.
    """
    if is_loopback(target):
        return None
    for variable in _PROXY_VARIABLES:
        if environment.get(variable):
            break
    else:
        return None
    exceptions = next((environment[name] for name in _EXCEPTION_VARIABLES if environment.get(name)), "")
    suffixes = [entry.strip() for entry in exceptions.split(",") if entry.strip()]
    if all(any(host.endswith(suffix) for suffix in suffixes) for host in _hosts(target)):
        return None
    proxy = environment[variable]
    return f"{variable}={urlsplit(proxy).netloc.rpartition('@')[2] or proxy.rpartition('@')[2]}"


def _hosts(target: str) -> Iterator[str]:
    scheme = _SCHEME.match(target)
    known = scheme is not None and scheme["scheme"] in {"dns", "ipv4", "ipv6", "passthrough", "xds", "vsock"}
    addresses = target[scheme.end() :] if scheme is not None and known else target
    for address in addresses.split(","):
        yield address.rpartition(":")[0].strip("[]") or address


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
