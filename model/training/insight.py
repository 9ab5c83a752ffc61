"""What can be seen of a model while it trains: how it attends, what it writes, and what that is worth."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dragoman.model.attention import CrossAttention, SelfAttention, observe_weights
from dragoman.model.batching import Batch, Examples
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.decoding import greedy_decode
from dragoman.model.loss import evaluating
from dragoman.model.quality import Comparison, bits_per_byte, headline, translation_figures
from dragoman.model.tokenizer import BEGIN_ID, PADDING_ID
from dragoman.model.training.measure import fitting_documents, translate_texts, within_time
from dragoman.model.training.records import Sample
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = [
    "Examiner",
    "attention_entropies",
    "first_bytes",
    "median_batch",
    "quality_ratio",
    "sample_continuations",
    "sample_translations",
]

_NUM_SAMPLES = 4
_NUM_CANDIDATES = 16
_NUM_MEASURED_PAIRS = 256
_NUM_BYTES = 65_536
_MAX_CONTINUATION_TOKENS = 48
_ENTROPY_BATCH_TOKENS = 2_048

Item = TypeVar("Item")


class Examiner:
    """Looks at a model at each validation: its attention, the worth of what it writes, and samples of it.

    The worth is measured on a sample of the validation split. Its figures are called `validation_sample_...`: the
    final weights are measured on more, and a figure of the same name is the same figure.
    """

    def __init__(
        self,
        model: TranslationModel | LanguageModel,
        tokenizer: Tokenizer,
        corpus: Corpus[Pair] | Corpus[str],
        validation: Examples,
        *,
        show_samples: Callable[[int, Sequence[Sample]], None],
        comparison: Comparison | None = None,
    ) -> None:
        """Choose what to look at: the same each time, so that validations compare.

        Args:
            model: what trains; it is put into evaluation mode for a look, and back.
            tokenizer: its own.
            corpus: its validation split is translated or continued.
            validation: the same split, encoded.
            show_samples: is given the step and the samples, such as `Reporter.samples`.
            comparison: how translations are compared with their references.
        """
        self._model, self._tokenizer = model, tokenizer
        self._show_samples, self._comparison = show_samples, comparison
        self._batch = median_batch(validation, _ENTROPY_BATCH_TOKENS)
        self._documents = [text for text in corpus.validation if isinstance(text, str)]
        self._texts: Sequence[str] = first_bytes(self._documents, _NUM_BYTES)
        pairs = [pair for pair in corpus.validation if isinstance(pair, Pair)]
        self._pairs = _spread(pairs, _NUM_MEASURED_PAIRS)
        self._shown = _spread(list({pair.source: pair for pair in pairs}.values()), _NUM_SAMPLES)
        self._measures = headline("translation", [pair.target for pair in self._pairs])

    def __call__(self, step: int, end_s: float = math.inf) -> dict[str, float]:
        """Figures to record at `step`; samples are shown on the way.

        `end_s` is when the time for this is over, by `time.monotonic`: less is then measured, in this call and in those
        that follow.

        Raises:
            OperationError: `show_samples` cannot write them.
        """
        with evaluating(self._model):
            entropies = attention_entropies(self._model, self._batch)
            if isinstance(self._model, TranslationModel):
                figures = self._look_at_translations(self._model, step, end_s)
            else:
                figures = self._look_at_continuations(self._model, step, end_s)
            return figures | entropies

    def _look_at_translations(self, model: TranslationModel, step: int, end_s: float) -> dict[str, float]:
        tokenizer = self._tokenizer
        self._show_samples(step, sample_translations(model, tokenizer, self._shown))

        def translate(pairs: Sequence[Pair]) -> list[str]:
            return translate_texts(model, tokenizer, [pair.source for pair in pairs])

        self._pairs, answers = within_time(self._pairs, translate, end_s)
        figures = translation_figures(answers, [pair.target for pair in self._pairs], self._comparison)
        return {f"validation_sample_{name}": figures[name] for name in self._measures if name in figures}

    def _look_at_continuations(self, model: LanguageModel, step: int, end_s: float) -> dict[str, float]:
        num_prompt_tokens = min(32, model.dims.max_target_tokens // 2)
        # More documents than are shown: some are too short, and some begin as others do.
        candidates = _spread(self._documents, _NUM_CANDIDATES)
        samples = sample_continuations(
            model,
            self._tokenizer,
            candidates,
            num_prompt_tokens,
            _MAX_CONTINUATION_TOKENS,
            max_samples=_NUM_SAMPLES,
        )
        self._show_samples(step, samples)
        self._texts = fitting_documents(model, self._tokenizer, self._texts, end_s)
        bits = bits_per_byte(model, self._tokenizer, self._texts)
        return {"validation_sample_bits_per_byte": bits}


@torch.no_grad()
def attention_entropies(model: TranslationModel | LanguageModel, batch: Batch) -> dict[str, float]:
    """How widely each layer attends: the mean entropy in nats of its attention weights, over heads and queries.

    0 is all weight on one key, log(n) the same weight on n keys. Padding is neither asked nor looked at. The
    model is in evaluation mode for this, so weights are not dropped.

    Returns:
        `attention_entropy/encoder_0`, ...: the encoder's self-attention, for translation; .../decoder_0: the
        decoder's; .../cross_0: from the decoder to the source, for translation.
    """
    batch = batch.to(model.embedding.token.weight.device)
    entropies: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, attention, real in _attentions(model, batch):
            note = functools.partial(_note_entropy, entropies, f"attention_entropy/{name}", real)
            stack.enter_context(observe_weights(attention, note))
        if isinstance(model, TranslationModel):
            assert batch.source_ids is not None
            model.states(batch.source_ids, batch.input_ids)
        else:
            model.states(batch.input_ids)
    return entropies


def _attentions(
    model: TranslationModel | LanguageModel, batch: Batch
) -> Iterator[tuple[str, SelfAttention | CrossAttention, Tensor]]:
    """Name and attention of each layer, and which of its queries are no padding: (B, T) or (B, S)."""
    real_targets = batch.label_ids != PADDING_ID
    if isinstance(model, TranslationModel):
        assert batch.source_ids is not None
        real_sources = batch.source_ids != PADDING_ID
        for index, layer in enumerate(model.encoder_layers):
            yield f"encoder_{index}", layer.self_attention, real_sources
    for index, decoder_layer in enumerate(model.decoder_layers):
        yield f"decoder_{index}", decoder_layer.self_attention, real_targets
        if isinstance(model, TranslationModel):
            yield f"cross_{index}", decoder_layer.cross_attention, real_targets


def _note_entropy(entropies: dict[str, float], name: str, real: Tensor, weights: Tensor) -> None:
    """`real` (B, T) says which queries of `weights` (B, H, T, S) count."""
    # Keys that are hidden, padding or the future, have the weight 0 exactly, and entr(0) is 0.
    entropy = torch.special.entr(weights.float()).sum(dim=-1).mean(dim=1)  # (B, T)
    entropies[name] = float(entropy[real].mean())


def median_batch(examples: Examples, batch_tokens: int) -> Batch:
    """The batch in the middle of a pass in order: of pairs, one of middling length."""
    plan = list(examples.plan(batch_tokens))
    return examples.batch(plan[len(plan) // 2])


def sample_translations(
    model: TranslationModel, tokenizer: Tokenizer, pairs: Sequence[Pair], max_tokens: int | None = None
) -> list[Sample]:
    """What `model`, in evaluation mode, makes of the sources of `pairs`, greedily, in at most `max_tokens`."""
    answers = translate_texts(model, tokenizer, [pair.source for pair in pairs], max_tokens)
    return [Sample(*pair, answer) for pair, answer in zip(pairs, answers, strict=True)]


def sample_continuations(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    num_prompt_tokens: int,
    max_tokens: int,
    *,
    max_samples: int | None = None,
) -> list[Sample]:
    """How `model`, in evaluation mode, goes on after the start of each document, greedily.

    The reference is how the document goes on, as far as the model may. A document that ends within the prompt
    gives no sample, and of those with the same prompt the first gives one.

    Raises:
        ValueError: the prompt, with its begin token, is longer than the model's context.
    """
    encoded = [
        encoding.ids for encoding in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    ]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for ids in encoded:
        if len(ids) > num_prompt_tokens:
            by_prompt.setdefault(tuple(ids[:num_prompt_tokens]), ids)
    chosen = list(by_prompt.items())[:max_samples]
    hypotheses = greedy_decode(model, [[BEGIN_ID, *prompt] for prompt, _ in chosen], max_tokens)
    room = min(max_tokens, model.dims.max_target_tokens - num_prompt_tokens - 1)
    return [
        Sample(
            tokenizer.decode(list(prompt)),
            tokenizer.decode(ids[num_prompt_tokens : num_prompt_tokens + room]),
            tokenizer.decode(hypothesis.token_ids),
        )
        for (prompt, ids), hypothesis in zip(chosen, hypotheses, strict=True)
    ]


def first_bytes(documents: Sequence[str], num_bytes: int) -> list[str]:
    """The first `num_bytes` or so of `documents`: what a look at each validation may cost."""
    taken: list[str] = []
    room = num_bytes
    for document in documents:
        if room <= 0:
            break
        taken.append(document.encode()[:room].decode(errors="ignore"))
        room -= len(document.encode())
    return taken


def quality_ratio(corpus: Corpus[Pair] | Corpus[str], num_examples: int) -> float:
    """How many times as much `measure` reads of `corpus`, in at most `num_examples` of a split, as an `Examiner`."""
    held_out = [example for example in corpus.held_out[:num_examples] if isinstance(example, Pair)]
    if held_out:
        return len(held_out) / min(len(corpus.validation), _NUM_MEASURED_PAIRS)
    splits = [
        sum(len(text) for text in split[:num_examples] if isinstance(text, str))
        for split in (corpus.validation, corpus.test)
    ]
    return sum(splits) / min(splits[0], _NUM_BYTES)


def _spread(items: Sequence[Item], num_wanted: int) -> list[Item]:
    """At most so many of `items`, evenly spread: files are often sorted."""
    step = max(1, len(items) // num_wanted)
    return list(items[::step][:num_wanted])
