"""The run folder: what is saved is what is loaded, and what is damaged is named."""

import json
from pathlib import Path

import pytest
import torch

from dragoman.common.errors import OperationError
from dragoman.model.errors import RunError
from dragoman.model.recipe import Recipe, TokenizerSettings
from dragoman.model.run import Run, load_run, save_run
from dragoman.model.tokenizer import train_tokenizer
from dragoman.model.transformer import build_model

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "task": "translation",
        "corpus": {"kind": "dates"},
        "tokenizer": {"kind": "character", "vocabulary_size": 32},
        "model": {
            "width": 16,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "max_source_tokens": 8,
            "max_target_tokens": 8,
        },
        "training": {"max_steps": 1},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    tokenizer = train_tokenizer(
        TokenizerSettings(kind="character", vocabulary_size=32), ["abc"], "translation"
    )
    torch.manual_seed(0)
    model = build_model(RECIPE.dimensions(tokenizer.get_vocab_size())).eval()
    saved = Run(tmp_path / "run", model, tokenizer, RECIPE, step=7, metrics={"validation_loss": 0.5})
    save_run(saved)
    return saved


def test_what_is_saved_is_what_is_loaded(run: Run) -> None:
    loaded = load_run(run.path)
    assert (loaded.step, loaded.metrics, loaded.recipe) == (7, {"validation_loss": 0.5}, RECIPE)
    assert loaded.model.dims == run.model.dims
    assert loaded.tokenizer.encode("cab").ids == run.tokenizer.encode("cab").ids
    assert not loaded.model.training
    weights = loaded.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.model.state_dict().items())
    assert loaded.torch_version == torch.__version__


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is not a finished training run: there is no such folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="it is a file"):
        load_run(tmp_path / "file")


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(run: Run, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(RunError, match=f"it holds no {name}"):
        load_run(run.path)


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "tokenizer.json", "model.safetensors"])
def test_a_torn_file_is_named(run: Run, name: str) -> None:
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=name) as caught:
        load_run(run.path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_run_are_refused(run: Run) -> None:
    (run.path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RunError, match=r"model\.safetensors is not the file that run\.json records"):
        load_run(run.path)


def test_weights_that_do_not_fit_the_dimensions_are_refused(run: Run) -> None:
    record = json.loads((run.path / "run.json").read_text())
    record["dimensions"]["num_decoder_layers"] = 2
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="does not fit the dimensions"):
        load_run(run.path)


def test_an_unknown_key_is_named(run: Run) -> None:
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**record, "steps": 3}))
    with pytest.raises(RunError, match=r"run\.json: unknown key 'steps'; did you mean 'step'\?"):
        load_run(run.path)


def test_a_run_that_could_not_be_replaced_whole_is_no_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OperationError("cannot write: No space left on device")

    monkeypatch.setattr("dragoman.model.run.write_weights", full)
    with pytest.raises(OperationError, match="No space left"):
        save_run(run)
    with pytest.raises(RunError, match=r"it holds no run\.json"):
        load_run(run.path)
