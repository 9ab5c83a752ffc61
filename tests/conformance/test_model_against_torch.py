"""The Transformer written here, against PyTorch's own layers with the same weights, and against formulas."""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import CrossAttention, SelfAttention, explicit_attention, fused_attention, split_heads
from model.batching import pad_right
from model.tokenizer import BEGIN_ID, PADDING_ID
from model.transformer import (
    DecoderLayer,
    Dimensions,
    EncoderLayer,
    FeedForward,
    LanguageModel,
    TranslationModel,
    build_model,
    sinusoidal_positions,
)

WIDTH, HEADS, FEED_FORWARD, VOCABULARY, LAYERS = 32, 4, 48, 50, 3
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    yield
    torch.set_num_threads(before)


def dimensions(task: str, **changes: object) -> Dimensions:
    translates = task == "translation"
    values = {
        "task": task,
        "vocabulary_size": VOCABULARY,
        "width": WIDTH,
        "num_heads": HEADS,
        "num_kv_heads": HEADS,
        "feed_forward_width": FEED_FORWARD,
        "num_encoder_layers": LAYERS if translates else 0,
        "num_decoder_layers": LAYERS,
        "max_source_tokens": 20 if translates else 0,
        "max_target_tokens": 20,
    }
    return Dimensions(**{**values, **changes})  # type: ignore[arg-type]


