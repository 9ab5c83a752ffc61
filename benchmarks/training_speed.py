"""Training speed against the same model written with torch.nn.Transformer.

    python -m benchmarks.training_speed --size multi30k --data DIR
    python -m benchmarks.training_speed --size base

Tokens a second (of source and target, padding not counted) of Dragoman's training step, and of the loop a user of
PyTorch writes: nn.Embedding, nn.Transformer, F.cross_entropy, AdamW, clip_grad_norm_, in fp32. Both train one and
the same shape with the same dropout, on the same pairs, with about as many tokens a batch, in one process, in turn.
The peer runs twice: with batches of shuffled pairs, the ordinary way, and with Dragoman's own batches of like
lengths (bucketed), so that what padding explains can be told from the rest.

Sizes: `multi30k` is the recipe of that name; `mini` is 128 wide, 2+2 layers, 4 heads, feed-forward 512, vocabulary
4,000; `tiny` is 256 wide, 3+3 layers, 4 heads, feed-forward 1,024, vocabulary 8,000; `base` is the base model of
Vaswani et al. 2017 with a vocabulary of 32,000. What nn.Transformer has no word for is turned off on both sides:
R-Drop, BPE-dropout, accumulation. Making a batch counts in the time of both. Dragoman's setting of malloc holds for
the whole process, so the peer gains from it as well.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.nn_transformer import NnTransformer, NnTransformerStep
from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from benchmarks.sizes import SIZES
from rich.console import Console
from rich.progress import track

from dragoman.model.batching import Batch, Pairs, Rows
from dragoman.model.corpora.corpus import Pair
from dragoman.model.corpora.load import load_corpus
from dragoman.model.recipe import Recipe, load_recipe
from dragoman.model.tokenizer import train_tokenizer
from dragoman.model.training.encoding import encode_pairs
from dragoman.model.training.hardware import choose_precision, keep_freed_memory, set_threads
from dragoman.model.training.step import TrainingStep
from dragoman.model.transformer import TranslationModel

SYNTHETIC_PAIRS = 20_000


@dataclasses.dataclass
class Contestant:
    """One way to train, and what was measured of it."""

    name: str
    precision: str
    num_parameters: int
    batches: Iterator[Batch]
    step: Callable[[Batch], object]
    tokens_per_second: list[float] = dataclasses.field(default_factory=list)  # a figure a turn
    num_batches: int = 0
    num_pairs: int = 0
    num_tokens: int = 0
    num_cells: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.tokens_per_second)

    @property
    def padding_share(self) -> float:
        return 1.0 - self.num_tokens / self.num_cells

    def take_turn(self, seconds: float, *, counts: bool = True) -> None:
        """Train for at least so long."""
        batches: list[Batch] = []
        start_s = time.perf_counter()
        while not batches or time.perf_counter() - start_s < seconds:
            batches.append(next(self.batches))
            self.step(batches[-1])
        elapsed_s = time.perf_counter() - start_s
        if counts:
            num_tokens = sum(batch.num_tokens for batch in batches)
            self.tokens_per_second.append(num_tokens / elapsed_s)
            self.num_batches += len(batches)
            self.num_pairs += sum(len(batch.label_ids) for batch in batches)
            self.num_tokens += num_tokens
            self.num_cells += sum(batch.num_cells for batch in batches)


def our_step(model: TranslationModel, recipe: Recipe, precision: torch.dtype) -> Callable[[Batch], object]:
    """The step that `dragoman train` takes."""
    training_step = TrainingStep(model, recipe.training, precision)
    return lambda batch: training_step.run([batch], recipe.training.max_learning_rate)


def bucketed(pairs: Pairs, batch_tokens: int, seed: int) -> Iterator[Rows]:
    """Dragoman's own batches, pass after pass."""
    rng = np.random.default_rng(seed)
    while True:
        yield from pairs.plan(batch_tokens, rng)


