"""Fixture bundles that say they were trained on a corpus of a test's own."""

import json
import shutil
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from dragoman.model.recipe import load_recipe

__all__ = ["BUNDLES", "GENERATION", "OLD_BUNDLES", "TRANSLATION", "bundle_with_recipe", "golden_pairs"]

BUNDLES: Final = Path(__file__).parents[1] / "fixtures" / "bundles"
OLD_BUNDLES: Final = BUNDLES.parent / "schema_1"
"""They name no recipe."""

TRANSLATION = """
name = "spelled"
task = "translation"
[corpus]
kind = "tsv"
train = "train.tsv"
validation = "train.tsv"
test = "test.tsv"
[tokenizer]
kind = "character"
[model]
width = 8
num_heads = 1
num_encoder_layers = 1
num_decoder_layers = 1
max_source_tokens = 8
max_target_tokens = 8
[training]
max_steps = 1
"""
GENERATION = """
name = "counted"
task = "generation"
[corpus]
kind = "text"
train = "train.txt"
validation = "train.txt"
test = "test.txt"
[tokenizer]
kind = "byte_bpe"
[model]
width = 8
num_heads = 1
num_decoder_layers = 1
max_target_tokens = 8
[training]
max_steps = 1
"""


def bundle_with_recipe(folder: Path, fixture: str, recipe: str) -> Path:
    """A copy of a fixture that says it was trained on the corpus in `folder`."""
    (folder / "recipe.toml").write_text(recipe)
    bundle = folder / "models" / fixture / "1"
    shutil.copytree(BUNDLES / fixture / "1", bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["provenance"]["recipe"] = load_recipe(str(folder / "recipe.toml")).model_dump(mode="json")
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


def golden_pairs(bundle: Path) -> list[tuple[str, str]]:
    manifest = json.loads((bundle / "bundle.json").read_text())
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    return [
        (example["text"], tokenizer.decode(example["token_ids"])) for example in manifest["golden_examples"]
    ]
