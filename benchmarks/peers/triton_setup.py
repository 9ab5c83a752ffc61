"""What only the peers' environment knows of Triton: where it lies, and its requests as bytes.

    python triton_setup.py MODEL < calls.json

prints an object of paths, and under `requests` one ModelInferRequest for each list of texts, in base64.
"""

import base64
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from pytriton.utils.distribution import get_root_module_path, get_stub_path
from tritonclient.grpc import service_pb2


def request(model: str, texts: list[str]) -> bytes:
    """The texts as one batch."""
    tensor = triton.InferInput("TEXT", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], np.object_))
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.extend([tensor._get_tensor()])  # noqa: SLF001  the client has no public way to the message
    message.raw_input_contents.append(tensor._get_content())  # noqa: SLF001
    return bytes(message.SerializeToString())


def main() -> None:
    folder, site_packages = get_root_module_path() / "tritonserver", Path(sysconfig.get_path("purelib"))
    found = {
        "server": str(folder / "bin" / "tritonserver"),
        "backends": str(folder / "backends"),
        "stub": str(get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}")),
        # What the stub loads: libpython, and the wheel's own, which a copy of it elsewhere does not find by itself.
        "libraries": [sysconfig.get_config_var("LIBDIR"), str(site_packages / "nvidia_pytriton.libs")],
        "requests": [
            base64.b64encode(request(sys.argv[1], texts)).decode() for texts in json.load(sys.stdin)
        ],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
