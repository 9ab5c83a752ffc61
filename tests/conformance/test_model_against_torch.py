"""Our Transformer against the layers of torch.nn with the same weights: an oracle that nobody here wrote."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dragoman.model.attention import CrossAttention, SelfAttention, explicit_attention, fused_attention
from dragoman.model.batching import Pairs, Stream, in_order
from dragoman.model.loss import total_loss
from dragoman.model.tokenizer import END_ID, PADDING_ID
from dragoman.model.transformer import (
    Dimensions,
    LanguageModel,
    TranslationModel,
    build_model,
    sinusoidal_positions,
)

WIDTH, HEADS, HIDDEN, LAYERS, VOCABULARY = 32, 4, 48, 3, 19
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
VARIANTS = list(itertools.product(["pre", "post"], ["relu", "gelu"]))


def new_model(task: str, norm: str, activation: str, num_kv_heads: int = HEADS) -> nn.Module:
    torch.manual_seed(0)
    translates = task == "translation"
    dims = Dimensions(
        task="translation" if translates else "generation",
        vocabulary_size=VOCABULARY,
        width=WIDTH,
        num_heads=HEADS,
        num_kv_heads=num_kv_heads,
        feed_forward_width=HIDDEN,
        num_encoder_layers=LAYERS if translates else 0,
        num_decoder_layers=LAYERS,
        max_source_tokens=16 if translates else 0,
        max_target_tokens=16,
        activation="gelu" if activation == "gelu" else "relu",
        norm="pre" if norm == "pre" else "post",
    )
    model = build_model(dims).eval()
    for parameter in model.parameters():  # biases and norms begin at 0 and 1, where mistakes would hide
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def reference_options(norm: str, activation: str) -> dict[str, Any]:
    return {
        "d_model": WIDTH,
        "nhead": HEADS,
        "dim_feedforward": HIDDEN,
        "dropout": 0.0,
        "activation": activation,
        "batch_first": True,
        "norm_first": norm == "pre",
    }


def copy_attention(ours: Any, theirs: Any) -> None:
    """Pack the projections; a shared key or value head is repeated for each query head it serves."""
    if isinstance(ours, SelfAttention):
        weights, biases = (
            p.tensor_split((ours.query_width, ours.query_width + ours.kv_width))
            for p in (ours.query_key_value.weight, ours.query_key_value.bias)
        )
    else:
        weights = (ours.query.weight, *ours.key_value.weight.chunk(2))
        biases = (ours.query.bias, *ours.key_value.bias.chunk(2))
    groups = ours.num_heads // ours.num_kv_heads

    def packed(query: Any, key: Any, value: Any) -> Tensor:
        repeated = (
            p.unflatten(0, (ours.num_kv_heads, -1)).repeat_interleave(groups, dim=0).flatten(0, 1)
            for p in (key, value)
        )
        return torch.cat([query, *repeated])

    theirs.in_proj_weight.data.copy_(packed(*weights))
    theirs.in_proj_bias.data.copy_(packed(*biases))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_layer(ours: Any, theirs: Any) -> None:
    copy_attention(ours.self_attention, theirs.self_attn)
    theirs.linear1.load_state_dict(ours.feed_forward.expand.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.contract.state_dict())
    norms = [ours.around_self_attention.norm, ours.around_feed_forward.norm]
    if hasattr(theirs, "multihead_attn"):
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, ours.around_cross_attention.norm)
    for number, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


def reference_encoder(model: TranslationModel, norm: str, activation: str) -> Any:
    layer = nn.TransformerEncoderLayer(**reference_options(norm, activation))
    last = nn.LayerNorm(WIDTH) if norm == "pre" else None
    stack: Any = nn.TransformerEncoder(layer, LAYERS, norm=last, enable_nested_tensor=False).eval()
    for ours, theirs in zip(model.encoder_layers, stack.layers, strict=True):
        copy_layer(ours, theirs)
    if last is not None:
        stack.norm.load_state_dict(model.encoder_norm.state_dict())
    return stack


def reference_decoder(model: TranslationModel, norm: str, activation: str) -> Any:
    layer = nn.TransformerDecoderLayer(**reference_options(norm, activation))
    last = nn.LayerNorm(WIDTH) if norm == "pre" else None
    stack: Any = nn.TransformerDecoder(layer, LAYERS, norm=last).eval()
    for ours, theirs in zip(model.decoder_layers, stack.layers, strict=True):
        copy_layer(ours, theirs)
    if last is not None:
        stack.norm.load_state_dict(model.decoder_norm.state_dict())
    return stack


def reference_embedding(weight: Tensor, token_ids: Tensor) -> Tensor:
    """Section 3.4 and 3.5 of the paper, number by number."""
    rows = []
    for row in token_ids.tolist():
        vectors = []
        for position, token in enumerate(row):
            encoding = [
                (math.sin if i % 2 == 0 else math.cos)(position / 10_000 ** (2 * (i // 2) / WIDTH))
                for i in range(WIDTH)
            ]
            vectors.append(weight[token] * math.sqrt(WIDTH) + torch.tensor(encoding))
        rows.append(torch.stack(vectors))
    return torch.stack(rows)


SOURCE = torch.tensor([[5, 6, 7, 8, 9, 3], [10, 11, 3, 0, 0, 0], [12, 3, 0, 0, 0, 0]])
TARGET = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 0], [2, 0, 0, 0]])


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
def test_fused_attention_equals_the_three_steps(num_kv_heads: int, mask: str) -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 4, 6, 8), *torch.randn(2, 3, num_kv_heads, 6, 8)
    padding = (SOURCE != 0)[:, None, None, :]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    allowed = {"none": None, "padding": padding, "causal": causal}[mask]
    output, weights = explicit_attention(query, key, value, allowed)
    fused = fused_attention(query, key, value, None if mask == "causal" else allowed, causal=mask == "causal")
    torch.testing.assert_close(fused, output, **CLOSE)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 6), **CLOSE)
    if allowed is not None:
        assert weights.masked_select(~allowed.expand_as(weights)).eq(0).all()


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_attention_equals_multihead_attention(num_kv_heads: int) -> None:
    torch.manual_seed(2)
    x, memory, padding = torch.randn(3, 4, WIDTH), torch.randn(3, 6, WIDTH), SOURCE == 0
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()

    cross = CrossAttention(WIDTH, HEADS, num_kv_heads, 0.0).eval()
    copy_attention(cross, reference)
    expected, _ = reference(x, memory, memory, key_padding_mask=padding)
    torch.testing.assert_close(cross(x, memory, ~padding[:, None, None, :]), expected, **CLOSE)

    own = SelfAttention(WIDTH, HEADS, num_kv_heads, 0.0).eval()
    copy_attention(own, reference)
    future = nn.Transformer.generate_square_subsequent_mask(4)
    expected, _ = reference(x, x, x, attn_mask=future, is_causal=True)
    torch.testing.assert_close(own(x, causal=True), expected, **CLOSE)


@pytest.mark.parametrize(("norm", "activation"), VARIANTS)
def test_encoder_equals_transformer_encoder(norm: str, activation: str) -> None:
    model = new_model("translation", norm, activation)
    assert isinstance(model, TranslationModel)
    padding = SOURCE == 0
    embedded = reference_embedding(model.embedding.token.weight, SOURCE)
    expected = reference_encoder(model, norm, activation)(embedded, src_key_padding_mask=padding)
    memory = model.encode(SOURCE, ~padding[:, None, None, :])
    torch.testing.assert_close(memory[~padding], expected[~padding], **CLOSE)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize(("norm", "activation"), VARIANTS)
def test_translation_model_equals_encoder_decoder(norm: str, activation: str, num_kv_heads: int) -> None:
    model = new_model("translation", norm, activation, num_kv_heads)
    assert isinstance(model, TranslationModel)
    weight, padding = model.embedding.token.weight, SOURCE == 0
    memory = reference_encoder(model, norm, activation)(
        reference_embedding(weight, SOURCE), src_key_padding_mask=padding
    )
    states = reference_decoder(model, norm, activation)(
        reference_embedding(weight, TARGET),
        memory,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(TARGET.shape[1]),
        memory_key_padding_mask=padding,
        tgt_is_causal=True,
    )
    real = TARGET != 0
    torch.testing.assert_close(model(SOURCE, TARGET)[real], (states @ weight.T)[real], **CLOSE)


@pytest.mark.parametrize(("norm", "activation"), VARIANTS)
def test_language_model_equals_causal_encoder(norm: str, activation: str) -> None:
    """Without cross-attention a decoder layer is torch's encoder layer under a causal mask."""
    model = new_model("generation", norm, activation)
    assert isinstance(model, LanguageModel)
    last = nn.LayerNorm(WIDTH) if norm == "pre" else None
    layer = nn.TransformerEncoderLayer(**reference_options(norm, activation))
    stack: Any = nn.TransformerEncoder(layer, LAYERS, norm=last, enable_nested_tensor=False).eval()
    for ours, theirs in zip(model.decoder_layers, stack.layers, strict=True):
        copy_layer(ours, theirs)
    if last is not None:
        stack.norm.load_state_dict(model.decoder_norm.state_dict())
    weight = model.embedding.token.weight
    states = stack(
        reference_embedding(weight, SOURCE),
        mask=nn.Transformer.generate_square_subsequent_mask(SOURCE.shape[1]),
        is_causal=True,
    )
    torch.testing.assert_close(model(SOURCE), states @ weight.T, **CLOSE)


