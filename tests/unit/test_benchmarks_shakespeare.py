"""The estimator that both sides of the race are measured by, and what the race reads from their output."""

import math
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.nanogpt import prepare_nanogpt
from benchmarks.race import CONTEXT, cut_windows, mean_loss, run_timed
from benchmarks.shakespeare import check_same_size, our_logits
from benchmarks.shakespeare_loss import informed_logits

from dragoman.model.tokenizer import BEGIN_ID
from dragoman.model.transformer import Dimensions, LanguageModel

SAME_SIZE = ["model.max_target_tokens=64"]


def test_windows_predict_every_character_but_the_first_once() -> None:
    windows = cut_windows(list(range(3 * CONTEXT + 10)))
    assert windows.shape == (3, CONTEXT + 1)
    assert windows[:, 1:].flatten().tolist() == list(range(1, 3 * CONTEXT + 1))
    assert windows[1, 0] == windows[0, -1]


def test_the_loss_is_a_mean_over_characters_whatever_the_chunks() -> None:
    torch.manual_seed(1)
    windows = cut_windows(torch.randint(0, 7, (600 * CONTEXT + 1,)).tolist())
    assert mean_loss(lambda chunk: torch.zeros(*chunk[:, 1:].shape, 7), windows) == pytest.approx(math.log(7))
    table = torch.randn(7, 7)
    expected = -table.log_softmax(-1)[windows[:, :-1], windows[:, 1:]].mean()
    assert mean_loss(lambda chunk: table[chunk[:, :-1]], windows) == pytest.approx(float(expected), abs=1e-4)


def test_ours_sees_the_begin_token_in_place_of_the_character_before() -> None:
    torch.manual_seed(1)
    model = LanguageModel(Dimensions("generation", 11, 32, 2, 2, 48, 0, 1, 0, CONTEXT)).eval()
    windows = cut_windows(torch.randint(4, 11, (2 * CONTEXT + 1,)).tolist())
    logits = our_logits(model)
    with torch.inference_mode():
        found = logits(windows)
        other = windows.clone()
        other[:, 0] = 4
        assert torch.equal(found, logits(other))  # it does not see the character before
        other[:, -1] = 4
        assert torch.equal(found, logits(other))  # nor the last one, which is only predicted
        torch.testing.assert_close(found[0, :1], model(torch.tensor([[BEGIN_ID]]))[0])


def test_nanogpt_s_measure_sees_the_character_before_a_window() -> None:
    torch.manual_seed(1)
    model = LanguageModel(Dimensions("generation", 11, 32, 2, 2, 48, 0, 1, 0, 16)).eval()
    windows = cut_windows(torch.randint(4, 11, (31,)).tolist(), 15)
    assert windows.shape == (2, 16)
    with torch.inference_mode():
        found = informed_logits(model)(windows)
        assert found.shape == (2, 15, 11)
        expected = model(torch.tensor([[BEGIN_ID, int(windows[1, 0])]]))[0, 1]
        torch.testing.assert_close(found[1, 0], expected)


def test_the_race_is_for_models_of_one_size() -> None:
    check_same_size("shakespeare-small", SAME_SIZE)
    with pytest.raises(SystemExit, match="are \\(256, 4, 4, 64\\), nanoGPT's \\(128, 4, 4, 64\\)"):
        check_same_size("shakespeare-small", [*SAME_SIZE, "model.width=256"])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no checkout of nanoGPT: it has no train\.py"):
        prepare_nanogpt(tmp_path, tmp_path / "input.txt", tmp_path / "copy")


def test_a_process_is_timed_line_by_line_and_its_failure_shown(tmp_path: Path) -> None:
    lines = run_timed([sys.executable, "-c", "print('one'); print('two')"], tmp_path, {})
    assert [line for _, line in lines] == ["one", "two"]
    assert 0 < lines[0][0] <= lines[1][0]
    with pytest.raises(SystemExit, match=r"exit code 3:\noops"):
        run_timed([sys.executable, "-c", "print('oops'); raise SystemExit(3)"], tmp_path, {})
