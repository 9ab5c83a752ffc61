"""The kernels of our operators against what those operators are made of, for each kind of kernels that runs here."""

import gc
import shutil
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from tests.conformance.one_node import (
    AVAILABLE,
    HEADS,
    Arrays,
    both,
    decode_inputs,
    decode_model,
    heads_of,
    linear_model,
    one_node,
    session,
)

from dragoman.server.errors import ProviderUnavailable
from dragoman.server.execution import kernels as library
from dragoman.server.execution.kernels import NO_KERNELS, select_kernels


def test_kernels_are_built_where_there_is_a_compiler() -> None:
    assert AVAILABLE or not any(map(shutil.which, ("c++", "g++", "clang++")))
    if AVAILABLE:
        assert AVAILABLE[-1] == "portable"
        assert select_kernels("auto") == AVAILABLE[0]


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("sizes", HEADS)
def test_attention_over_a_cache(kernels: str, cross: bool, sizes: tuple[int, int, int]) -> None:
    for rows, capacity in ((1, 1), (1, 7), (3, 9), (21, 33)):
        inputs = decode_inputs(sizes, rows, capacity, cross=cross)
        ours, theirs = both(decode_model(sizes, inputs), kernels, inputs)
        np.testing.assert_allclose(ours[0], theirs[0], atol=2e-6)
        for mine, its in zip(ours[1:], theirs[1:], strict=True):
            for row, length in enumerate(inputs["lengths"] + (not cross)):
                np.testing.assert_array_equal(mine[row, :, :length], its[row, :, :length])


