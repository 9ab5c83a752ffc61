"""What a trained model is worth on text that training never saw."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from model.corpora.corpus import Corpus, Pair
from model.decoding import greedy_decode
from model.quality import Comparison, bits_per_byte, translation_figures
from model.transformer import LanguageModel, TranslationModel

__all__ = ["measure", "translate_texts"]


def measure(
    model: TranslationModel | LanguageModel,
    tokenizer: Tokenizer,
    corpus: Corpus[Pair] | Corpus[str],
    max_examples: int,
    comparison: Comparison | None = None,
) -> dict[str, float]:
    """Figures named after split and measure, of at most `max_examples` of a split; `model` evaluates.

    Translation: `model.quality.translation_figures` of greedy decoding. Generation: bits per byte.
    """
    if isinstance(model, LanguageModel):
        splits = {"validation": corpus.validation, "test": corpus.test}
        return {
            f"{name}_bits_per_byte": bits_per_byte(model, tokenizer, documents)
            for name, split in splits.items()
            if (documents := [text for text in split[:max_examples] if isinstance(text, str)])
        }
    name = "test" if corpus.test else "validation"
    pairs = [pair for pair in corpus.held_out[:max_examples] if isinstance(pair, Pair)]
    hypotheses = translate_texts(model, tokenizer, [pair.source for pair in pairs])
    figures = translation_figures(hypotheses, [pair.target for pair in pairs], comparison)
    return {f"{name}_{measure}": value for measure, value in figures.items()}


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
