"""What images install (deploy/requirements), against pyproject.toml and constraints.txt."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.distributions import distributions_of, requirements_of
from tools.image_requirements import LEFT_OUT, REQUIREMENTS

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "tests" / "fixtures" / "bundles" / "spell" / "2" / "tokenizer.json"
LIKE_THE_IMAGES = pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="what distributions ask for is another thing than with the images' Python 3.11",
)
REGENERATE = "run `make image-requirements`"


def pins(name: str) -> dict[str, str]:
    """The versions in NAME.txt, by normalised name; every one of them is hashed."""
    text = (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        if entry.startswith("#"):
            continue
        line, *hashes = re.split(r"\s*\\\n\s*", entry)
        requirement = Requirement(line)
        assert hashes, f"{line} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_versions_are_those_of_constraints(name: str) -> None:
    wanted = constraints()
    other = {
        each: version for each, version in pins(name).items() if each in wanted and wanted[each] != version
    }
    assert not other, REGENERATE


@LIKE_THE_IMAGES
def test_the_serving_image_has_what_the_server_needs_and_nothing_else() -> None:
    assert set(pins("serve")) == distributions_of("tracing", without=LEFT_OUT), REGENERATE
    assert set(pins("serve")) <= set(constraints())


def test_both_serving_images_have_the_same_versions_beside_onnxruntime() -> None:
    cpu, cuda = pins("serve"), pins("serve-cuda")
    del cpu["onnxruntime"]
    gpu = cuda.pop("onnxruntime-gpu")
    assert {name: version for name, version in cuda.items() if not name.startswith("nvidia-")} == cpu
    (needed,) = (each for each in requirements_of("serve") if each.name == "onnxruntime")
    assert needed.specifier.contains(gpu), f"the project asks for {needed}, its image for GPUs has {gpu}"


@LIKE_THE_IMAGES
def test_the_training_image_has_what_training_needs_and_cuda_for_torch() -> None:
    needed = distributions_of("tracing", "train", without=LEFT_OUT)
    installed = set(pins("train"))
    assert needed <= installed, REGENERATE
    assert all(name.startswith(("cuda-", "nvidia-", "triton")) for name in installed - needed), REGENERATE
    assert {name: version for name, version in pins("train").items() if name in pins("serve")} == pins(
        "serve"
    )


def test_what_is_left_out_is_in_no_image_and_tokenizers_runs_without() -> None:
    assert not any(name in pins(each) for each in REQUIREMENTS for name in LEFT_OUT)
    program = (
        "import sys\n"
        "sys.modules['huggingface_hub'] = None\n"  # an import of it raises an error
        "import tokenizers\n"
        f"print(len(tokenizers.Tokenizer.from_file({str(TOKENIZER)!r}).encode('4071').ids))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 1