def test_positions_are_those_of_the_paper() -> None:
    expected = reference_embedding(torch.zeros(1, WIDTH), torch.zeros(1, 50, dtype=torch.long))[0]
    torch.testing.assert_close(sinusoidal_positions(50, WIDTH), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_kv_heads", [HEADS, 2])
def test_causal_attention_in_three_steps_is_the_kernels(num_kv_heads: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, HEADS, 7, 8)
    key, value = torch.randn(2, 2, num_kv_heads, 7, 8)
    ours, weights = explicit_attention(query, key, value, causal=True)
    torch.testing.assert_close(ours, fused_attention(query, key, value, causal=True), **CLOSE)
    assert not weights.triu(1).any(), "no position sees a later one"


@pytest.mark.parametrize("task", ["translation", "generation"])
def test_the_gradients_of_training_on_a_cpu_are_those_of_plain_operators(task: str) -> None:
    """In bf16, with attention written out and the loss fused, against fp32 with PyTorch's kernels and loss."""
    model = new_model(task, "pre", "gelu").train()
    assert isinstance(model, TranslationModel | LanguageModel)
    lengths = [3, 9, 16, 1, 12]
    targets = [torch.randint(4, VOCABULARY, (length,)).tolist() for length in lengths]
    examples = Pairs([[*target, END_ID] for target in targets], targets) if task == "translation" else None
    [batch] = in_order(examples or Stream(targets, 16), 1000)
    with torch.autocast("cpu", torch.bfloat16):
        ours = total_loss(model, batch, label_smoothing=0.1)
    gradients = torch.autograd.grad(ours, list(model.parameters()))

    inputs = (batch.input_ids,) if batch.source_ids is None else (batch.source_ids, batch.input_ids)
    logits = model(*inputs).flatten(0, 1)
    expected = nn.functional.cross_entropy(
        logits, batch.label_ids.flatten(), reduction="sum", label_smoothing=0.1, ignore_index=PADDING_ID
    )
    assert ours.item() == pytest.approx(expected.item(), rel=1e-2)
    reference = torch.autograd.grad(expected, list(model.parameters()))
    one, other = (torch.cat([g.flatten() for g in each]) for each in (gradients, reference))
    assert float(nn.functional.cosine_similarity(one, other, dim=0)) > 0.999
    assert float(one.norm() / other.norm()) == pytest.approx(1.0, abs=0.02)
