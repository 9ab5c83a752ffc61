"""Pairs made by a translation model out of texts alone, through the serving engine in this process.

A model from German to English makes English for German text; the pairs, turned round, are training data from
English to German. Of text that has no translation this is back-translation (Sennrich et al. 2016); of the text that
the model itself was trained on, data diversification (Nguyen et al. 2020). What is learned to be written is text of
people in both cases.
"""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tokenizers import Tokenizer

from dragoman.cli.evaluation import Progress, corpus_of
from dragoman.cli.lines import MAX_LINE_BYTES
from dragoman.cli.output import json_line
from dragoman.common.errors import UsageError
from dragoman.common.files import Destination
from dragoman.common.text import is_blank
from dragoman.model.corpora.cleaning import DigestSet, clean
from dragoman.model.corpora.corpus import Pair, example_digest
from dragoman.model.corpora.readers import read_line_documents
from dragoman.model.corpora.report import CorpusReport, Tally
from dragoman.model.corpora.sources import STANDARD_INPUT, SourceFiles
from dragoman.model.corpora.synthetic import FIELDS
from dragoman.model.errors import CorpusError
from dragoman.server.bundle.reader import Bundle
from dragoman.server.config import EngineSettings
from dragoman.server.decoding.parameters import DecodingParameters
from dragoman.server.engine.client import EngineClient
from dragoman.server.engine.threads import LaneThreads
from dragoman.server.engine.ticket import Ticket
from dragoman.server.models.loader import load_checked_backend
from dragoman.server.requests.options import MAX_BEAM_SIZE

__all__ = ["BackTranslation", "PairSearch", "back_translate_texts", "pairs_flaw"]

_WINDOW_TEXTS = 2048  # sorted by length, so that the encoder reads like lengths together; two are under way
_NUM_SPARE = 2  # hypotheses asked for beyond those wanted: some say what is known already


@dataclass(frozen=True)
class PairSearch:
    """How pairs are looked for.

    Attributes:
        beam_size: hypotheses that run at the same time.
        num_hypotheses: most pairs made of one text, of the best translations that are new; at most `beam_size`.

    Raises:
        UsageError: there are more of either than can be.
    """

    beam_size: int
    num_hypotheses: int

    def __post_init__(self) -> None:
        if self.beam_size > MAX_BEAM_SIZE:
            raise UsageError(f"--beam-size {self.beam_size} is more than {MAX_BEAM_SIZE}")
        if self.num_hypotheses > self.beam_size:
            raise UsageError(
                f"--num-hypotheses {self.num_hypotheses} is more than --beam-size {self.beam_size}"
            )

    def parameters(self, max_tokens: int) -> DecodingParameters:
        """As the engine takes them."""
        num_asked = min(self.beam_size, self.num_hypotheses + _NUM_SPARE)
        return DecodingParameters(max_tokens, beam_size=self.beam_size, num_hypotheses=num_asked)


@dataclass(frozen=True)
class BackTranslation:
    """The result of a back-translation.

    Attributes:
        num_texts: different ones, given to the model or too long for it.
        num_pairs: written.
        num_too_long: texts over the model's limit of source tokens, which make no pair.
        num_without_news: texts whose translations were all known already, empty or cut off.
        cleaning: what reading a file of texts left out.
        seconds: from the first text to the last pair.
    """

    num_texts: int
    num_pairs: int
    num_too_long: int
    num_without_news: int
    cleaning: CorpusReport
    seconds: float


@dataclass(frozen=True)
class _Texts:
    """The texts that are to be translated, and pairs that need not be made because they are there."""

    num_texts: int
    read: Callable[[], Iterator[str]]
    known: DigestSet = field(default_factory=DigestSet)
    cleaning: CorpusReport = field(default_factory=CorpusReport)
    files: tuple[Path, ...] = ()  # that they are read from


def back_translate_texts(
    folder: Path,
    out: Path,
    *,
    text: str | None,
    data: Path | None,
    limit: int | None,
    search: PairSearch,
    replaces: bool,
    progress: Progress,
) -> BackTranslation:
    """Translate texts by the bundle in `folder` and write the pairs, turned round, to `out` as JSON Lines.

    Args:
        folder: a translation bundle, from the language of the texts.
        out: appears whole or not at all; it is new, or a file of pairs where `replaces` is True.
        text: a file of a text a line, or `-`; None: the sources the model was trained on, of which no pair is
            written that its corpus has already (as far as a `DigestSet` remembers).
        data: folder of the corpus, if it lies elsewhere than it did at training.
        limit: most texts to translate.
        search: how.
        replaces: whether a file of pairs that is there may be replaced; nothing else ever is.
        progress: told of each text.

    Raises:
        BundleError: the folder holds no sound bundle.
        UsageError: the bundle does not translate, or `out` is no place to write to.
        CorpusError: the texts cannot be read, or none of them gave a pair.
        OperationError: `out` cannot be written.
    """
    destination = Destination(
        path=out,
        kind="a file of pairs",
        is_folder=False,
        flaw=pairs_flaw,
        inputs=(folder,) if text in {None, STANDARD_INPUT} else (folder, SourceFiles(Path()).file(text).path),
        replaces=replaces,
    )
    destination.check()
    bundle = Bundle.read(folder)
    if bundle.manifest.task != "translation":
        raise UsageError(f"{folder} is a {bundle.manifest.task} model: only one that translates makes pairs")
    texts = _file_texts(text) if text is not None else _training_texts(bundle, data)
    destination = dataclasses.replace(destination, inputs=(*destination.inputs, *texts.files))
    destination.check()
    num_texts = texts.num_texts if limit is None else min(limit, texts.num_texts)
    settings = EngineSettings(slots_per_lane=MAX_BEAM_SIZE, max_waiting=2 * _WINDOW_TEXTS * search.beam_size)
    lanes = LaneThreads.of(load_checked_backend(bundle, settings), settings)
    engine = lanes.connect()

    async def write_all(file: BinaryIO) -> _Writer:
        writer = _Writer(file, texts.known, search.num_hypotheses)
        chosen = itertools.islice(texts.read(), limit)
        async for source, translations in _translate(engine, bundle, chosen, search):
            writer.write(source, translations)
            progress("translating", writer.num_texts, num_texts)
        return writer

    begin_s = time.perf_counter()
    try:
        with destination.file() as file:
            writer = asyncio.run(write_all(file))
            if not writer.num_pairs:
                raise CorpusError(
                    f"no pair was made of {writer.num_texts:,} texts: {writer.num_too_long:,} are over the limit "
                    f"of {bundle.manifest.limits.max_source_tokens} tokens, {writer.num_without_news:,} gave "
                    "nothing new"
                )
    finally:
        lanes.close()
    return BackTranslation(
        writer.num_texts,
        writer.num_pairs,
        writer.num_too_long,
        writer.num_without_news,
        texts.cleaning,
        time.perf_counter() - begin_s,
    )


