"""What a trained model is worth on text that training never saw."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tokenizers import Tokenizer

from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.decoding import greedy_decode
from dragoman.model.quality import Comparison, bits_per_byte, translation_figures
from dragoman.model.training.validation import evenly_spread
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["Quality", "fitting_documents", "measure", "translate_texts", "within_time"]

_FIRST_CHUNK: Final = 8  # tells how long the others take
_MAX_CHUNK: Final = 128
_PROBE_CHARACTERS: Final = 4_096  # of a document, for the same purpose
_USED_SHARE: Final = 0.75  # of the time that is left: an estimate may be too low

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Quality:
    """Figures named after split and measure, and what they were measured on.

    Attributes:
        figures: by name, such as `test_bleu`.
        num_measured: examples that there was time for, by split.
        num_wanted: examples that there are, up to the wanted number, by split.
    """

    figures: dict[str, float]
    num_measured: dict[str, int]
    num_wanted: dict[str, int]

    @property
    def cuts(self) -> list[str]:
        """The splits that the time was too short for, in words."""
        return [
            f"{self.num_measured[split]:,} of {wanted:,} {split} examples"
            for split, wanted in self.num_wanted.items()
            if self.num_measured[split] < wanted
        ]


def measure(
    model: TranslationModel | LanguageModel,
    tokenizer: Tokenizer,
    corpus: Corpus[Pair] | Corpus[str],
    max_examples: int,
    comparison: Comparison | None = None,
    *,
    end_s: float = math.inf,
) -> Quality:
    """Measure at most `max_examples` of a split, or as many as there is time for; `model` evaluates.

    Translation: `dragoman.model.quality.translation_figures` of greedy decoding, on the test split or, without one,
    on the validation split. Generation: bits per byte on both.

    Args:
        model: what is measured.
        tokenizer: its own.
        corpus: what it was trained on; the splits held out of it.
        max_examples: of each split.
        comparison: how translations are compared with their references.
        end_s: when the time is over, by `time.monotonic`.
    """
    if isinstance(model, LanguageModel):
        return _measure_documents(model, tokenizer, corpus, max_examples, end_s)
    name = "test" if corpus.test else "validation"
    pairs = [pair for pair in corpus.held_out[:max_examples] if isinstance(pair, Pair)]
    known, answers = within_time(
        pairs, lambda some: translate_texts(model, tokenizer, [pair.source for pair in some]), end_s
    )
    figures = translation_figures(answers, [pair.target for pair in known], comparison)
    named = {f"{name}_{measure}": value for measure, value in figures.items()}
    return Quality(named, {name: len(known)}, {name: len(pairs)})


def _measure_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    corpus: Corpus[Pair] | Corpus[str],
    max_examples: int,
    end_s: float,
) -> Quality:
    """Bits per byte on both splits; half of the time is for the first of two."""
    figures: dict[str, float] = {}
    num_measured, num_wanted = dict[str, int](), dict[str, int]()
    for name, split in {"validation": corpus.validation, "test": corpus.test}.items():
        documents = [text for text in split[:max_examples] if isinstance(text, str)]
        if not documents:
            continue
        split_end_s = (time.monotonic() + end_s) / 2 if name == "validation" and corpus.test else end_s
        known = fitting_documents(model, tokenizer, documents, split_end_s)
        figures[f"{name}_bits_per_byte"] = bits_per_byte(model, tokenizer, known)
        num_measured[name], num_wanted[name] = len(known), len(documents)
    return Quality(figures, num_measured, num_wanted)


def fitting_documents(
    model: LanguageModel, tokenizer: Tokenizer, documents: Sequence[str], end_s: float
) -> Sequence[str]:
    """Return the documents that can be read until `end_s`, evenly spread; the start of one that is too long alone."""
    if end_s == math.inf:
        return documents
    order = evenly_spread(len(documents))
    probe = documents[order[0]][:_PROBE_CHARACTERS]
    start_s = time.monotonic()
    bits_per_byte(model, tokenizer, [probe])
    now_s = time.monotonic()
    room = int(_USED_SHARE * len(probe) * max(0.0, end_s - now_s) / (now_s - start_s))
    if sum(map(len, documents)) <= room:
        return documents
    fitting: list[str] = []
    for number in order:
        room -= len(documents[number])
        if room < 0:
            break
        fitting.append(documents[number])
    return fitting or [documents[order[0]][: max(room + len(documents[order[0]]), len(probe))]]


def within_time(
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Sequence[Result]],
    end_s: float,
) -> tuple[list[Item], list[Result]]:
    """Compute the results of all `items`, or of as many as the time until `end_s` allows, and of a few in any case.

    Returns:
        The items that have results, and the results. Items that are a part of all are spread evenly.
    """
    if end_s == math.inf:
        return list(items), list(compute(items))
    known: list[Item] = []
    results: list[Result] = []
    order = evenly_spread(len(items))
    start_s = time.monotonic()
    size = _FIRST_CHUNK
    while size and len(known) < len(items):
        chunk = [items[number] for number in order[len(known) : len(known) + size]]
        results += compute(chunk)
        known += chunk
        now_s = time.monotonic()
        each_s = (now_s - start_s) / len(known)
        # Half of what fits: the next chunk may be slower than those before it.
        fitting = max(0, int((end_s - now_s) / max(each_s, 1e-9)))
        size = min(_MAX_CHUNK, max(fitting // 2, min(fitting, _FIRST_CHUNK)))
    return known, results


def translate_texts(
    model: TranslationModel, tokenizer: Tokenizer, sources: Sequence[str], max_tokens: int | None = None
) -> list[str]:
    """Translate greedily with `model`, which evaluates.

    Args:
        model: what translates.
        tokenizer: the one it was trained with.
        sources: texts.
        max_tokens: limit of output tokens, the end token included; the model's own limit holds as well.

    Returns:
        One answer a source; an empty one for a source over the model's limit, as when served.
    """
    limit = model.dims.max_target_tokens + 1
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(sources))]
    fitting = [row for row, ids in enumerate(encoded) if len(ids) <= model.dims.max_source_tokens]
    hypotheses = greedy_decode(model, [encoded[row] for row in fitting], max_tokens or limit)
    answers = [""] * len(sources)
    for row, hypothesis in zip(fitting, hypotheses, strict=True):
        answers[row] = tokenizer.decode(hypothesis.token_ids)
    return answers
