"""Generate the Python stubs of the public contract beside their .proto files, or check that they are current."""

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc


def generate(proto: Path, out: Path) -> None:
    """Write messages, types and, for files that define a service, gRPC stubs."""
    files = sorted(proto.glob("dragoman/v1/*.proto"))
    services = [file for file in files if "\nservice " in file.read_text(encoding="utf-8")]
    well_known = resources.files("grpc_tools").joinpath("_proto")
    plugins = Path(sys.executable).parent
    common = [
        "protoc",
        f"-I{proto}",
        f"-I{well_known}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
    ]
    messages = [*common, f"--python_out={out}", f"--mypy_out=quiet:{out}", *map(str, files)]
    stubs = [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *map(str, services)]
    for arguments in (messages, stubs):
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed")


def stale(proto: Path) -> list[str]:
    """Stubs that differ from what the .proto files give, are missing, or should not be there."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(proto, Path(scratch))
        fresh = {path.relative_to(scratch): path.read_bytes() for path in Path(scratch).rglob("*_pb2*")}
    committed = {
        path.relative_to(proto): path.read_bytes()
        for path in proto.rglob("*_pb2*")
        if path.suffix in (".py", ".pyi")
    }
    names = fresh.keys() | committed.keys()
    return sorted(str(name) for name in names if fresh.get(name) != committed.get(name))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proto", type=Path, help="the folder that holds dragoman/v1/*.proto")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub is stale")
    options = parser.parse_args()
    if not options.check:
        generate(options.proto, options.proto)
    elif names := stale(options.proto):
        sys.exit(f"stale stubs, run `make stubs`: {', '.join(names)}")


if __name__ == "__main__":
    main()