def pairs_flaw(path: Path) -> str | None:
    """Why what is at `path` is not a file of pairs, to judge by its first line; None where it is."""
    if not path.is_file():
        return "it is no file"
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        pair = json.loads(line)
    except ValueError:
        return "its first line is not JSON"
    has_pair = isinstance(pair, dict) and pair.keys() == set(FIELDS)
    return None if has_pair else f"its first line is not an object of {' and '.join(FIELDS)}"


def _file_texts(name: str) -> _Texts:
    file = SourceFiles(Path()).file(name)

    def read(tally: Tally) -> Iterator[str]:
        return clean(read_line_documents(file, MAX_LINE_BYTES), tally, drop_duplicates=True)

    tally = Tally()
    num_texts = sum(1 for _ in read(tally))
    if not num_texts:
        reasons = tally.report("documents").reasons(tally.left_out) or "no lines"
        raise CorpusError(f"{file} holds no text to translate: {reasons}")
    return _Texts(num_texts, lambda: read(Tally()), cleaning=tally.report("documents"))


def _training_texts(bundle: Bundle, data: Path | None) -> _Texts:
    corpus = corpus_of(bundle.manifest.provenance, data, task=bundle.manifest.task, source=str(bundle.path))

    def pairs() -> Iterator[Pair]:
        return (example for example in corpus.train if isinstance(example, Pair))

    def read() -> Iterator[str]:
        met = DigestSet()
        return (pair.source for pair in pairs() if not met.add(example_digest(pair.source)))

    known = DigestSet()
    for pair in pairs():
        known.add(example_digest(Pair(pair.target, pair.source)))
    return _Texts(sum(1 for _ in read()), read, known, files=tuple(file.path for file in corpus.files))


async def _translate(
    engine: EngineClient, bundle: Bundle, texts: Iterator[str], search: PairSearch
) -> AsyncIterator[tuple[str, list[str] | None]]:
    """Each text with its translations, best first, in order; with None where it is over the model's limit."""
    limits, tokenizer = bundle.manifest.limits, bundle.tokenizer
    parameters = search.parameters(limits.max_output_tokens)

    def submit_window() -> list[tuple[str, Ticket | None]]:
        window = list(itertools.islice(texts, _WINDOW_TEXTS))
        inputs = [encoding.ids for encoding in tokenizer.encode_batch_fast(window)]
        tickets: list[Ticket | None] = [None] * len(inputs)
        for index in sorted(range(len(inputs)), key=lambda index: -len(inputs[index])):
            if len(inputs[index]) <= limits.max_source_tokens:
                tickets[index] = engine.submit(inputs[index], parameters)
        return list(zip(window, tickets, strict=True))

    following = submit_window()
    while window := following:
        following = submit_window()  # so that the engine never runs dry
        for text, ticket in window:
            yield text, None if ticket is None else await _texts_of(ticket, tokenizer)


async def _texts_of(ticket: Ticket, tokenizer: Tokenizer) -> list[str]:
    """The translations that came to their end: what the limit of tokens cut off is half a sentence, or babble."""
    hypotheses = (await ticket.result()).hypotheses
    return [tokenizer.decode(each.token_ids) for each in hypotheses if not each.is_cut_off]


class _Writer:
    """Writes pairs as they come and counts what does not become one."""

    def __init__(self, file: BinaryIO, known: DigestSet, max_pairs: int) -> None:
        self._file = file
        self._known = known
        self._max_pairs = max_pairs
        self.num_texts = self.num_pairs = self.num_too_long = self.num_without_news = 0

    def write(self, text: str, translations: Sequence[str] | None) -> None:
        self.num_texts += 1
        if translations is None:
            self.num_too_long += 1
            return
        pairs = (Pair(translation, text) for translation in translations if not is_blank(translation))
        new = [*itertools.islice((pair for pair in pairs if self._is_new(pair)), self._max_pairs)]
        for pair in new:
            self._file.write(json_line(dict(zip(FIELDS, pair, strict=True))).encode())
        self.num_pairs += len(new)
        self.num_without_news += not new

    def _is_new(self, pair: Pair) -> bool:
        return not self._known.add(example_digest(pair))
