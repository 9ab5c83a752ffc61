"""Inputs that training never saw, from a run's own corpus: what a bundle is verified and measured on."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import TypeVar

from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.errors import CorpusError
from dragoman.model.run import Run
from dragoman.model.training.corpus_record import changes_since_training
from dragoman.server.execution.prefix_cache import BLOCK_TOKENS

__all__ = ["HeldOut", "calibration_inputs", "held_out"]

_NUM_CALIBRATION_INPUTS = 200
# The longest prompts are read in three runs, so that going on in the middle of one is verified too.
_NUM_PROMPT_TOKENS = 2 * BLOCK_TOKENS + BLOCK_TOKENS // 2
_MAX_CONTINUATION_TOKENS = 32


_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Token ids to decode, with the texts they come from.

    Attributes:
        data: which examples these are, in words.
        texts: one for each input.
        references: what each should be translated to; empty for generation.
        inputs: token ids, special tokens included.
        max_tokens: most tokens to decode.
        documents: what prompts were cut from; empty for translation.
        changes: each file of the corpus that is not as it was when the run was trained. The run may have learned
            from what is held out of such a corpus.
    """

    data: str
    texts: list[str]
    references: list[str]
    inputs: list[list[int]]
    max_tokens: int
    documents: list[str] = dataclasses.field(default_factory=list)
    changes: list[str] = dataclasses.field(default_factory=list)


def held_out(run: Run, num_inputs: int, data: Path | None = None) -> HeldOut:
    """The first `num_inputs` held-out examples that fit the model; documents are cut into prompts.

    Raises:
        CorpusError: the run's corpus cannot be read (`data` says where it is now), or nothing held out fits the model.
    """
    corpus = load_corpus(run.recipe.without_synthetic_pairs(), data)
    split = f"{corpus.name} {'test' if corpus.test else 'validation'} split"
    changes = changes_since_training(run.path, corpus.files)
    dims = run.model.dims
    if dims.task == "translation":
        pairs = [example for example in corpus.held_out if isinstance(example, Pair)]
        encoded = ((pair, run.tokenizer.encode(pair.source).ids) for pair in pairs)
        fitting = [*islice((each for each in encoded if len(each[1]) <= dims.max_source_tokens), num_inputs)]
        if not fitting:
            raise CorpusError(
                f"{split}: no source fits the model's limit of {dims.max_source_tokens} tokens, so there is nothing "
                "to verify the model on"
            )
        return HeldOut(
            data=split,
            texts=[pair.source for pair, _ in fitting],
            references=[pair.target for pair, _ in fitting],
            inputs=[ids for _, ids in fitting],
            max_tokens=dims.max_target_tokens + 1,
            changes=changes,
        )
    documents = [example for example in corpus.held_out if isinstance(example, str)]
    prompts = _prompts(run, documents, num_inputs)
    if not prompts:
        raise CorpusError(
            f"{split}: no document gives a prompt of at most {dims.max_target_tokens // 2} tokens, half of the "
            "model's context, with characters that the vocabulary has, so there is nothing to verify the model on"
        )
    longest = max(len(ids) for _, ids in prompts)
    return HeldOut(
        data=split,
        texts=[text for text, _ in prompts],
        references=[],
        inputs=[ids for _, ids in prompts],
        max_tokens=min(_MAX_CONTINUATION_TOKENS, dims.max_target_tokens - longest),
        documents=documents,
        changes=changes,
    )


def calibration_inputs(run: Run, data: Path | None = None) -> list[list[int]]:
    """Token ids of validation examples spread over the split: sources, or windows as long as the model reads.

    Raises:
        CorpusError: the run's corpus cannot be read; `data` says where it is now.
    """
    validation = load_corpus(run.recipe.without_synthetic_pairs(), data).validation
    dims = run.model.dims
    if dims.task == "translation":
        sources = [example.source for example in validation if isinstance(example, Pair)]
        encoded = [run.tokenizer.encode(source).ids for source in _spread(sources)]
        return [ids for ids in encoded if len(ids) <= dims.max_source_tokens]
    documents = [example for example in validation if isinstance(example, str)]
    size = dims.max_target_tokens
    windows = [
        ids[start : start + size]
        for ids in (run.tokenizer.encode(document).ids for document in documents)
        for start in range(0, len(ids), size)
    ]
    return _spread(windows)


def _spread(items: list[_Item]) -> list[_Item]:
    return items[:: max(1, len(items) // _NUM_CALIBRATION_INPUTS)][:_NUM_CALIBRATION_INPUTS]


def _prompts(run: Run, documents: list[str], num_prompts: int) -> list[tuple[str, list[int]]]:
    """Prompts of mixed lengths, evenly spread over all documents, that read as the tokenizer reads their text."""
    longest = max(1, min(_NUM_PROMPT_TOKENS, run.model.dims.max_target_tokens // 2))
    windows: list[list[int]] = []
    for document in documents:
        ids = run.tokenizer.encode(document, add_special_tokens=False).ids
        # A document that is shorter than a window is one.
        windows += [
            ids[start : start + longest] for start in range(0, max(1, len(ids) - longest), 2 * longest)
        ]
    spread = windows[:: max(1, len(windows) // num_prompts)][:num_prompts]
    prompts = []
    for index, window in enumerate(spread):
        text = run.tokenizer.decode(window[: 1 + index % max(1, len(window))])
        if text:
            prompts.append((text, run.tokenizer.encode(text).ids))
    return [(text, ids) for text, ids in prompts if len(ids) <= run.model.dims.max_target_tokens // 2]