def shuffled(pairs: Pairs, num_pairs: int, seed: int) -> Iterator[Rows]:
    """So many random pairs a batch, pass after pass; the last, smaller one of a pass is left out."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(pairs))
        yield from (order[end - num_pairs : end] for end in range(num_pairs, len(order) + 1, num_pairs))


def read_pairs(recipe: Recipe, data: Path) -> Pairs:
    """The training pairs of Multi30k, each cut into tokens in one way."""
    recipe = recipe.with_data(data)
    corpus = load_corpus(recipe)
    tokenizer = train_tokenizer(recipe.tokenizer, corpus.texts(), recipe.task)
    pairs = [pair for pair in corpus.train if isinstance(pair, Pair)]
    encoded = [sides for _, sides in encode_pairs(pairs, tokenizer, recipe)]
    return Pairs([source for source, _ in encoded], [target for _, target in encoded])


def make_pairs(recipe: Recipe, seed: int) -> Pairs:
    """Random tokens whose lengths are spread as those of sentences are: log-normal, 20 tokens in the middle."""
    rng = np.random.default_rng(seed)
    limit = min(recipe.model.max_source_tokens, recipe.model.max_target_tokens) - 1
    lengths = np.exp(rng.normal(np.log(20.0), 0.5, SYNTHETIC_PAIRS))
    size = recipe.tokenizer.vocabulary_size

    def draw(low: float, high: float) -> list[list[int]]:
        side = np.clip(lengths * rng.uniform(low, high, SYNTHETIC_PAIRS), 1, limit).astype(int)
        return [rng.integers(4, size, length).tolist() for length in side]

    return Pairs(draw(1.0, 1.0), draw(0.8, 1.2))


def enter_contestants(recipe: Recipe, pairs: Pairs, seed: int) -> list[Contestant]:
    """Dragoman and the two peers, each with weights and batches of its own."""
    dims = recipe.dimensions(recipe.tokenizer.vocabulary_size)
    budget = recipe.training.batch_tokens
    plan = list(pairs.plan(budget, np.random.default_rng(seed)))
    num_pairs = round(len(pairs) / len(plan))
    precision = choose_precision(recipe.training.precision, torch.device("cpu"))
    torch.manual_seed(seed)
    model = TranslationModel(dims).train()

    def peer(name: str, rows: Iterator[Rows]) -> Contestant:
        network = NnTransformer(dims)
        return Contestant(
            name, "fp32", _size(network), map(pairs.batch, rows), NnTransformerStep(network, recipe.training)
        )

    return [
        Contestant(
            "dragoman",
            "fp32" if precision == torch.float32 else "bf16",
            _size(model),
            map(pairs.batch, bucketed(pairs, budget, seed)),
            our_step(model, recipe, precision),
        ),
        peer("nn.Transformer, shuffled", shuffled(pairs, num_pairs, seed)),
        peer("nn.Transformer, bucketed", bucketed(pairs, budget, seed)),
    ]


def report(contestants: list[Contestant], size: str, corpus: str, json_path: Path | None) -> None:
    machine, ours = describe_machine(), contestants[0]
    rows = [
        [
            one.name,
            one.precision,
            f"{one.num_parameters:,}",
            f"{one.num_pairs / one.num_batches:.0f}",
            f"{one.num_tokens / one.num_batches:,.0f}",
            f"{100 * one.padding_share:.1f} %",
            f"{one.median:,.0f}",
            f"{min(one.tokens_per_second):,.0f} to {max(one.tokens_per_second):,.0f}",
            "" if one is ours else f"{ours.median / one.median:.2f}",
        ]
        for one in contestants
    ]
    columns = ["", "type", "weights", "pairs", "tokens", "padding", "tokens/s", "range", "ratio"]
    title = (
        f"Training, size {size}, {corpus}: a batch's pairs and tokens, median tokens/s, dragoman's to each"
    )
    print_table(title, columns, rows, machine)
    figures: dict[str, Any] = {"benchmark": "training_speed", "size": size, "corpus": corpus}
    figures["machine"] = machine
    figures["contestants"] = [
        {
            "name": one.name,
            "precision": one.precision,
            "num_parameters": one.num_parameters,
            "num_batches": one.num_batches,
            "num_pairs": one.num_pairs,
            "num_tokens": one.num_tokens,
            "padding_share": one.padding_share,
            "tokens_per_second": one.tokens_per_second,
            "median_tokens_per_second": one.median,
            "ratio_of_medians": ours.median / one.median,
        }
        for one in contestants
    ]
    write_json(json_path, figures)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="multi30k", help="the model's shape")
    parser.add_argument("--data", type=Path, metavar="DIR", help="Multi30k; without it, made-up lengths")
    parser.add_argument("--threads", type=int, help="CPU threads; without it, every usable core")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each, after one that warms up")
    parser.add_argument("--turn-s", type=float, default=10.0, help="seconds a turn lasts at least")
    parser.add_argument("--batch-tokens", type=int, help="padded tokens a batch; without it, the recipe's")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of dragoman; the peer's is fp32",
    )
    parser.add_argument("--seed", type=int, default=1, help="of weights, data and dropout")
    add_json_option(parser)
    options = parser.parse_args()
    overrides = list(SIZES[options.size])
    if options.batch_tokens:
        overrides.append(f"training.batch_tokens={options.batch_tokens}")
    overrides.append(f"training.precision={options.precision}")
    recipe = load_recipe("multi30k", overrides)
    set_threads(options.threads or "auto")
    keep_freed_memory()
    pairs = read_pairs(recipe, options.data) if options.data else make_pairs(recipe, options.seed)
    contestants = enter_contestants(recipe, pairs, options.seed)
    turns = [(turn, one) for turn in range(options.rounds + 1) for one in contestants]
    for turn, one in track(turns, "training in turn", console=Console(stderr=True), transient=True):
        one.take_turn(options.turn_s, counts=turn > 0)
    report(contestants, options.size, "Multi30k" if options.data else "made-up lengths", options.json)


def _size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
