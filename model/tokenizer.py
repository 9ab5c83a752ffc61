"""Tokenizers: text to token ids and back, through the `tokenizers` library, saved as one tokenizer.json.

`tokenizer.encode(text)` gives exactly the model's input: `text </s>` for translation, `<s> text` for
generation. Training targets are `encode(text, add_special_tokens=False)`. Incremental decoding is
`DecodeStream`; give it the prompt's ids to begin with, or a leading space is taken for the start of a text.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dragoman.common.normalization import cleaning_steps, prepare_tokenizer, vocabulary_steps
from dragoman.model.errors import CorpusError, RunError
from dragoman.model.recipe import TokenizerSettings

__all__ = [
    "BEGIN_ID",
    "END_ID",
    "PADDING_ID",
    "SPECIAL_TOKENS",
    "UNKNOWN_ID",
    "WITHOUT_TEXT",
    "load_tokenizer",
    "train_tokenizer",
]

PADDING_ID: Final = 0
UNKNOWN_ID: Final = 1
BEGIN_ID: Final = 2
END_ID: Final = 3
SPECIAL_TOKENS: Final = ("<pad>", "<unk>", "<s>", "</s>")  # in the order of their ids
WITHOUT_TEXT: Final = (
    PADDING_ID,
    UNKNOWN_ID,
    BEGIN_ID,
)  # no answer holds them: two answers could read the same


def train_tokenizer(
    settings: TokenizerSettings, texts: Iterable[str], task: Literal["translation", "generation"]
) -> Tokenizer:
    """Learn a vocabulary from `texts` and set up everything that tokenizer.json carries.

    Raises:
        CorpusError: `texts` holds no character at all.
    """
    build = {"bpe": _bpe, "byte_bpe": _byte_bpe, "character": _character}[settings.kind]
    tokenizer, trainer = build(settings)
    steps = [*cleaning_steps(), *_normalization_steps(settings)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # A text that happens to hold "</s>" is text: without this it would become the end token.
    tokenizer.encode_special_tokens = True
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() == len(SPECIAL_TOKENS):
        raise CorpusError("the corpus holds no text to learn a vocabulary from")
    tokenizer.normalizer = normalizers.Sequence([*steps, *vocabulary_steps(tokenizer)])
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == [PADDING_ID, UNKNOWN_ID, BEGIN_ID, END_ID], ids
    begin, end = SPECIAL_TOKENS[BEGIN_ID], SPECIAL_TOKENS[END_ID]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}" if task == "translation" else f"{begin} $A",
        special_tokens=[(begin, BEGIN_ID), (end, END_ID)],
    )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        RunError: the file is missing or is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the library raises bare Exception
        raise RunError(f"{path} is not a tokenizer: {error}") from error
    prepare_tokenizer(tokenizer)
    return tokenizer


def _normalization_steps(settings: TokenizerSettings) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if settings.strip_accents:  # marks are characters of their own only in a decomposed form
        steps = [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    if settings.normalization != "none":
        steps.append({"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[settings.normalization]())
    if settings.lowercase:
        steps.append(normalizers.Lowercase())
    return steps


def _bpe(settings: TokenizerSettings) -> tuple[Tokenizer, trainers.Trainer]:
    """Merges within words; a space is the mark ▁ at a word's start (Kudo and Richardson 2018).

    One leading space is not kept, and a literal ▁ decodes to a space.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNKNOWN_ID]))
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Metaspace()]
    if settings.splits_punctuation:  # "dog." shares its token with "dog"
        steps.append(pre_tokenizers.Split(Regex(r"\p{P}"), "isolated"))
    if settings.max_digits:
        steps.append(pre_tokenizers.Split(Regex(rf"\d{{1,{settings.max_digits}}}"), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )


def _byte_bpe(settings: TokenizerSettings) -> tuple[Tokenizer, trainers.Trainer]:
    """Merges over bytes (Radford et al. 2019): lossless, and nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _character(settings: TokenizerSettings) -> tuple[Tokenizer, trainers.Trainer]:
    """One token a character: lossless on characters that were in the training text.

    A BPE model without merges: nine times faster here than splitting by a pattern before a word-level model.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNKNOWN_ID]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=0,  # no merges: the alphabet alone
        limit_alphabet=settings.vocabulary_size - len(SPECIAL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
