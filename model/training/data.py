"""From a corpus of text to token ids that training can batch."""

import dataclasses
import functools
import hashlib
from pathlib import Path

from tokenizers import Tokenizer

from dragoman.model.batching import Examples, Pairs, ShardedPairs, ShardedStream, Stream
from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.errors import CorpusError
from dragoman.model.recipe import Recipe
from dragoman.model.shards import SHARD_TOKENS, Shards, ShardWriter
from dragoman.model.training.encoding import encode_documents, encode_pairs, write_documents, write_pairs

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


def encode_corpus(
    corpus: Corpus[Pair] | Corpus[str],
    tokenizer: Tokenizer,
    recipe: Recipe,
    folder: Path,
    shard_tokens: int = SHARD_TOKENS,
    *,
    files_digest: str = "",
) -> EncodedCorpus:
    """Encode the training and validation splits.

    The training split goes to memory-mapped shards in `folder`, or comes from those that an earlier call with
    an equal corpus, tokenizer and recipe left there; `files_digest` is a hash of the files that the corpus is
    read from.

    Raises:
        CorpusError: every pair of a split is over the model's limits.
        OperationError: `folder` cannot be written.
    """
    made_from = _made_from(corpus, tokenizer, recipe, files_digest)
    shards = Shards.on_disk(folder, made_from)
    if shards is None:
        writer = ShardWriter(folder, tokenizer.get_vocab_size(), shard_tokens)
        writer.finish(made_from, _write(corpus, tokenizer, recipe, writer))
        shards = Shards.on_disk(folder, made_from)
    assert shards is not None
    max_validation = recipe.training.max_validation_examples
    if recipe.task == "generation":
        held_out = [text for text in corpus.validation if isinstance(text, str)]
        context = recipe.model.max_target_tokens
        num_tokens = int(shards.token_starts[-1] - shards.sequence_starts[-1])  # without the end tokens
        return EncodedCorpus(
            train=ShardedStream(shards, context),
            validation=Stream(encode_documents(held_out, tokenizer), context, max_validation),
            size=f"{num_tokens:,} tokens",
            num_too_long=0,
        )
    train = ShardedPairs(shards, recipe.tokenizer.num_editions if recipe.tokenizer.dropout else 1)
    some = [pair for pair in corpus.validation[:max_validation] if isinstance(pair, Pair)]
    encoded = [sides for _, sides in encode_pairs(some, tokenizer, recipe)]
    validation = Pairs([source for source, _ in encoded], [target for _, target in encoded])
    for name, pairs in (("train", train), ("validation", validation)):
        if not len(pairs):
            raise CorpusError(
                f"corpus {corpus.name!r}: every pair of its {name} split is longer than the model's limits, "
                f"max_source_tokens {recipe.model.max_source_tokens} and "
                f"max_target_tokens {recipe.model.max_target_tokens}"
            )
    return EncodedCorpus(train, validation, f"{len(train):,} pairs", shards.num_too_long)


def _write(
    corpus: Corpus[Pair] | Corpus[str], tokenizer: Tokenizer, recipe: Recipe, writer: ShardWriter
) -> int:
    """Encode the training split; returns how many pairs are too long."""
    if recipe.task == "generation":
        documents = (example for example in corpus.train if isinstance(example, str))
        write_documents(documents, tokenizer, writer)
        return 0
    pairs = (example for example in corpus.train if isinstance(example, Pair))
    return write_pairs(pairs, tokenizer, recipe, writer)


def _made_from(
    corpus: Corpus[Pair] | Corpus[str], tokenizer: Tokenizer, recipe: Recipe, files_digest: str
) -> str:
    """A hash of all that decides the shards' content; of a corpus that is made, its settings and its size."""
    parts = [
        tokenizer.to_str(),
        recipe.task,
        str(recipe.seed),
        recipe.corpus.model_dump_json(),
        recipe.tokenizer.model_dump_json(),
        f"{recipe.model.max_source_tokens} {recipe.model.max_target_tokens}",
        f"{len(corpus.train)} {corpus.report}",
        files_digest,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