@pytest.mark.parametrize("kernels", AVAILABLE)
def test_a_cache_is_appended_to_in_place_and_nothing_else_is_written(kernels: str) -> None:
    sizes = (4, 2, 8)
    inputs = decode_inputs(sizes, 3, 9, cross=False)
    before = {name: array.copy() for name, array in inputs.items()}
    running = session(decode_model(sizes, inputs), kernels)
    binding = running.io_binding()
    heads = np.zeros((3, 32), np.float32)
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in (("heads", heads), ("key", inputs["past_key"]), ("value", inputs["past_value"])):
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    running.run_with_iobinding(binding)
    expected = session(decode_model(sizes, before), NO_KERNELS).run(None, before)[0]
    np.testing.assert_allclose(heads, expected, atol=2e-6)
    new = np.split(before["packed"], [32, 48], axis=1)[1:]
    for name, parts in zip(("past_key", "past_value"), new, strict=True):
        for row, length in enumerate(before["lengths"]):
            before[name][row, :, length] = parts[row].reshape(2, 8)
        np.testing.assert_array_equal(inputs[name], before[name])


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("sizes", HEADS)
def test_attention_over_whole_sequences(kernels: str, sizes: tuple[int, int, int]) -> None:
    num_heads, num_kv_heads, size = sizes
    rng = np.random.default_rng(1)
    for rows, num_tokens in ((1, 1), (2, 3), (3, 16), (5, 23)):
        packed = rng.standard_normal((rows, num_tokens, (num_heads + 2 * num_kv_heads) * size))
        lengths = rng.integers(1, num_tokens + 1, rows).astype(np.int32)
        inputs: Arrays = {"packed": packed.astype(np.float32), "lengths": lengths}
        model = one_node("EncoderAttention", inputs, {}, ["heads"], **heads_of(sizes))
        [ours], [theirs] = both(model, kernels, inputs)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(ours[row, :length], theirs[row, :length], atol=2e-6)


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("shape", [(1, 8), (3, 40), (2, 5, 160), (70, 24)])
def test_residual_and_normalisation(kernels: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    width = shape[-1]
    inputs: Arrays = {
        name: (rng.standard_normal(size) * 3).astype(np.float32)
        for name, size in (("x", shape), ("y", shape), ("weight", (width,)), ("bias", (width,)))
    }
    model = one_node("AddNorm", inputs, {}, ["sum", "normed"], epsilon=1e-5)
    ours, theirs = both(model, kernels, inputs)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("depth", [1, 3, 160, 577])
@pytest.mark.parametrize("columns", [1, 15, 32, 33, 119, 160])
def test_integer_products_are_exact(kernels: str, depth: int, columns: int) -> None:
    rng = np.random.default_rng(columns)
    for rows, zero_point in ((1, 0), (2, 255), (3, 128), (5, 3), (8, 77), (29, 128)):
        # Wide enough that some values saturate, and all sums are whole numbers that fp32 holds.
        x = (rng.integers(-300, 300, (rows, depth)) + 0.25).astype(np.float32)
        model = linear_model(depth, columns, zero_point, x)
        [ours], [theirs] = both(model, kernels, {"x": x})
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kernels", AVAILABLE)
def test_the_largest_products_do_not_overflow(kernels: str) -> None:
    """CPUs without VNNI add two products in 16 bits: 2 * 255 * 64 still fits."""
    x = np.full((2, 64), 1e6, np.float32)
    constants: Arrays = {
        "scale": np.array(1, np.float32),
        "zero_point": np.array(0, np.uint8),
        "weight": np.full((64, 32), 64, np.int8),
        "column_scales": np.ones(32, np.float32),
        "bias": np.zeros(32, np.float32),
    }
    constants["weight"][:, 16:] = -64
    y = session(one_node("Int8Linear", {"x": x}, constants, ["y"]), kernels).run(None, {"x": x})[0]
    assert (y[:, :16] == 255 * 64 * 64).all()
    assert (y[:, 16:] == -255 * 64 * 64).all()


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_row_s_result_does_not_depend_on_its_neighbours(kernels: str, num_threads: int) -> None:
    sizes = (4, 2, 40)
    for cross in (False, True):
        inputs = decode_inputs(sizes, 29, 33, cross=cross)
        running = session(decode_model(sizes, inputs), kernels, num_threads)
        together = running.run(None, inputs)[0]
        for row in range(29):
            alone = running.run(None, {name: array[row : row + 1] for name, array in inputs.items()})[0]
            np.testing.assert_array_equal(alone[0], together[row])
    rng = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) * 30).astype(np.float32)

    x = some(70, 160)
    packed: Arrays = {"packed": some(29, 17, 8 * 40), "lengths": rng.integers(1, 18, 29).astype(np.int32)}
    norm: Arrays = {"x": x, "y": some(70, 160), "weight": some(160), "bias": some(160)}
    logits: Arrays = {"logits": some(29, 333), "number": np.array([5]), "needed": np.array([1])}
    for model, inputs in (
        (linear_model(160, 300, 128, x), {"x": x}),
        (one_node("EncoderAttention", packed, {}, ["heads"], **heads_of(sizes)), packed),
        (one_node("AddNorm", norm, {}, ["sum", "normed"], epsilon=1e-5), norm),
        (one_node("BestTokens", logits, {}, ["all", "best", "places"]), logits),
    ):
        running = session(model, kernels, num_threads)
        together = running.run(None, inputs)
        rows = {name for name in inputs if name in {"x", "y", "packed", "lengths", "logits"}}
        for row in range(29):
            alone = running.run(
                None, {name: a[row : row + 1] if name in rows else a for name, a in inputs.items()}
            )
            for mine, of_all in zip(alone, together, strict=True):
                np.testing.assert_array_equal(mine[0], of_all[row])


