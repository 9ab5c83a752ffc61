"""Corpora of a few lines, in files of all kinds."""

from pathlib import Path

from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.recipe import load_recipe

MODEL = """
[tokenizer]
kind = "character"
[model]
width = 32
num_heads = 2
{encoder}
num_decoder_layers = 1
max_target_tokens = 32
[training]
max_steps = 1
"""
PARALLEL = 'kind = "parallel"\ntrain = { source = "a", target = "b" }\n'
ENCODER = "num_encoder_layers = 1\nmax_source_tokens = 32"


def load(
    folder: Path, corpus: str, task: str = "translation", data: Path | None = None
) -> Corpus[str | Pair]:  # type: ignore[type-var]
    """The corpus that a recipe with this `[corpus]` section, in `folder`, gives."""
    encoder = ENCODER if task == "translation" else ""
    path = folder / "mine.toml"
    path.write_text(f'name = "mine"\ntask = "{task}"\n[corpus]\n{corpus}\n{MODEL.format(encoder=encoder)}')
    return load_corpus(load_recipe(str(path)), data)  # type: ignore[return-value]


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode())


def numbered(word: str, count: int = 100) -> str:
    return "".join(f"{word} {n}\n" for n in range(count))
