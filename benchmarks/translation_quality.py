"""What a run of Multi30k translates like, by the published measure and by the honest ones.

    python -m benchmarks.translation_quality runs/multi30k --data DIR
    python -m benchmarks.translation_quality runs/multi30k --data DIR --test

RUN is what `dragoman train multi30k` left; DIR holds Multi30k, both the raw files and the tokenized edition
(*.lc.norm.tok.*). Without --test the validation split is measured: beam size, length penalty and all else are chosen
on it. Look at test_2016_flickr once, at the end.

Three figures, all without case:

- tokenized BLEU-4, which papers on Multi30k give: on the tokenized edition, with its tokens as they are, without
  smoothing. It equals Moses' multi-bleu.perl and fairseq-generate. A run on raw text is tokenized first, by
  Moses' rules, which make the tokenized edition out of the raw one.
- sacreBLEU (Post 2018): detokenized, against the raw references, tokenized by sacreBLEU itself. Unlike the first it
  does not depend on how anyone prepared the data.
- chrF (Popovic 2015), on the same text.

The published figure is that of Transformer-Tiny, English to German, with a beam of 5 and the last ten checkpoints
averaged (Wu et al. 2021, "Good for Misconceived Reasons"; github.com/LividWo/Revisit-MMT).
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from rich.console import Console
from rich.progress import track
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer

from dragoman.model.beam_search import beam_search
from dragoman.model.corpora.public import read_multi30k
from dragoman.model.corpora.settings import Multi30kSettings
from dragoman.model.run import Run, load_run
from dragoman.model.training.hardware import set_threads
from dragoman.model.transformer import TranslationModel

PUBLISHED: Final = {("en", "de"): 41.02}  # tokenized BLEU-4 on test_2016_flickr
_CHUNK_INPUTS: Final = 64

Convert = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Score:
    """A measure's figure, with all that is needed to reproduce it."""

    name: str
    percent: float
    signature: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Split:
    """What is translated, and the references in both editions."""

    name: str
    sources: list[str]  # in the edition of the run
    raw_references: list[str]
    tokenized_references: list[str]


def tokenized_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU-4 of tokens between spaces, without smoothing: multi-bleu.perl -lc."""
    # force: sacreBLEU warns of text that looks tokenized, which it is.
    metric = BLEU(lowercase=True, tokenize="none", smooth_method="none", force=True)
    score = metric.corpus_score(hypotheses, [references])
    return Score("tokenized BLEU-4", score.score, str(metric.get_signature()), str(score))


def honest_scores(hypotheses: Sequence[str], references: Sequence[str]) -> list[Score]:
    """SacreBLEU and chrF of text as people write it, without case."""
    scores = []
    for name, metric in (("sacreBLEU", BLEU(lowercase=True)), ("chrF", CHRF(lowercase=True))):
        score = metric.corpus_score(hypotheses, [references])
        scores.append(Score(name, score.score, str(metric.get_signature()), str(score)))
    return scores


def moses_tokenizer(language: str) -> Convert:
    """Raw text -> the tokenized edition's form: lower case, normalised punctuation, tokens between spaces."""
    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    return lambda text: " ".join(tokenizer.tokenize(normalizer.normalize(text.lower())))


def moses_detokenizer(language: str) -> Convert:
    """The tokenized edition's form -> text as people write it, in lower case still."""
    detokenizer = MosesDetokenizer(language)
    return lambda text: str(detokenizer.detokenize(text.split()))


def read_split(settings: Multi30kSettings, data: Path, *, test: bool) -> Split:
    """Validation or test pairs, of both editions."""
    editions = {}
    for tokenized in (False, True):
        corpus = read_multi30k(
            Multi30kSettings(
                kind="multi30k",
                folder=str(data),
                source=settings.source,
                target=settings.target,
                tokenized=tokenized,
            )
        )
        editions[tokenized] = corpus.test if test else corpus.validation
    if len(editions[False]) != len(editions[True]):
        sys.exit(f"{data}: {len(editions[False])} raw pairs, {len(editions[True])} tokenized ones")
    return Split(
        name="test_2016_flickr" if test else "validation",
        sources=[pair.source for pair in editions[settings.tokenized]],
        raw_references=[pair.target for pair in editions[False]],
        tokenized_references=[pair.target for pair in editions[True]],
    )


