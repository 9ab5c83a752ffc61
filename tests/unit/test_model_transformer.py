"""Properties of the model that no reference implementation states."""

import dataclasses

import pytest
import torch

from dragoman.model.transformer import Dimensions, LanguageModel, TranslationModel, build_model

TRANSLATION = Dimensions("translation", 23, 32, 4, 2, 48, 2, 2, 16, 16)
GENERATION = Dimensions("generation", 23, 32, 4, 2, 48, 0, 2, 0, 16)


def translation_model(**changes: object) -> TranslationModel:
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(TRANSLATION, **changes)).eval()  # type: ignore[arg-type]
    assert isinstance(model, TranslationModel)
    return model


def language_model(**changes: object) -> LanguageModel:
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(GENERATION, **changes)).eval()  # type: ignore[arg-type]
    assert isinstance(model, LanguageModel)
    return model


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(norm: str, activation: str) -> None:
    model = translation_model(norm=norm, activation=activation)
    source, target = torch.tensor([[5, 6, 7, 3]]), torch.tensor([[2, 8, 9]])
    padded_source = torch.tensor([[5, 6, 7, 3, 0, 0, 0], [9, 9, 9, 9, 9, 9, 3]])
    padded_target = torch.tensor([[2, 8, 9, 0, 0], [2, 4, 4, 4, 4]])
    alone, padded = model(source, target), model(padded_source, padded_target)
    torch.testing.assert_close(padded[:1, :3], alone, rtol=1e-5, atol=1e-5)


def test_the_future_is_not_seen() -> None:
    decoder, source = translation_model(), torch.tensor([[5, 6, 3]])
    one, other = torch.tensor([[2, 8, 9, 10]]), torch.tensor([[2, 8, 4, 11]])
    torch.testing.assert_close(decoder(source, one)[:, :2], decoder(source, other)[:, :2])
    assert not torch.allclose(decoder(source, one)[:, 2], decoder(source, other)[:, 2])
    generator = language_model()
    torch.testing.assert_close(generator(one)[:, :2], generator(other)[:, :2])
    assert not torch.allclose(generator(one)[:, 2], generator(other)[:, 2])


def test_one_matrix_embeds_source_and_target_and_gives_the_logits() -> None:
    model = translation_model()
    vocabulary_wide = [name for name, p in model.named_parameters() if 23 in p.shape]
    assert vocabulary_wide == ["embedding.token.weight"]
    before = model(torch.tensor([[5, 3]]), torch.tensor([[2]]))
    with torch.no_grad():
        model.embedding.token.weight[20] += 1.0  # a token that is neither in the source nor in the target
    after = model(torch.tensor([[5, 3]]), torch.tensor([[2]]))
    changed = (before != after)[0, 0].nonzero().flatten().tolist()
    assert changed == [20]


def test_the_order_of_tokens_matters() -> None:
    model = translation_model()
    target = torch.tensor([[2]])
    one, other = model(torch.tensor([[5, 6, 3]]), target), model(torch.tensor([[6, 5, 3]]), target)
    assert not torch.allclose(one, other, atol=1e-3)


def test_embeddings_begin_with_deviation_one_once_scaled() -> None:
    model = translation_model(vocabulary_size=5_000)
    scaled = model.embedding.token.weight[1:] * model.embedding.scale
    assert scaled.std().item() == pytest.approx(1.0, abs=0.02)
    assert model.embedding.token.weight[0].eq(0).all()


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = translation_model().state_dict(), translation_model().state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_dropout_works_in_training_only() -> None:
    model = translation_model(dropout=0.3)
    source, target = torch.tensor([[5, 6, 3]]), torch.tensor([[2, 7]])
    torch.testing.assert_close(model(source, target), model(source, target), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(source, target), model(source, target))


def test_shared_key_and_value_heads_save_parameters() -> None:
    def num_parameters(num_kv_heads: int) -> int:
        return sum(p.numel() for p in language_model(num_kv_heads=num_kv_heads).parameters())

    # Each of the 2 layers saves 3 heads of 8 rows of width 32, with biases, for keys and for values.
    assert num_parameters(4) - num_parameters(1) == 2 * 2 * 3 * 8 * (32 + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "width 30 is not a multiple of num_heads 4"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"width": 48}, "heads of 12, which is not a multiple of 8"),
    ],
)
def test_dimensions_that_cannot_be_say_why(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRANSLATION, **changes)  # type: ignore[arg-type]
