"""`python -m dragoman.server` as an operator runs it: signals, exit codes, one line for each mistake."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.child_server import ENVIRONMENT, ROOT, ports, running
from tests.integration.serving import PATIENCE_S, http_get, one_version

from dragoman.v1 import decoding_pb2, translation_pb2, translation_pb2_grpc


def translate(stub: translation_pb2_grpc.TranslationServiceStub, num_inputs: int, num_tokens: int) -> Any:
    """Starts a call of at least so many tokens an input; gives its future."""
    options = decoding_pb2.DecodingOptions(min_tokens=num_tokens)
    request = translation_pb2.TranslateRequest(model="spell", inputs=["12"] * num_inputs, options=options)
    return stub.Translate.future(request)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_calls_finish_and_exits_with_0(number: signal.Signals) -> None:
    num_calls, num_inputs = 4, 128  # a second's work, so that none has ended when the signal arrives
    with running(*ports()) as server:
        serving = server.wait_for("serving")
        with grpc.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            calls = [translate(stub, num_inputs, num_tokens=80) for _ in range(num_calls)]
            all_begun = f'dragoman_input_tokens_total{{model="spell"}} {num_calls * num_inputs * 3}.0\n'
            while all_begun not in http_get(serving["metrics_port"], "/metrics")[1]:
                pass
            server.process.send_signal(number)
            assert server.wait_for("draining")["running"] > 0
            for call in calls:
                translations = call.result(PATIENCE_S).translations
                assert len(translations) == num_inputs
                assert all(each.usage.output_tokens >= 80 for each in translations)
        assert server.wait_for_end() == 0
        phases = [
            each["event"] for each in server.events if each["event"] in {"stopping", "draining", "stopped"}
        ]
        assert phases == ["stopping", "draining", "stopped"]
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


def test_readiness_goes_off_during_the_drain_delay_and_a_second_signal_ends_it() -> None:
    with running(*ports(), "--set", "server.drain_delay_s=60") as server:
        serving = server.wait_for("serving")
        assert http_get(serving["metrics_port"], "/readyz")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert http_get(serving["metrics_port"], "/readyz") == (503, "draining\n")
        with grpc.insecure_channel(f"127.0.0.1:{serving['port']}") as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            assert translate(stub, 1, num_tokens=0).result(PATIENCE_S).translations[0].text == "one two"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_for_end() == 128 + signal.SIGTERM


def failing(*arguments: str) -> tuple[int, str]:
    with running(*arguments) as server:
        code = server.wait_for_end()
        [event] = server.events
        assert event["event"] == "cannot_serve"
        return code, event["error"]


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, error = failing(*ports(), option, str(port))
    assert code == 1
    assert error.endswith(f"127.0.0.1:{port}: Address already in use")


def test_a_missing_folder_and_a_corrupt_bundle(tmp_path: Path) -> None:
    code, error = failing(*ports(tmp_path / "nope"))
    assert code == 2
    assert error == f"cannot read the models folder {tmp_path / 'nope'}: No such file or directory"
    models = one_version(tmp_path / "models", "spell/1")
    (models / "spell" / "1" / "tokenizer.json").write_text("{}")
    code, error = failing(*ports(models))
    assert code == 2
    assert "tokenizer.json is corrupt" in error


def test_an_unknown_setting_is_one_line_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dragoman.server", "--set", "server.prt=1"],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: settings: unknown key 'server.prt'; did you mean 'port'?\n"


def test_serving_loads_nothing_of_training() -> None:
    loaded = loaded_by(
        "dragoman.server.serving", "dragoman.server.models.host", "dragoman.server.models.threaded"
    )
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "typer"}
    assert not loaded & {"dragoman.model", "dragoman.export", "dragoman.cli", "dragoman.client.blocking"}


def test_a_process_without_lanes_has_no_onnx_runtime() -> None:
    assert "grpc" in (loaded := loaded_by("dragoman.server.serving"))
    assert "onnxruntime" not in loaded


def test_the_process_with_the_models_has_nothing_of_a_front() -> None:
    assert "onnxruntime" in (loaded := loaded_by("dragoman.server.models.host"))
    assert not loaded & {"grpc", "prometheus_client", "google.protobuf"}


def loaded_by(*modules: str) -> set[str]:
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
