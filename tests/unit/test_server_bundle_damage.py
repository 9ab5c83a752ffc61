"""A bundle that cannot be served says so when it is loaded: one line with the file or key, no traceback, no hang."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.damaged_bundles import (
    GENERATION,
    TRANSLATION,
    change_graph,
    copy_of,
    load,
    manifest_of,
    seal,
    set_value,
    write_manifest,
)

from dragoman.server.bundle.reader import MAX_MANIFEST_BYTES
from dragoman.server.errors import BundleError

Damage = Callable[[Path], None]


def problem_of(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("fixture", [TRANSLATION, GENERATION])
def test_a_copy_is_sound(fixture: str, tmp_path: Path) -> None:
    assert load(copy_of(fixture, tmp_path)).sessions


IN_TRANSLATION: list[tuple[str, Any, str]] = [
    ("schema_version", True, "schema_version = True"),
    ("schema_version", 2**70, f"schema version {2**70}; this server reads"),
    ("task", "generation", "needs a graph 'extend'"),
    ("precision", "fp16", "'source_ids'|'cross_key_0' is a tensor(float), not a tensor(float16)"),
    ("dimensions/vocabulary_size", 0, "dimensions.vocabulary_size = 0"),
    ("dimensions/vocabulary_size", 29, "golden_examples|vocabulary"),
    ("dimensions/vocabulary_size", 31, "'log_probabilities' has shape (rows, 30), by the manifest it is (any, 31)"),
    ("dimensions/vocabulary_size", 10**30, "dimensions.vocabulary_size = 1"),
    ("dimensions/vocabulary_size", 30.5, "dimensions.vocabulary_size = 30.5"),
    ("dimensions/num_kv_heads", 3, "num_heads = 4: it is no multiple of num_kv_heads = 3"),
    ("dimensions/num_kv_heads", 4, "'cross_key_0' has shape"),
    ("dimensions/num_kv_heads", 0, "dimensions.num_kv_heads = 0"),
    ("dimensions/head_size", 16, "'cross_key_0' has shape"),
    ("dimensions/head_size", -16, "dimensions.head_size = -16"),
    ("dimensions/num_decoder_layers", 1, "has an output 'cross_key_1', which the engine does not know"),
    ("dimensions/num_decoder_layers", 3, "has no output 'cross_key_2'"),
    ("dimensions/num_decoder_layers", 10**9, "dimensions.num_decoder_layers = 1000000000"),
    ("dimensions/num_parameters", -1, "dimensions.num_parameters = -1"),
    ("dimensions/num_parameters", 2**70, f"dimensions.num_parameters = {2**70}"),
    ("limits/max_source_tokens", -1, "limits.max_source_tokens = -1"),
    ("limits/max_source_tokens", 5, "has 14 tokens|may have 1 to 5"),
    ("limits/max_source_tokens", 500, "encode.onnx: graph 'encode' fails when it is run at its limits"),
    ("limits/max_source_tokens", 2**40, "limits.max_source_tokens = "),
    ("limits/max_output_tokens", 82, "max_output_tokens = 82 is more than max_context_tokens = 81"),
    ("limits/max_output_tokens", 8, "golden_examples.0.max_tokens = "),
    ("limits/max_context_tokens", 200, "decode.onnx: graph 'decode' fails when it is run at its limits"),
    ("special_tokens/end", 30, "special_tokens.end = 30: the vocabulary has 30 tokens"),
    ("special_tokens/end", 2, "special_tokens: end = 2 is another special token too"),
    ("special_tokens/begin", -1, "special_tokens.begin = -1"),
    ("graphs", {}, "needs a graph 'encode'"),
    ("graphs/decode/inputs", [], "decode.onnx: graph 'decode' has input 'num_best' where the manifest says no input"),
    ("graphs/decode/outputs/0", "logits", "has output 'log_probabilities' where the manifest says output 'logits'"),
    ("graphs/decode/file", "encode.onnx", "graph 'decode' has input 'source_ids' where the manifest says"),
    ("graphs/decode/file", "decode.onnx\0", "graphs.decode.file = 'decode.onnx\\x00': it is not a plain file name"),
    ("graphs/decode/file", "../1/decode.onnx", "it is not a plain file name"),
    ("graphs/decode/file", "/etc/passwd", "it is not a plain file name"),
    ("graphs/decode/file", "..", "it is not a plain file name"),
    ("graphs/decode/file", "", "it is not a plain file name"),
    ("graphs/decode/file", "x" * 256, "it is not a plain file name"),
    ("graphs/decode/file", "other.onnx", "other.onnx is used but has no entry under files"),
    ("files/decode.onnx/sha256", "0" * 63, "files.decode.onnx.sha256"),
    ("files/decode.onnx/sha256", "0" * 64, "decode.onnx is corrupt: its SHA-256"),
    ("files/decode.onnx/num_bytes", -1, "files.decode.onnx.num_bytes = -1"),
    ("files/decode.onnx/num_bytes", 2**70, "files.decode.onnx.num_bytes"),
    ("files", {"../x": {"sha256": "0" * 64, "num_bytes": 0}}, "'../x': it is not a plain file name|files.'../x'"),
    ("files", {"/etc/passwd": {"sha256": "0" * 64, "num_bytes": 0}}, "files.'/etc/passwd'|it is not a plain file name"),
    ("files", {"a\nb": {"sha256": "0" * 64, "num_bytes": 0}}, "files.'a\\nb'"),
    ("quality", [{"metric": "m", "value": "x", "num_examples": 1, "data": ""}], "quality.0.value = 'x'"),
    ("quality", [{"metric": "m", "value": 1.0, "num_examples": 2**32, "data": ""}], "quality.0.num_examples"),
    ("provenance", {"seed": 10**400}, "provenance.seed"),
    ("provenance", [], "provenance"),
    ("golden_examples", [], "golden_examples is empty"),
    ("golden_examples/0/token_ids", [30], "golden_examples.0.token_ids: 30: the vocabulary has 30 tokens"),
    ("golden_examples/0/token_ids", [-1], "golden_examples.0.token_ids.0 = -1"),
    ("golden_examples/0/token_ids", [2**64], "golden_examples.0.token_ids.0 = "),
    ("golden_examples/0/token_ids", [4], "now gives"),
    ("golden_examples/0/max_tokens", 0, "golden_examples.0.max_tokens = 0"),
    ("golden_examples/0/max_tokens", 1, "token_ids are more than max_tokens = 1"),
    ("golden_examples/0/log_probability", -9.0, "now has log-probability"),
    ("golden_examples/0/text", "1" * 100, "has 101 tokens; by the manifest's limits it may have 1 to 32"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "said"), IN_TRANSLATION)
def test_one_wrong_value_of_a_translation_bundle(key: str, value: Any, said: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    set_value(folder, key, value)
    message = problem_of(folder)
    assert any(part in message for part in said.split("|")), message


IN_GENERATION: list[tuple[str, Any, str]] = [
    ("task", "translation", "needs a graph 'encode'"),
    ("limits/max_context_tokens", 1000, "fails when it is run at its limits"),
    ("limits/max_context_tokens", 20, "max_output_tokens = 255 is more than max_context_tokens = 20"),
    ("dimensions/vocabulary_size", 301, "'log_probabilities' has shape"),
    ("dimensions/num_decoder_layers", 1, "which the engine does not know"),
]


@pytest.mark.parametrize(("key", "value", "said"), IN_GENERATION)
def test_one_wrong_value_of_a_generation_bundle(key: str, value: Any, said: str, tmp_path: Path) -> None:
    folder = copy_of(GENERATION, tmp_path)
    set_value(folder, key, value)
    assert said in problem_of(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_log_probability_that_is_no_number(number: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    set_value(folder, "golden_examples/0/log_probability", 0.125)
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace("0.125", number))
    assert "golden_examples.0.log_probability = " in problem_of(folder)


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_provenance_that_no_message_holds(number: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    set_value(folder, "provenance", {"metrics": [{"loss": 0.125}]})
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace("0.125", number))
    assert "provenance.metrics.0.loss = " in problem_of(folder)


def test_a_provenance_nested_without_end(tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    nested: dict[str, Any] = {}
    for _ in range(30):
        nested = {"a": nested}
    set_value(folder, "provenance", nested)
    assert "provenance is nested more than 20 levels deep" in problem_of(folder)


# What lies where a file should be.


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked_to(target: str) -> Damage:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        if target == "outside":
            outside = path.parents[3] / "outside"
            outside.write_bytes(content)
            path.symlink_to(outside)
        else:
            path.symlink_to(target)

    return damage


@pytest.mark.parametrize("name", ["bundle.json", "tokenizer.json", "decode.onnx"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (replaced_by_pipe, "is no regular file"),
        (replaced_by_folder, "is no regular file"),
        (linked_to("/dev/zero"), "is a link out of its folder, to /dev/zero"),
        (linked_to("outside"), "is a link out of its folder"),
        (linked_to("nowhere"), "No such file"),
        (linked_to("bundle.json"), "Too many levels of symbolic links|not a bundle manifest|is corrupt"),
    ],
    ids=["pipe", "folder", "device", "outside", "dangling", "loop"],
)
def test_what_is_no_file_of_the_folder(name: str, damage: Damage, said: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path / "models")
    damage(folder / name)
    message = problem_of(folder)
    assert name in message
    assert any(part in message for part in said.split("|")), message


def test_links_within_the_folder_are_files(tmp_path: Path) -> None:
    """As Kubernetes mounts a volume: each name is a link through a folder that is a link."""
    folder = copy_of(TRANSLATION, tmp_path)
    (folder / "..2026").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "..2026" / path.name)
        path.symlink_to(Path("..data", path.name))
    (folder / "..data").symlink_to("..2026")
    assert load(folder).sessions


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"null", b"[]", b'{"a": 1}', b"[" * 100_000, b"{" * 100]
)
def test_a_manifest_of_other_content(content: bytes, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    (folder / "bundle.json").write_bytes(content)
    assert "bundle.json is not a bundle manifest" in problem_of(folder)


def test_a_manifest_too_large_to_be_one(tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    with (folder / "bundle.json").open("ab") as file:
        file.truncate(50 * 2**30)  # of holes
    assert f"bundle.json has more than {MAX_MANIFEST_BYTES} bytes" in problem_of(folder)


# Graphs and a tokenizer whose hashes are right.


@pytest.mark.parametrize("graph", ["encode", "decode", "align"])
@pytest.mark.parametrize("num_bytes", [0, 1, 1000, -1])
def test_a_truncated_graph(graph: str, num_bytes: int, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    path = folder / f"{graph}.onnx"
    path.write_bytes(path.read_bytes()[:num_bytes])
    seal(folder)
    assert f"{graph}.onnx cannot be loaded: " in problem_of(folder)


@pytest.mark.parametrize(("one", "other"), [("encode", "decode"), ("encode", "align"), ("decode", "align")])
def test_swapped_graphs(one: str, other: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    manifest = manifest_of(folder)
    graphs = manifest["graphs"]
    graphs[one], graphs[other] = graphs[other], graphs[one]
    write_manifest(folder, manifest)
    assert ".onnx: graph " in problem_of(folder)


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new
        for value in (*model.graph.input, *model.graph.output):
            if value.name == old:
                value.name = new

    return change


@pytest.mark.parametrize(
    ("graph", "old", "new", "said"),
    [
        ("encode", "source_lengths", "lengths", "has no input 'source_lengths'"),
        ("encode", "cross_key_0", "crossed_key_0", "has no output 'cross_key_0'"),
        ("decode", "token_ids", "tokens", "has no input 'token_ids'"),
        ("decode", "log_probabilities", "logits", "has no output 'log_probabilities'"),
        ("decode", "new_key_0", "other_key_0", "has no output 'new_key_0'"),
        ("align", "target_ids", "targets", "has no input 'target_ids'"),
        ("align", "attention", "weights", "has no output 'attention'"),
    ],
)
def test_an_input_or_output_of_another_name(
    graph: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    change_graph(folder, graph, renamed(old, new))
    assert said in problem_of(folder)


def test_one_input_more(tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    value = helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1])
    change_graph(folder, "decode", lambda model: model.graph.input.append(value))
    assert "has an input 'temperature', which the engine does not know" in problem_of(folder)


def with_output_through(
    node: onnx.NodeProto, *constants: onnx.TensorProto
) -> Callable[[onnx.ModelProto], None]:
    """What was `log_probabilities` goes through a node first, as its input `x`."""

    def change(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            each.output[:] = ["x" if name == "log_probabilities" else name for name in each.output]
        model.graph.node.append(node)
        model.graph.initializer.extend(constants)

    return change


def to_log_probabilities(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, ["x", *inputs], ["log_probabilities"], **attributes)


@pytest.mark.parametrize(
    ("node", "constant", "said"),
    [
        (to_log_probabilities("Sqrt"), None, "whose sum is not 1"),  # of a negative number
        (to_log_probabilities("Mul", "c"), np.float32(2.0), "whose sum is not 1"),
        (to_log_probabilities("Div", "c"), np.float32(0.0), "whose sum is not 1"),
        (to_log_probabilities("Cast", to=TensorProto.DOUBLE), None, "is a tensor(float), not|tensor(double)"),
        (to_log_probabilities("Squeeze"), None, "fails when it is run"),
        (to_log_probabilities("Gather", "c", axis=1), np.arange(20), "fails when it is run|has shape"),
    ],
    ids=["NaN", "not normalised", "infinite", "double", "one axis less", "fewer tokens"],
)
def test_log_probabilities_that_are_none(
    node: onnx.NodeProto, constant: Any, said: str, tmp_path: Path
) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    constants = [] if constant is None else [numpy_helper.from_array(np.array(constant), "c")]
    change_graph(folder, "decode", with_output_through(node, *constants))
    message = problem_of(folder)
    assert "decode.onnx" in message
    assert any(part in message for part in said.split("|")), message


def with_external_weights(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        content, weight.raw_data = weight.raw_data, b""
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
            weight.external_data.add(key=key, value=value)
        Path("weights.bin").write_bytes(content)

    return change


@pytest.mark.parametrize("is_listed", [False, True])
@pytest.mark.parametrize("location", ["weights.bin", "../1/weights.bin", "/etc/passwd"])
def test_weights_in_another_file(
    location: str, is_listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    monkeypatch.chdir(folder)  # where ONNX Runtime looks for weights of a graph that it reads from memory
    change_graph(folder, "decode", with_external_weights(location))
    if is_listed:
        manifest = manifest_of(folder)
        manifest["files"]["weights.bin"] = {}
        write_manifest(folder, manifest)
        seal(folder)
    assert "decode.onnx cannot be loaded: weights lie in another file (external data)" in problem_of(folder)


def test_weights_at_an_address_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    monkeypatch.chdir(folder)
    change_graph(folder, "decode", with_external_weights("*/_ORT_MEM_ADDR_/*"))
    assert "decode.onnx cannot be loaded: " in problem_of(folder)


def test_weights_in_another_file_of_a_graph_within_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    monkeypatch.chdir(folder)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[30], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="weights.bin")
    (folder / "weights.bin").write_bytes(bytes(120))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "a", [], [output], [weight]),
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "b", [], [output]),
    ]
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node(
        "If", ["c"], ["log_probabilities"], then_branch=branches[0], else_branch=branches[1]
    )
    change_graph(folder, "decode", with_output_through(node, condition))
    assert "decode.onnx cannot be loaded: weights lie in another file" in problem_of(folder)


@pytest.mark.parametrize("graph", ["encode", "decode", "align"])
def test_a_loop_without_an_end(graph: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    name = {"encode": "cross_key_0", "decode": "log_probabilities", "align": "attention"}[graph]
    any_float = helper.make_tensor_value_info("x_in", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Neg", ["x_in"], ["x_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            any_float,
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )

    def change(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            each.output[:] = ["x" if output == name else output for output in each.output]
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
        model.graph.node.append(helper.make_node("Loop", ["", "go", "x"], [name], body=body))

    change_graph(folder, graph, change)
    assert f"{graph}.onnx: graph {graph!r} does not end within 1 s" in problem_of(folder)


@pytest.mark.parametrize("content", ["", "{}", "null", "[]", '{"version": "1.0"}', "\ufeff{}"])
def test_a_tokenizer_that_is_none(content: str, tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    (folder / "tokenizer.json").write_text(content)
    seal(folder)
    assert "tokenizer.json is not a tokenizer: " in problem_of(folder)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    folder = copy_of(TRANSLATION, tmp_path)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["Ω"] = 40
    path.write_text(json.dumps(tokenizer))
    seal(folder)
    assert "tokenizer.json has token id 40; the manifest says vocabulary_size = 30" in problem_of(folder)
