"""A bundle of the recipe multi30k's shape whose graphs sleep, and texts for it.

What the graphs' files hold is read by nobody: `sleeping_graphs.install` puts others in their place. The manifest, the
tokenizer and the golden examples are such as the server checks.
"""

import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.serving.sleeping_graphs import ANSWER_TOKEN, TOKEN_LOG_PROBABILITY, answer_length
from tokenizers import Tokenizer

from dragoman.model.recipe import TokenizerSettings
from dragoman.model.tokenizer import BEGIN_ID, END_ID, PADDING_ID, UNKNOWN_ID, train_tokenizer
from dragoman.server.bundle.manifest import (
    Dimensions,
    FileRecord,
    GoldenExample,
    GraphRecord,
    Limits,
    Manifest,
    SpecialTokens,
)
from dragoman.server.bundle.reader import MANIFEST_NAME, SCHEMA_VERSION, TOKENIZER_NAME

__all__ = ["captions", "write_sleeping_bundle"]

_NUM_LAYERS: Final = 3
_NUM_STEPS: Final = 4
_MAX_TOKENS: Final = 128
_NUM_GOLDEN: Final = 28
_WORDS: Final = (
    "a the two three young old man woman boy girl dog child people street field beach water house red blue green "
    "white black shirt jacket hat bicycle ball horse stands sits walks runs jumps plays looks holds rides in on near "
    "under with at of and while behind front crowd snow grass table"
)


def captions(num_texts: int, seed: int = 1) -> list[str]:
    """Texts as long as the captions of Multi30k, 8 to 14 words, of no meaning."""
    rng, words = random.Random(seed), _WORDS.split()
    return [" ".join(rng.choices(words, k=8 + index % 7)) for index in range(num_texts)]


def write_sleeping_bundle(folder: Path, *, slowness: float = 1.0) -> None:
    """Write a translation bundle to `folder`, which must not exist. Its graphs take `slowness` times as long."""
    folder.mkdir(parents=True)
    graphs = _graphs()
    for graph in graphs.values():
        (folder / graph.file).write_text("a graph that sleeps")
    settings = TokenizerSettings(kind="bpe", vocabulary_size=1_000)
    tokenizer = train_tokenizer(settings, captions(2_000), "translation")
    tokenizer.save(str(folder / TOKENIZER_NAME))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        task="translation",
        precision="int8",
        dimensions=Dimensions(
            vocabulary_size=4_000,
            width=160,
            num_heads=4,
            num_kv_heads=4,
            head_size=40,
            feed_forward_width=576,
            num_encoder_layers=4,
            num_decoder_layers=_NUM_LAYERS,
            num_parameters=2_971_872,
        ),
        limits=Limits(
            max_source_tokens=_MAX_TOKENS,
            max_output_tokens=_MAX_TOKENS + 1,
            max_context_tokens=_MAX_TOKENS + 1,
        ),
        special_tokens=SpecialTokens(padding=PADDING_ID, unknown=UNKNOWN_ID, begin=BEGIN_ID, end=END_ID),
        graphs=graphs,
        files={path.name: _file_record(path) for path in sorted(folder.iterdir())},
        provenance={"recipe": {"name": "sleeping"}, "slowness": slowness},
        golden_examples=tuple(_golden_examples(tokenizer, captions(_NUM_GOLDEN))),
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _golden_examples(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[GoldenExample]:
    for text in texts:
        length = answer_length(len(tokenizer.encode(text).ids))
        yield GoldenExample(
            text=text,
            max_tokens=_MAX_TOKENS,
            token_ids=(ANSWER_TOKEN,) * length,
            log_probability=(length + 1) * TOKEN_LOG_PROBABILITY,
        )


def _graphs() -> dict[str, GraphRecord]:
    """As export names what the graphs of an int8 translation bundle take and give."""
    layers = range(_NUM_LAYERS)
    source = [f"{kind}_{layer}" for layer in layers for kind in ("cross_key", "cross_value")]
    source += [f"last_{name}" for name in source]
    own = [f"{kind}_{layer}" for layer in layers for kind in ("key", "value")]
    step = ["token_ids", "lengths", "source_lengths", *own, *source]
    steps = itertools.chain.from_iterable(
        [
            f"step_{index}_token_ids",
            f"step_{index}_log_probabilities",
            *(f"step_{index}_new_{name}" for name in own),
        ]
        for index in range(_NUM_STEPS)
    )
    chosen = ["log_probabilities", "best", "best_token_ids", *(f"new_{name}" for name in own)]
    return {
        "encode": _graph("encode", ["source_ids", "source_lengths"], source),
        "decode": _graph("decode", ["num_best", "needs_all", *step], chosen),
        "decode_steps": _graph("decode_steps", step, steps),
        "align": _graph("align", ["source_ids", "source_lengths", "target_ids"], ["attention"]),
    }


def _graph(name: str, inputs: Iterable[str], outputs: Iterable[str]) -> GraphRecord:
    return GraphRecord(file=f"{name}.onnx", inputs=tuple(inputs), outputs=tuple(outputs))


def _file_record(path: Path) -> FileRecord:
    content = path.read_bytes()
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