@pytest.mark.parametrize("kernels", AVAILABLE)
def test_what_does_not_fit_is_refused(kernels: str) -> None:
    sizes = (4, 2, 8)
    inputs = decode_inputs(sizes, 3, 9, cross=False)
    running = session(decode_model(sizes, inputs), kernels)
    for lengths, message in (
        ([0, 9, 0], "a row of 9 tokens in a cache of 9"),
        ([0, -1, 0], "a row of -1 tokens"),
    ):
        with pytest.raises(Exception, match=message):
            running.run(None, {**inputs, "lengths": np.array(lengths, np.int32)})
    with pytest.raises(Exception, match="caches are not"):
        running.run(None, {**inputs, "past_key": inputs["past_key"][:2]})
    inputs = decode_inputs(sizes, 3, 9, cross=True)
    with pytest.raises(Exception, match="a row of 10 tokens in a cache of 9"):
        session(decode_model(sizes, inputs), kernels).run(
            None, {**inputs, "lengths": np.array([1, 2, 10], np.int32)}
        )
    # These say that it is the kernels that ran.
    packed: Arrays = {"packed": np.zeros((2, 3, 64), np.float32), "lengths": np.array([1, 4], np.int32)}
    for op_type, outputs in (
        ("EncoderAttention", ["heads"]),
        ("SourceCaches", ["key", "value", "last_key", "last_value"]),
    ):
        sizes_of = heads_of((4, 2, 8) if op_type == "EncoderAttention" else (4, 4, 8))
        if op_type == "SourceCaches":
            del sizes_of["num_heads"]
        with pytest.raises(Exception, match="a row of 4 tokens in a cache of 3"):
            session(one_node(op_type, packed, {}, outputs, **sizes_of), kernels).run(None, packed)
    norm: Arrays = {"x": np.zeros((2, 8), np.float32), "weight": np.ones(8, np.float32)}
    norm = {"x": norm["x"], "y": norm["x"][:1], "weight": norm["weight"], "bias": norm["weight"]}
    with pytest.raises(Exception, match="AddNorm adds tensors of one shape"):
        session(one_node("AddNorm", norm, {}, ["sum", "normed"], epsilon=1e-5), kernels).run(None, norm)
    if kernels != "portable":
        x = np.zeros((2, 5), np.float32)
        with pytest.raises(Exception, match="more than seven bits"):
            session(linear_model(5, 3, 0, x, largest=65), kernels)
        with pytest.raises(Exception, match="an input 4 wide for weights of depth 5"):
            session(linear_model(5, 3, 0, x), kernels).run(None, {"x": x[:, :4]})