def translate(run: Run, sources: Sequence[str], beam_size: int, length_penalty: float) -> list[str]:
    """The best hypothesis of each source; none (an empty one) for a source over the model's limit."""
    assert isinstance(run.model, TranslationModel)
    dims = run.model.dims
    encoded = [encoding.ids for encoding in run.tokenizer.encode_batch_fast(list(sources))]
    rows = [row for row, ids in enumerate(encoded) if len(ids) <= dims.max_source_tokens]
    rows.sort(key=lambda row: len(encoded[row]))
    answers = [""] * len(sources)
    chunks = [rows[start : start + _CHUNK_INPUTS] for start in range(0, len(rows), _CHUNK_INPUTS)]
    for chunk in track(chunks, "translating", console=Console(stderr=True), transient=True):
        found = beam_search(
            run.model,
            [encoded[row] for row in chunk],
            dims.max_target_tokens + 1,
            beam_size=beam_size,
            length_penalty=length_penalty,
        )
        for row, [hypothesis] in zip(chunk, found, strict=True):
            answers[row] = run.tokenizer.decode(hypothesis.token_ids)
    return answers


def measure(hypotheses: Sequence[str], split: Split, settings: Multi30kSettings) -> list[Score]:
    """All three figures, whichever edition the run translates."""
    if settings.tokenized:
        tokenized, raw = list(hypotheses), list(map(moses_detokenizer(settings.target), hypotheses))
    else:
        tokenized, raw = list(map(moses_tokenizer(settings.target), hypotheses)), list(hypotheses)
    return [
        tokenized_bleu(tokenized, split.tokenized_references),
        *honest_scores(raw, split.raw_references),
    ]


def report(
    scores: Sequence[Score],
    settings: Multi30kSettings,
    split: Split,
    options: argparse.Namespace,
    seconds: float,
    hypotheses: Sequence[str],
) -> None:
    direction = settings.source, settings.target
    published = PUBLISHED.get(direction) if options.test else None
    machine = describe_machine()
    rows = [
        [
            score.name,
            f"{score.percent:.2f}",
            f"{published:.2f}" if published and score is scores[0] else "",
            score.signature,
        ]
        for score in scores
    ]
    title = (
        f"Multi30k {direction[0]}-{direction[1]}, {split.name}: {len(hypotheses):,} sentences in {seconds:.0f} s, "
        f"beam {options.beam_size}, length penalty {options.length_penalty}"
    )
    print_table(title, ["", "this run", "published", "signature"], rows, machine)
    if published is None:
        print(
            "published, on test_2016_flickr: en-de 41.02 tokenized BLEU-4 (Transformer-Tiny, Wu et al. 2021); "
            f"not to be set beside {split.name} of {direction[0]}-{direction[1]}"
        )
    figures = {
        "benchmark": "translation_quality",
        "machine": machine,
        "run": str(options.run),
        "split": split.name,
        "direction": direction,
        "beam_size": options.beam_size,
        "length_penalty": options.length_penalty,
        "seconds": seconds,
        "scores": [dataclasses.asdict(score) for score in scores],
        "published_tokenized_bleu": published,
        "hypotheses": list(hypotheses),  # so that others can measure them
    }
    write_json(options.json, figures)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of the recipe multi30k")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with Multi30k")
    parser.add_argument("--test", action="store_true", help="test_2016_flickr in place of validation")
    parser.add_argument("--beam-size", type=int, default=5, help="hypotheses that run at the same time")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="scores are log-probability / length ** this"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; without it, every usable core")
    add_json_option(parser)
    options = parser.parse_args()
    set_threads(options.threads or "auto")
    run = load_run(options.run)
    settings = run.recipe.corpus
    if not isinstance(settings, Multi30kSettings):
        sys.exit(f"{options.run} is a run of {run.recipe.name!r}, not one on Multi30k")
    split = read_split(settings, options.data, test=options.test)
    start_s = time.perf_counter()
    hypotheses = translate(run, split.sources, options.beam_size, options.length_penalty)
    seconds = time.perf_counter() - start_s
    report(measure(hypotheses, split, settings), settings, split, options, seconds, hypotheses)


if __name__ == "__main__":
    main()
