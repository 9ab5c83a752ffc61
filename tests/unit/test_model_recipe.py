import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dragoman.common.errors import SettingsError
from dragoman.common.settings import Settings
from dragoman.model.corpora.settings import CorpusSettings
from dragoman.model.errors import RecipeError
from dragoman.model.recipe import Recipe, TrainingSettings, builtin_recipes, load_recipe

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-recipe.toml"


def test_the_built_in_recipes() -> None:
    assert builtin_recipes() == ("dates", "multi30k", "shakespeare", "shakespeare-small", "stdlib")


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_built_in_recipe_is_valid_and_named_like_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    dims = recipe.dimensions(recipe.tokenizer.vocabulary_size)
    assert dims.task == recipe.task
    assert (dims.num_encoder_layers > 0) == (recipe.task == "translation")


def test_overrides_reach_nested_settings() -> None:
    recipe = load_recipe(
        "dates", ["training.max_steps=7", "model.activation=swiglu", "corpus.first_year = 1900", "seed=5"]
    )
    assert recipe.training.max_steps == 7
    assert recipe.model.activation == "swiglu"
    assert recipe.corpus.model_dump()["first_year"] == 1900
    assert recipe.seed == 5
    assert recipe.training.batch_tokens == load_recipe("dates").training.batch_tokens


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_step=5", "unknown key 'training.max_step'; did you mean 'max_steps'?"),
        ("corpus.num_trian=5", "unknown key 'corpus.num_trian'; did you mean 'num_train'?"),
        ("batch_tokens=5", "unknown key 'batch_tokens'; did you mean 'training.batch_tokens'?"),
        ("tokeniser.kind=bpe", "unknown key 'tokeniser'; did you mean 'tokenizer'?"),
        ("training.warmup_steps=-1", "training.warmup_steps = -1"),
        ("corpus.first_year=2500", "last_year 2099 is before first_year 2500"),
        ("corpus.kind=date", "corpus.kind = 'date': it is one of 'dates'"),
        ("model.width=33", "width 33 is not a multiple of num_heads 2"),
        ("model.num_kv_heads=3", "num_heads 2 is not a multiple of num_kv_heads 3"),
        ("model.num_encoder_layers=0", "model.num_encoder_layers must be at least 1"),
        ("task=generation", "corpus.kind = 'dates' is for translation, not generation"),
        ("training.min_learning_rate=1.0", "min_learning_rate 1.0 is above max_learning_rate"),
        ("training.max_steps", "is not of the form key=value"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_value(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_recipe("dates", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_training_without_an_end_is_refused(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("max_minutes = 10 ", "# max_minutes = 10 ")
    path = tmp_path / "endless.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="max_steps, max_minutes or both"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe 'date'.*dates, multi30k, shakespeare, shakespeare-small, stdlib"
    ):
        load_recipe("date")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot read nowhere/mine\.toml"):
        load_recipe("nowhere/mine.toml")


def test_the_documented_example_is_valid_and_its_paths_start_at_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(EXAMPLE.read_text())
    recipe = load_recipe(str(path))
    assert recipe.name == "example"
    assert recipe.corpus.model_dump()["folder"] == str(tmp_path)


def test_the_documented_alternatives_are_valid(tmp_path: Path) -> None:
    """Each commented `kind` of the example, with the keys under it, in place of the first."""
    text = EXAMPLE.read_text()
    head, rest = text.split('kind = "parallel"', 1)
    commented, tail = rest.split("# Other kinds:", 1)[1].split("[tokenizer]", 1)
    alternatives = [f"kind = {block}" for block in commented.replace("\n# ", "\n").split("kind = ")[1:]]
    assert len(alternatives) == 4
    for alternative in alternatives:
        body = alternative.replace("\n#\n", "\n")
        if 'kind = "text"' in body:
            head_used = head.replace('task = "translation"', 'task = "generation"')
            tail_used = "\n".join(
                line
                for line in tail.splitlines()
                if "encoder_layers" not in line and "max_source" not in line
            )
        else:
            head_used, tail_used = head, tail
        path = tmp_path / "mine.toml"
        path.write_text(f"{head_used}{body}\n[tokenizer]{tail_used}")
        assert load_recipe(str(path)).corpus.kind in body


def test_data_given_on_the_command_line_is_recorded(tmp_path: Path) -> None:
    recipe = load_recipe("multi30k").with_data(tmp_path)
    assert recipe.corpus.model_dump()["folder"] == str(tmp_path)
    assert Recipe.load(recipe.model_dump(), source="recipe.json") == recipe


def test_data_for_a_corpus_that_reads_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'dates' makes its own corpus"):
        load_recipe("dates").with_data(tmp_path)


def test_generation_has_no_encoder() -> None:
    with pytest.raises(SettingsError, match="num_encoder_layers = 2: generation has no encoder"):
        load_recipe("stdlib", ["model.num_encoder_layers=2"])


def test_byte_bpe_needs_room_for_all_bytes() -> None:
    with pytest.raises(SettingsError, match="vocabulary_size 100"):
        load_recipe("stdlib", ["tokenizer.vocabulary_size=100"])


def remarks_of_the_example() -> list[tuple[str, str, Any, str]]:
    """Each key that the example sets, shows with its default, or gives an example of: section, key, value, how."""
    found = []
    section = ""
    own_kind, others = EXAMPLE.read_text().split("# Other kinds:")
    for line in (own_kind + "[tokenizer]" + others.split("[tokenizer]", 1)[1]).splitlines():
        if line.startswith("["):
            section = line[1 : line.index("]")]
        elif match := re.match(r"(# example: |# |)(\w+ = .*)", line):
            [(key, value)] = tomllib.loads(match[2]).items()
            told = re.search(r"# default: (\w+)", match[2])
            how = {"": f"set, {told[1] if told else 'no'} default", "# ": "default"}.get(match[1], "example")
            found.append((section, key, value, how))
    return found


@pytest.mark.parametrize(("section", "key", "value", "how"), remarks_of_the_example())
def test_the_example_says_which_values_are_defaults(section: str, key: str, value: Any, how: str) -> None:
    recipe = load_recipe(str(EXAMPLE))
    settings: Settings = getattr(recipe, section) if section else recipe
    field = type(settings).model_fields[key]
    if how == "default":
        assert value == field.default
    elif how == "example":
        assert not field.default
    elif field.is_required():
        assert how == "set, no default"
    else:
        words = {"": "empty", None: "none"}
        assert how == f"set, {words.get(field.default, field.default)} default"
        assert value != field.default


def test_the_example_shows_the_defaults_of_other_kinds() -> None:
    blocks = EXAMPLE.read_text().split("# Other kinds:")[1].split("[tokenizer]")[0].split("#\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        values = tomllib.loads(block.replace("# ", "", 1).replace("\n# ", "\n"))
        settings = TypeAdapter(CorpusSettings).validate_python(values)
        fields = type(settings).model_fields
        for key in values.keys() - {"kind", "train"}:
            assert (key, values[key]) == (key, fields[key].default)


@pytest.mark.parametrize(("optimizer", "rate"), [("muon", 4e-3), ("adamw", 1e-3)])
def test_a_peak_that_is_left_out_suits_the_optimizer(optimizer: str, rate: float) -> None:
    chosen = TrainingSettings.load({"max_steps": 1, "optimizer": optimizer}, source="test")
    assert chosen.max_learning_rate == rate
    given = TrainingSettings.load(
        {"max_steps": 1, "optimizer": optimizer, "max_learning_rate": 7e-3}, source="test"
    )
    assert given.max_learning_rate == 7e-3


def test_an_optimizer_that_is_left_out_suits_the_way_of_working_together() -> None:
    chosen = TrainingSettings.load({"max_steps": 1, "parallel": "fsdp"}, source="test")
    assert (chosen.optimizer, chosen.max_learning_rate) == ("adamw", 1e-3)
    with pytest.raises(SettingsError, match="takes optimizer = 'adamw'"):
        TrainingSettings.load({"max_steps": 1, "parallel": "fsdp", "optimizer": "muon"}, source="test")


def test_a_run_of_an_earlier_release_keeps_its_values() -> None:
    """A run's recipe.json has every setting, so new defaults change none."""
    settings = load_recipe("dates", ["training.schedule=inverse_sqrt"]).model_dump(mode="json")
    assert Recipe.load(settings, source="recipe.json").training.schedule == "inverse_sqrt"
    assert Recipe.load(settings, source="recipe.json").training.optimizer == "adamw"
