"""From a corpus of text to token ids that training can batch."""

import dataclasses
import functools
from collections.abc import Sequence

from tokenizers import Tokenizer

from model.batching import Examples, Pairs, Stream
from model.corpora.corpus import Corpus, Pair
from model.errors import CorpusError
from model.recipe import Recipe
from model.subwords import BpeDropout
from model.tokenizer import END_ID

__all__ = ["EncodedCorpus", "encode_corpus"]


@dataclasses.dataclass(frozen=True)
class EncodedCorpus:
    """What to learn from and what to choose by."""

    train: Examples
    validation: Examples
    size: str  # of `train`, in words
    num_too_long: int  # pairs left out of `train`, because a side is over the model's limit

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that is learned from, to tell whether a resumed training reads the same."""
        return self.train.digest()


def encode_corpus(corpus: Corpus[Pair] | Corpus[str], tokenizer: Tokenizer, recipe: Recipe) -> EncodedCorpus:
    """Encode the training and validation splits.

    Raises:
        CorpusError: every pair of a split is over the model's limits.
    """
    max_validation = recipe.training.max_validation_examples
    if recipe.task == "generation":
        documents = [text for text in corpus.train if isinstance(text, str)]
        held_out = [text for text in corpus.validation if isinstance(text, str)]
        train = _encode_documents(documents, tokenizer)
        context = recipe.model.max_target_tokens
        return EncodedCorpus(
            train=Stream(train, context),
            validation=Stream(_encode_documents(held_out, tokenizer), context, max_validation),
            size=f"{sum(map(len, train)):,} tokens",
            num_too_long=0,
        )
    splits = [
        _encode_pairs([pair for pair in split if isinstance(pair, Pair)], tokenizer, recipe, dropout)
        for split, dropout in (
            (corpus.train, recipe.tokenizer.dropout),
            (corpus.validation[:max_validation], 0.0),
        )
    ]
    for name, pairs in zip(("train", "validation"), splits, strict=True):
        if not len(pairs):
            raise CorpusError(
                f"corpus {corpus.name!r}: every pair of its {name} split is longer than the model's limits, "
                f"max_source_tokens {recipe.model.max_source_tokens} and "
                f"max_target_tokens {recipe.model.max_target_tokens}"
            )
    train_pairs, validation_pairs = splits
    return EncodedCorpus(
        train=train_pairs,
        validation=validation_pairs,
        size=f"{len(train_pairs):,} pairs",
        num_too_long=len(corpus.train) - len(train_pairs),
    )


def _encode_documents(documents: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]


def _encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, recipe: Recipe, dropout: float) -> Pairs:
    """Pairs within the model's limits; with `dropout`, in several editions."""
    sources = tokenizer.encode_batch_fast([pair.source for pair in pairs])
    targets = tokenizer.encode_batch_fast([pair.target for pair in pairs], add_special_tokens=False)
    encoded = [(source.ids, target.ids) for source, target in zip(sources, targets, strict=True)]
    kept = [row for row, (source, target) in enumerate(encoded) if _fits(source, target, recipe)]
    if not dropout:
        return Pairs([encoded[row][0] for row in kept], [encoded[row][1] for row in kept])
    cut = BpeDropout(tokenizer, dropout, recipe.seed)
    all_sources: list[list[int]] = []
    all_targets: list[list[int]] = []
    for _ in range(recipe.tokenizer.num_editions):
        for row in kept:
            source, target = [*cut.encode(pairs[row].source), END_ID], cut.encode(pairs[row].target)
            # Cut finer a pair may be over the limits; it then keeps its shortest cut.
            source, target = (source, target) if _fits(source, target, recipe) else encoded[row]
            all_sources.append(source)
            all_targets.append(target)
    return Pairs(all_sources, all_targets, recipe.tokenizer.num_editions)


def _fits(source: Sequence[int], target: Sequence[int], recipe: Recipe) -> bool:
    limits = recipe.model
    return len(source) <= limits.max_source_tokens and len(target) <= limits.max_target_tokens
