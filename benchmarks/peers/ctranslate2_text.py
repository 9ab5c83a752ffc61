"""Text in, text out, by CTranslate2: what both of its services are made of. Runs in the peers' environment."""

from collections.abc import Sequence

import ctranslate2
from tokenizers import Tokenizer

MAX_BATCH = 64


class TextTranslator:
    """A converted model and its tokenizer; `inter_threads` batches at a time, each on one thread."""

    def __init__(
        self, folder: str, tokenizer: str, compute_type: str, inter_threads: int, max_tokens: int
    ) -> None:
        self._translator = ctranslate2.Translator(
            folder, device="cpu", compute_type=compute_type, inter_threads=inter_threads, intra_threads=1
        )
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens

    def translate(self, texts: Sequence[str]) -> list[str]:
        """One greedy translation a text, as one batch."""
        source = [list(map(str, encoding.ids)) for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        results = self._translator.translate_batch(
            source, beam_size=1, max_decoding_length=self._max_tokens, min_decoding_length=0
        )
        return self._tokenizer.decode_batch([list(map(int, result.hypotheses[0])) for result in results])
