"""Compiling the kernels: what is said where it cannot be done, and what is left then."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernels.build import LIBRARY, KernelsNotBuilt, NoCompiler, build_kernels

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / LIBRARY.parent).mkdir(parents=True)
    (tmp_path / LIBRARY).write_bytes(b"the one before")
    return tmp_path


@needs_compiler
def test_the_library_takes_the_place_of_the_one_before(tree: Path) -> None:
    assert build_kernels(tree) == tree / LIBRARY
    assert (tree / LIBRARY).stat().st_size > 10_000
    assert [path.name for path in (tree / LIBRARY.parent).iterdir()] == [LIBRARY.name]
    program = (
        f"import ctypes; print(ctypes.CDLL({str(tree / LIBRARY)!r}).DragomanSelectKernels(b'portable') != 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True"


def test_without_a_compiler_it_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(NoCompiler, match=r"no C[+][+] compiler"):
        build_kernels(tree)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsNotBuilt, match="no-such-compiler: No such file"):
        build_kernels(tree)
    assert not (tree / LIBRARY).exists(), "it would be of other sources"


def test_what_the_compiler_says_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tree / "failing"
    failing.write_text("#!/bin/sh\necho 'error: nothing works' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(KernelsNotBuilt, match="error: nothing works"):
        build_kernels(tree)
    assert not (tree / LIBRARY).exists(), "it would be of other sources"
