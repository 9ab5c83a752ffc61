"""Text to shards of token ids, a chunk at a time: memory is bounded by a shard, not by the corpus."""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from dragoman.model.corpora.corpus import Example, Pair
from dragoman.model.recipe import Recipe
from dragoman.model.shards import ShardWriter
from dragoman.model.subwords import BpeDropout
from dragoman.model.tokenizer import END_ID

__all__ = ["EncodedPair", "encode_documents", "encode_pairs", "write_documents", "write_pairs"]

_CHUNK_CHARACTERS = 1 << 20  # an encoding takes a hundred bytes a token until its ids are out of it

EncodedPair = tuple[list[int], list[int]]
"""A source as the model reads it, a target without special tokens."""


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each document, without special tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, recipe: Recipe
) -> list[tuple[Pair, EncodedPair]]:
    """The pairs within the model's limits."""
    sources = tokenizer.encode_batch_fast([pair.source for pair in pairs])
    targets = tokenizer.encode_batch_fast([pair.target for pair in pairs], add_special_tokens=False)
    return [
        (pair, encoded)
        for pair, source, target in zip(pairs, sources, targets, strict=True)
        if _fits(encoded := (source.ids, target.ids), recipe)
    ]


def write_documents(documents: Iterable[str], tokenizer: Tokenizer, writer: ShardWriter) -> None:
    """Each document with its end token.

    Raises:
        OperationError: as `ShardWriter`.
    """
    for chunk in _chunks(documents, writer.shard_tokens):
        writer.add([[*ids, END_ID] for ids in encode_documents(chunk, tokenizer)])


def write_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, recipe: Recipe, writer: ShardWriter) -> int:
    """Source, target, source, ...; with `tokenizer.dropout`, in several editions. Returns how many are too long.

    Raises:
        OperationError: as `ShardWriter`.
    """
    num_editions = recipe.tokenizer.num_editions
    cut = BpeDropout(tokenizer, recipe.tokenizer.dropout, recipe.seed) if recipe.tokenizer.dropout else None
    waiting: list[
        tuple[Pair, EncodedPair]
    ] = []  # for their shard to be full: editions stand one after another
    num_too_long = num_waiting_tokens = 0
    for chunk in _chunks(pairs, writer.shard_tokens):
        encoded = encode_pairs(chunk, tokenizer, recipe)
        num_too_long += len(chunk) - len(encoded)
        if cut is None:
            writer.add([side for _, sides in encoded for side in sides])
            continue
        waiting += encoded
        num_waiting_tokens += sum(len(side) for _, sides in encoded for side in sides)
        if num_waiting_tokens * num_editions >= writer.shard_tokens:
            writer.add(list(_editions(waiting, cut, recipe)))
            waiting, num_waiting_tokens = [], 0
    if cut is not None:
        writer.add(list(_editions(waiting, cut, recipe)))
    return num_too_long


def _editions(
    pairs: Sequence[tuple[Pair, EncodedPair]], cut: BpeDropout, recipe: Recipe
) -> Iterator[Sequence[int]]:
    for _ in range(recipe.tokenizer.num_editions):
        for pair, encoded in pairs:
            again = [*cut.encode(pair.source), END_ID], cut.encode(pair.target)
            # Cut finer a pair may be over the limits; it then keeps its shortest cut.
            yield from again if _fits(again, recipe) else encoded


def _fits(pair: EncodedPair, recipe: Recipe) -> bool:
    source, target = pair
    limits = recipe.model
    return len(source) <= limits.max_source_tokens and len(target) <= limits.max_target_tokens


def _chunks(examples: Iterable[Example], shard_tokens: int) -> Iterator[list[Example]]:
    """Examples of about `_CHUNK_CHARACTERS` together, or fewer where shards are smaller."""
    chunk: list[Example] = []
    size = 0
    for example in examples:
        chunk.append(example)
        size += sum(map(len, example)) if isinstance(example, Pair) else len(example)
        if size >= min(_CHUNK_CHARACTERS, shard_tokens):
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