def fresh_model(task: str, **changes: object) -> TranslationModel | LanguageModel:
    """Random norms and biases too: at their first values (1 and 0) a swapped one would not be seen."""
    model = build_model(dimensions(task, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm.weight" in name))
    return model


def sentences(*lengths: int) -> list[list[int]]:
    return [torch.randint(4, VOCABULARY, (length,)).tolist() for length in lengths]


class TestAttention:
    @pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
    @pytest.mark.parametrize("mask", ["none", "padding", "causal"])
    def test_three_steps_equal_one_kernel(self, num_kv_heads: int, mask: str) -> None:
        query = torch.randn(3, 4, 7, 8)
        key, value = torch.randn(3, num_kv_heads, 7, 8), torch.randn(3, num_kv_heads, 7, 8)
        lengths = torch.tensor([7, 4, 1])
        allowed = {
            "none": None,
            "padding": (torch.arange(7) < lengths[:, None])[:, None, None, :],
            "causal": torch.ones(7, 7).tril().bool(),
        }[mask]
        explicit, weights = explicit_attention(query, key, value, allowed)
        fused = fused_attention(
            query, key, value, None if mask == "causal" else allowed, causal=mask == "causal"
        )
        oracle = functional.scaled_dot_product_attention(query, key, value, allowed, enable_gqa=True)
        torch.testing.assert_close(explicit, fused, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(explicit, oracle, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 7))
        if allowed is not None:
            assert (weights.masked_select(~allowed) == 0).all()

    def test_gradients_are_equal_too(self) -> None:
        query, key, value = inputs = [torch.randn(2, heads, 5, 8, requires_grad=True) for heads in (4, 2, 2)]
        allowed = torch.ones(5, 5).tril().bool()
        explicit = torch.autograd.grad(
            explicit_attention(query, key, value, allowed)[0].square().sum(), inputs
        )
        fused = torch.autograd.grad(fused_attention(query, key, value, causal=True).square().sum(), inputs)
        for ours, theirs in zip(explicit, fused, strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-5)

    def test_self_attention_is_torch_multihead_attention(self) -> None:
        ours = SelfAttention(WIDTH, HEADS, HEADS, dropout=0.0)
        theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        copy_self_attention(ours, theirs)
        x = torch.randn(2, 6, WIDTH)
        expected, expected_weights = theirs(x, x, x, average_attn_weights=False)
        torch.testing.assert_close(ours(x), expected, atol=TOLERANCE, rtol=0)
        query, key, value = (split_heads(part, HEADS) for part in ours.project(x))
        torch.testing.assert_close(
            explicit_attention(query, key, value)[1], expected_weights, atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
class TestStacks:
    def test_encoder_decoder(self, norm: str, activation: str) -> None:
        model = fresh_model("translation", norm=norm, activation=activation)
        assert isinstance(model, TranslationModel)
        encoder, decoder = torch_encoder(model, norm, activation), torch_decoder(model, norm, activation)
        source = pad_right(sentences(9, 4, 1))
        target = pad_right([[BEGIN_ID, *tokens] for tokens in sentences(3, 6, 5)])
        ignored = source == PADDING_ID

        memory = encoder(embed(model, source), src_key_padding_mask=ignored)
        ours = model.encode(source, ~ignored[:, None, None, :])
        torch.testing.assert_close(ours[~ignored], memory[~ignored], atol=TOLERANCE, rtol=0)

        states = decoder(
            embed(model, target),
            memory,
            tgt_mask=torch.ones(7, 7).triu(1).bool(),
            tgt_is_causal=True,
            memory_key_padding_mask=ignored,
        )
        expected = states @ model.state_dict()["embedding.token.weight"].T
        torch.testing.assert_close(model(source, target), expected, atol=TOLERANCE, rtol=TOLERANCE)

    def test_decoder_only(self, norm: str, activation: str) -> None:
        model = fresh_model("generation", norm=norm, activation=activation)
        assert isinstance(model, LanguageModel)
        stack = torch_encoder(model, norm, activation)  # a decoder without cross-attention has its layers
        token_ids = torch.tensor(sentences(11, 11))
        states = stack(embed(model, token_ids), mask=torch.ones(11, 11).triu(1).bool(), is_causal=True)
        expected = states @ model.state_dict()["embedding.token.weight"].T
        torch.testing.assert_close(model(token_ids), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_swiglu_is_its_formula() -> None:
    network = FeedForward(dimensions("generation", activation="swiglu"))
    x = torch.randn(2, 3, WIDTH)
    (gate, value), (gate_bias, value_bias) = network.expand.weight.chunk(2), network.expand.bias.chunk(2)
    swish = x @ gate.T + gate_bias
    hidden = swish / (1 + torch.exp(-swish)) * (x @ value.T + value_bias)
    expected = hidden @ network.contract.weight.T + network.contract.bias
    torch.testing.assert_close(network(x), expected, atol=TOLERANCE, rtol=0)


def test_positions_follow_the_paper() -> None:
    table = sinusoidal_positions(60, WIDTH)
    for position in (0, 1, 2, 17, 59):
        for i in range(WIDTH // 2):
            angle = position / 10_000 ** (2 * i / WIDTH)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_padding_changes_no_translation(num_kv_heads: int) -> None:
    model = fresh_model("translation", num_kv_heads=num_kv_heads)
    sources, targets = sentences(3, 12, 7), sentences(8, 2, 5)
    together = model(pad_right(sources), pad_right(targets))
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model(torch.tensor([source]), torch.tensor([target]))
        torch.testing.assert_close(together[row, : len(target)], alone[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_padding_changes_no_prediction_of_a_language_model() -> None:
    model = fresh_model("generation", activation="swiglu", num_kv_heads=2)
    texts = sentences(3, 12, 7)
    together = model(pad_right(texts))
    for row, tokens in enumerate(texts):
        alone = model(torch.tensor([tokens]))
        torch.testing.assert_close(together[row, : len(tokens)], alone[0], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("task", ["translation", "generation"])
def test_no_position_sees_the_future(task: str) -> None:
    model = fresh_model(task)
    [source], [tokens] = sentences(6), sentences(10)
    changed = [*tokens[:6], *sentences(4)[0]]
    inputs = [torch.tensor([source])] if task == "translation" else []
    before, after = (model(*inputs, torch.tensor([row])) for row in (tokens, changed))
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-2)


@pytest.mark.parametrize("task", ["translation", "generation"])
def test_one_matrix_embeds_and_predicts(task: str) -> None:
    model = fresh_model(task)
    wide = [name for name, tensor in model.state_dict().items() if VOCABULARY in tensor.shape]
    assert wide == ["embedding.token.weight"]
    assert not any("position" in name for name in model.state_dict()), "a formula, not weights"
    states = torch.randn(2, WIDTH)
    before = model.logits(states)
    with torch.no_grad():
        model.embedding.token.weight[9] *= 2
    after = model.logits(states)
    torch.testing.assert_close(after[:, 9], 2 * before[:, 9])
    torch.testing.assert_close(after[:, 10], before[:, 10])


def embed(model: TranslationModel | LanguageModel, token_ids: Tensor) -> Tensor:
    """sqrt(width) times the embedding, plus the positional encoding (sections 3.4 and 3.5)."""
    weight: Tensor = model.state_dict()["embedding.token.weight"]
    return weight[token_ids] * math.sqrt(WIDTH) + sinusoidal_positions(token_ids.shape[1], WIDTH)


def torch_encoder(model: TranslationModel | LanguageModel, norm: str, activation: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEED_FORWARD, 0.0, activation, batch_first=True, norm_first=norm == "pre"
    )
    stack = nn.TransformerEncoder(
        layer, LAYERS, nn.LayerNorm(WIDTH) if norm == "pre" else None, enable_nested_tensor=False
    )
    layers: Sequence[EncoderLayer | DecoderLayer] = (
        model.encoder_layers if isinstance(model, TranslationModel) else model.decoder_layers
    )
    for ours, theirs in zip(layers, stack.layers, strict=True):
        copy_self_attention(ours.self_attention, theirs.self_attn)
        copy_feed_forward(ours, theirs)
        copy(ours.around_self_attention.norm, theirs.norm1)
        copy(ours.around_feed_forward.norm, theirs.norm2)
    if stack.norm is not None:
        copy(model.encoder_norm if isinstance(model, TranslationModel) else model.decoder_norm, stack.norm)
    return stack


def torch_decoder(model: TranslationModel, norm: str, activation: str) -> nn.Module:
    layer = nn.TransformerDecoderLayer(
        WIDTH, HEADS, FEED_FORWARD, 0.0, activation, batch_first=True, norm_first=norm == "pre"
    )
    stack = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(WIDTH) if norm == "pre" else None)
    for ours, theirs in zip(model.decoder_layers, stack.layers, strict=True):
        copy_self_attention(ours.self_attention, theirs.self_attn)
        copy_cross_attention(ours.cross_attention, theirs.multihead_attn)
        copy_feed_forward(ours, theirs)
        copy(ours.around_self_attention.norm, theirs.norm1)
        copy(ours.around_cross_attention.norm, theirs.norm2)
        copy(ours.around_feed_forward.norm, theirs.norm3)
    if stack.norm is not None:
        copy(model.decoder_norm, stack.norm)
    return stack


def copy(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())


def copy_self_attention(ours: SelfAttention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.in_proj_bias.copy_(ours.query_key_value.bias)
    copy(ours.output, theirs.out_proj)


def copy_cross_attention(ours: CrossAttention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    copy(ours.output, theirs.out_proj)


def copy_feed_forward(ours: EncoderLayer | DecoderLayer, theirs: nn.Module) -> None:
    copy(ours.feed_forward.expand, theirs.get_submodule("linear1"))
    copy(ours.feed_forward.contract, theirs.get_submodule("linear2"))
