"""Starting from another run's weights, with its tokenizer or with a new one."""

import dataclasses

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dragoman.model.errors import RunError
from dragoman.model.run import Run
from dragoman.model.tokenizer import SPECIAL_TOKENS
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["start_from"]

_TOKENS = "embedding.token.weight"
_FREE = {
    "vocabulary_size",
    "dropout",
    "attention_dropout",
    "max_source_tokens",
    "max_target_tokens",
    "padding_id",
}


def start_from(model: TranslationModel | LanguageModel, tokenizer: Tokenizer, run: Run) -> int:
    """Give `model` the weights of `run`.

    Where the tokenizers differ, a token that both have keeps its row of the embedding, and a new one starts at
    the mean of the rows that the old tokenizer would read it as (Gee et al. 2022).

    Returns:
        How many rows of the embedding are new; 0 with the run's own tokenizer.

    Raises:
        RunError: the shapes differ, with the first setting that does.
    """
    wanted, found = dataclasses.asdict(model.dims), dataclasses.asdict(run.model.dims)
    for name, value in wanted.items():
        if name not in _FREE and value != found[name]:
            raise RunError(f"{run.path} cannot be started from: its {name} is {found[name]}, not {value}")
    weights = dict(run.model.state_dict())
    num_new = 0
    if tokenizer.get_vocab() != run.tokenizer.get_vocab():
        weights[_TOKENS], num_new = _new_rows(weights[_TOKENS], tokenizer, run.tokenizer)
    model.load_state_dict(weights)
    return num_new


def _new_rows(old: Tensor, tokenizer: Tokenizer, old_tokenizer: Tokenizer) -> tuple[Tensor, int]:
    """Rows (vocabulary, width) for `tokenizer`, and how many of its tokens the old one lacks."""
    old_ids = old_tokenizer.get_vocab()
    rows = torch.empty(tokenizer.get_vocab_size(), old.shape[1])
    num_new = 0
    for token, index in tokenizer.get_vocab().items():
        if token in old_ids:
            rows[index] = old[old_ids[token]]
            continue
        num_new += 1
        text = tokenizer.decode([index])
        pieces = old_tokenizer.encode(text, add_special_tokens=False).ids
        ordinary = old[len(SPECIAL_TOKENS) :]
        rows[index] = old[pieces].mean(dim=0) if pieces else ordinary.mean(dim=0)
    return rows, num_new
