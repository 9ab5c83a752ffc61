"""Compile the operators' kernels into the library that `dragoman.server.execution.kernels` loads; needs a C++
compiler and nothing else.

    python kernels/build.py      into server/, where an installation from the source tree looks for it

`CXX` names the compiler, otherwise it is the first there is of c++, g++ and clang++. Each kind of processor's kernels
are compiled for it; which of them run is decided when the library is loaded, so that one build serves all machines of
an architecture.
"""

import concurrent.futures
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["LIBRARY", "KernelsNotBuilt", "NoCompiler", "build_kernels"]

LIBRARY = Path("server", "execution") / "libdragoman_kernels.so"
"""Below the root of the source tree."""

_SOURCES = Path(__file__).parent
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"),
)
_EVERYWHERE = {"operators.cc": (), "kernels_portable.cc": ()}
_X86 = {
    "kernels_avx2.cc": ("-mavx2", "-mfma"),
    "kernels_avx512vnni.cc": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
        # Of GCC 12's own header, where vectors are left undefined on purpose.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ),
}


class KernelsNotBuilt(Exception):
    """The library could not be built here; says why."""


class NoCompiler(KernelsNotBuilt):
    """There is nothing to build it with."""


def build_kernels(root: Path) -> Path:
    """Compile the library into the source tree at `root`; returns its path.

    Raises:
        NoCompiler: there is none.
        KernelsNotBuilt: it fails, or the library cannot be written. In either case none is left: one of other sources
            would be worse than none.
    """
    try:
        return _built(root / LIBRARY)
    except KernelsNotBuilt:
        (root / LIBRARY).unlink(missing_ok=True)
        raise


def _built(target: Path) -> Path:
    if sys.platform not in {"linux", "darwin"}:
        raise NoCompiler(f"no kernels for {sys.platform}")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise NoCompiler("no C++ compiler: none of c++, g++ and clang++ is there and CXX is not set")
    units = _EVERYWHERE | (_X86 if platform.machine() in {"x86_64", "AMD64"} else {})
    with tempfile.TemporaryDirectory(prefix="dragoman-kernels-") as folder:

        def compile_unit(unit: str, flags: tuple[str, ...]) -> str:
            compiled = str(Path(folder) / f"{unit}.o")
            _run([*compiler.split(), *_FLAGS, *flags, "-c", str(_SOURCES / unit), "-o", compiled])
            return compiled

        with concurrent.futures.ThreadPoolExecutor() as pool:
            objects = list(pool.map(compile_unit, units, units.values()))
        whole = Path(folder) / LIBRARY.name
        _run([*compiler.split(), "-shared", *objects, "-o", str(whole)])
        # A server that has the old one loaded keeps it: the new one is another file under the same name.
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(whole, beside)
            beside.replace(target)
        except OSError as error:
            raise KernelsNotBuilt(f"{target} cannot be written: {error.strerror}") from error
        finally:
            beside.unlink(missing_ok=True)
    return target


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 the compiler asked for
    except OSError as error:
        raise KernelsNotBuilt(f"{command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise KernelsNotBuilt(f"{' '.join(command)}\n{error.stderr}") from error


if __name__ == "__main__":
    try:
        print(build_kernels(_SOURCES.parent))
    except NoCompiler as error:
        print(f"going on without kernels: {error}")
    except KernelsNotBuilt as error:
        sys.exit(str(error))