def test_kernels_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if AVAILABLE:
        with pytest.raises(ProviderUnavailable, match="this processor does not have the instructions"):
            select_kernels("avx1024")
    monkeypatch.setattr("dragoman.server.execution.kernels._LIBRARY", tmp_path / "absent.so")
    assert select_kernels("auto") == NO_KERNELS
    with pytest.raises(ProviderUnavailable, match="'avx2': this installation has none"):
        select_kernels("avx2")
    (tmp_path / "other.so").write_bytes(b"of another machine")
    monkeypatch.setattr("dragoman.server.execution.kernels._LIBRARY", tmp_path / "other.so")
    assert select_kernels("auto") == NO_KERNELS


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("locked", [True, False])
def test_rows_are_copied_with_the_library_and_without(
    built: bool, locked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    if not built:
        monkeypatch.setattr("dragoman.server.execution.kernels._LIBRARY", tmp_path / "absent.so")
    if not locked:
        monkeypatch.setattr("dragoman.server.execution.kernels._MAX_LOCKED_BYTES", 0)
    sources = [np.arange(72, dtype=np.float32).reshape(4, 3, 6) + 100 * index for index in range(2)]
    targets = [np.zeros((5, 3, 7), np.float32) for _ in range(2)]
    expected = [target.copy() for target in targets]
    for source, target in zip(sources, expected, strict=True):
        target[4, :, :2] = source[1, :, :2]
        target[0, :, :6] = source[3]
    library.copy_rows(
        library.Arrays.of(targets, targets[0]),
        library.Arrays.of(sources, sources[0]),
        [4, 0],
        [1, 3],
        [8, 24],
    )
    np.testing.assert_array_equal(targets, expected)


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("size", [1, 7, 64, 65, 129, 4000])
@pytest.mark.parametrize("coarse", [False, True], ids=["all different", "many equal"])
def test_log_probabilities_and_the_best_of_each_row(kernels: str, size: int, coarse: bool) -> None:
    rng = np.random.default_rng(size)
    for rows in (1, 5, 19):
        logits = (rng.standard_normal((rows, size)) * 6).astype(np.float32)
        if coarse:
            logits = np.round(logits / 4)
        for num_best in {1, min(2, size), min(10, size), min(100, size), size}:
            inputs: Arrays = {"logits": logits, "number": np.array([num_best]), "needed": np.array([1])}
            model = one_node("BestTokens", inputs, {}, ["log_probabilities", "best", "places"])
            ours, theirs = both(model, kernels, inputs)
            np.testing.assert_allclose(ours[0], theirs[0], atol=5e-6)
            # Held to its own log-probabilities: rounding may make equal what was not, or the other way round.
            order = np.lexsort((np.broadcast_to(np.arange(size), (rows, size)), -ours[0]), axis=1)[
                :, :num_best
            ]
            np.testing.assert_array_equal(ours[2], order)
            np.testing.assert_array_equal(ours[1], np.take_along_axis(ours[0], order, axis=1))


@pytest.mark.parametrize("kernels", AVAILABLE)
def test_the_best_are_told_without_the_rest(kernels: str) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    inputs: Arrays = {"logits": logits, "number": np.array([3]), "needed": np.array([1])}
    everything, _ = both(one_node("BestTokens", inputs, {}, ["all", "best", "places"]), kernels, inputs)
    ours, theirs = both(one_node("BestTokens", inputs, {}, ["", "best", "places"]), kernels, inputs)
    np.testing.assert_array_equal(ours[0], everything[1])
    unneeded, _ = both(
        one_node("BestTokens", inputs, {}, ["all", "best", "places"]),
        kernels,
        {**inputs, "needed": np.array([0])},
    )
    np.testing.assert_array_equal(unneeded[1], everything[1])
    np.testing.assert_array_equal(unneeded[2], everything[2])
    np.testing.assert_array_equal(ours[1], theirs[1])
    for number in (0, 201):
        with pytest.raises(Exception, match=f"the best {number} of 200"):
            both(
                one_node("BestTokens", inputs, {}, ["all", "best", "places"]),
                kernels,
                {**inputs, "number": np.array([number])},
            )


@pytest.mark.parametrize("kernels", [name for name in AVAILABLE if name != "portable"])
def test_equal_weights_are_in_memory_once(kernels: str) -> None:
    """The four steps of `decode_steps`, and `decode` beside it, would each have their own."""

    def resident() -> int:
        return psutil.Process().memory_info().rss

    x = np.zeros((1, 4096), np.float32)
    model = linear_model(4096, 4096, 3, x)  # 16 MiB
    first = session(model, kernels)
    before = resident()
    others = [session(model, kernels) for _ in range(8)]
    gc.collect()
    # Each has the graph's own weights, none its packed ones as well.
    assert (resident() - before) / len(others) < 1.5 * 16 * 2**20
    expected = first.run(None, {"x": x})[0]
    assert all(np.array_equal(each.run(None, {"x": x})[0], expected) for each in others)
    other = session(linear_model(4096, 4096, 200, x), kernels)  # another zero point
    assert not np.array_equal(other.run(None, {"x": x + 100})[0], first.run(None, {"x": x + 100})[0])


@pytest.mark.parametrize("kernels", AVAILABLE)
@pytest.mark.parametrize("sizes", HEADS)
def test_a_source_s_keys_and_values(kernels: str, sizes: tuple[int, int, int]) -> None:
    _, num_kv_heads, size = sizes
    rng = np.random.default_rng(1)
    for rows, num_tokens in ((1, 1), (3, 16)):
        packed = rng.standard_normal((rows, num_tokens, 2 * num_kv_heads * size)).astype(np.float32)
        lengths = rng.integers(1, num_tokens + 1, rows).astype(np.int32)
        inputs: Arrays = {"packed": packed, "lengths": lengths}
        model = one_node(
            "SourceCaches",
            inputs,
            {},
            ["key", "value", "last_key", "last_value"],
            kv_num_heads=num_kv_heads,
            head_size=size,
        )
        ours, theirs = both(model, kernels, inputs)
        for mine, its in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("kernels", AVAILABLE)
def test_what_is_no_number_comes_last(kernels: str) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 700)).astype(np.float32)
    logits[1, ::3] = np.nan
    logits[2] = np.nan
    for num_best in (1, 7, 600, 700):
        inputs: Arrays = {"logits": logits, "number": np.array([num_best]), "needed": np.array([1])}
        model = one_node("BestTokens", inputs, {}, ["", "best", "places"])
        best, places = session(model, kernels).run(None, inputs)
        assert best.shape == places.shape == (3, num_best)
        assert ((places >= 0) & (places < 700)).all()
        assert np.isfinite(best[0]).all()
        assert all(len(set(row)) == num_best for row in places.tolist())
