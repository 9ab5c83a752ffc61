"""Generate the Python stubs of the public contract beside their .proto files, or check that they are current."""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

_DEFAULT_POOL = "DESCRIPTOR = _descriptor_pool.Default()."
_IMPORT = re.compile(r"^import model_config_pb2", re.MULTILINE)
_OWN_POOL = "from dragoman.inference import POOL\n\nDESCRIPTOR = POOL."


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
    _run(messages)
    _run(stubs)
    _generate_inference(proto / "inference", out / "inference")


def _generate_inference(proto: Path, out: Path) -> None:
    """Write messages and types of the package `inference`, which imports its files by their bare names."""
    out.mkdir(exist_ok=True)
    files = sorted(proto.glob("*.proto"))
    _run(["protoc", f"-I{proto}", f"--python_out={out}", f"--pyi_out={out}", *map(str, files)])
    for module in out.glob("*_pb2.py*"):
        text = module.read_text(encoding="utf-8")
        text = re.sub(
            r"^import model_config_pb2",
            "from dragoman.inference import model_config_pb2",
            text,
            flags=re.MULTILINE,
        )
        if module.suffix == ".py":  # proto/inference/__init__.py says why
            text = text.replace(_DEFAULT_POOL, _OWN_POOL)
        module.write_text(text, encoding="utf-8")


def _run(arguments: Sequence[str]) -> None:
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
    parser.add_argument(
        "proto", type=Path, help="the folder that holds dragoman/v1/*.proto and inference/*.proto"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a stub is stale")
    options = parser.parse_args()
    if not options.check:
        generate(options.proto, options.proto)
    elif names := stale(options.proto):
        sys.exit(f"stale stubs, run `make stubs`: {', '.join(names)}")


if __name__ == "__main__":
    main()
