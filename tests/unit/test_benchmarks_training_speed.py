"""The peer of the training benchmark is the same model, and both sides get the same amount of work."""

import itertools

import numpy as np
import pytest
import torch
from benchmarks.nn_transformer import NnTransformer, NnTransformerStep
from benchmarks.sizes import SIZES
from benchmarks.training_speed import bucketed, enter_contestants, make_pairs, shuffled

from dragoman.model.batching import Pairs
from dragoman.model.recipe import load_recipe
from dragoman.model.transformer import Dimensions, TranslationModel

DIMS = Dimensions("translation", 50, 32, 4, 4, 64, 2, 2, 12, 12)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_recipe_with_a_peer(size: str) -> None:
    recipe = load_recipe("multi30k", SIZES[size])
    dims = recipe.dimensions(recipe.tokenizer.vocabulary_size)
    with torch.device("meta"):
        model, peer = TranslationModel(dims), NnTransformer(dims)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters())


def test_the_peer_computes_what_the_model_computes() -> None:
    torch.manual_seed(3)
    model, peer = TranslationModel(DIMS).eval(), NnTransformer(DIMS).eval()
    weights = dict(model.state_dict())
    renamed = {"embedding.weight": weights["embedding.token.weight"]}
    renamed["output.weight"] = renamed["embedding.weight"]
    for name, tensor in peer.state_dict().items():
        if name not in renamed:
            renamed[name] = torch.randn_like(tensor) * 0.1
    peer.load_state_dict(renamed)
    model.load_state_dict(ours_from(renamed))
    sources = torch.tensor([[5, 6, 7, 3], [9, 3, 0, 0]])
    targets = torch.tensor([[2, 8, 9], [2, 4, 0]])
    expected, found = model(sources, targets), peer(sources, targets)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1, :2], expected[1, :2], atol=1e-4, rtol=1e-4)


def ours_from(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """nn.Transformer's weights under our names."""
    ours = {"embedding.token.weight": theirs["embedding.weight"]}
    for part in ("weight", "bias"):
        for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "multihead_attn"])):
            ours[f"{side}_norm.{part}"] = theirs[f"transformer.{side}.norm.{part}"]
            for number in range(2):
                layer, ours_at = f"transformer.{side}.layers.{number}", f"{side}_layers.{number}"
                ours[f"{ours_at}.feed_forward.expand.{part}"] = theirs[f"{layer}.linear1.{part}"]
                ours[f"{ours_at}.feed_forward.contract.{part}"] = theirs[f"{layer}.linear2.{part}"]
                names = ["self_attention", "cross_attention"][: len(attentions)]
                for name, attention in zip(names, attentions, strict=True):
                    packed = theirs[f"{layer}.{attention}.in_proj_{part}"]
                    ours[f"{ours_at}.{name}.output.{part}"] = theirs[f"{layer}.{attention}.out_proj.{part}"]
                    if name == "self_attention":
                        ours[f"{ours_at}.{name}.query_key_value.{part}"] = packed
                    else:
                        ours[f"{ours_at}.{name}.query.{part}"] = packed[:32]
                        ours[f"{ours_at}.{name}.key_value.{part}"] = packed[32:]
                arounds = [f"around_{name}" for name in (*names, "feed_forward")]
                for index, around in enumerate(arounds, start=1):
                    ours[f"{ours_at}.{around}.norm.{part}"] = theirs[f"{layer}.norm{index}.{part}"]
    return ours


def test_both_get_as_many_pairs_a_batch_and_learn() -> None:
    overrides = [
        *SIZES["tiny"],
        "model.width=32",
        "tokenizer.vocabulary_size=60",
        "training.batch_tokens=512",
    ]
    recipe = load_recipe("multi30k", overrides)
    pairs = make_pairs(recipe, 1)
    plan = list(itertools.islice(bucketed(pairs, 512, 1), 200))
    fixed = list(itertools.islice(shuffled(pairs, 25, 1), 200))
    assert {len(rows) for rows in fixed} == {25}
    assert max(len(rows) for rows in plan) > 25 > min(len(rows) for rows in plan)
    contestants = enter_contestants(recipe, pairs, 1)
    assert len({one.num_parameters for one in contestants}) == 1
    for one in contestants:
        one.take_turn(0.0)
        assert one.num_batches == 1
        assert one.median > 0


def test_the_peers_step_learns() -> None:
    recipe = load_recipe("multi30k", [*SIZES["tiny"], "training.label_smoothing=0"])
    torch.manual_seed(1)
    step = NnTransformerStep(NnTransformer(DIMS), recipe.training)
    batch = Pairs([[5, 6, 3], [7, 3]], [[8, 9, 10], [11]]).batch(np.arange(2))
    losses = [float(step(batch)) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5


def test_a_shape_without_a_peer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nn\.Transformer has no activation 'swiglu'"):
        NnTransformer(Dimensions("translation", 50, 32, 4, 4, 64, 2, 2, 12, 12, activation="swiglu"))
