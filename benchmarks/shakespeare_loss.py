"""The validation loss of a run on tiny Shakespeare, by nanoGPT's measure.

    python -m benchmarks.shakespeare_loss runs/shakespeare --data DIR

DIR holds input.txt. The loss is the mean cross-entropy, in nats, of the last 10 % of the text, in windows as long as
the run's context allows. As in nanoGPT's estimate, a window's first character is predicted from the one before it; the
begin token, which Dragoman's models start from, takes a place of the context. nanoGPT averages over random windows,
this over all of them. nanoGPT's README gives 1.4697 for its recipe for a GPU (10.7 million weights, context 256).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from benchmarks.race import cut_windows, mean_loss
from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from torch import Tensor

from dragoman.model.run import load_run
from dragoman.model.tokenizer import BEGIN_ID
from dragoman.model.training.hardware import set_threads
from dragoman.model.transformer import LanguageModel

PUBLISHED: Final = 1.4697


def informed_logits(model: LanguageModel) -> Callable[[Tensor], Tensor]:
    """Windows (n, T + 1) -> logits (n, T, vocabulary) of all but the first, each from all before it."""

    def logits_of(windows: Tensor) -> Tensor:
        begin = torch.full((len(windows), 1), BEGIN_ID)
        logits: Tensor = model(torch.cat([begin, windows[:, :-1]], dim=1))
        return logits[:, 1:]

    return logits_of


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder of the recipe shakespeare")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with input.txt")
    add_json_option(parser)
    options = parser.parse_args()
    set_threads("auto")
    run = load_run(options.run)
    if not isinstance(run.model, LanguageModel):
        sys.exit(f"{options.run} is a run of {run.recipe.name!r}, not of a language model")
    text = (options.data / "input.txt").read_text(encoding="utf-8")
    ids = run.tokenizer.encode(text[int(0.9 * len(text)) :], add_special_tokens=False).ids
    windows = cut_windows(ids, run.model.dims.max_target_tokens - 1)
    loss = mean_loss(informed_logits(run.model), windows)
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    machine = describe_machine()
    title = f"Tiny Shakespeare, {run.step:,} steps: loss over {windows[:, 1:].numel():,} characters"
    rows = [
        ["dragoman", f"{num_parameters:,}", f"{loss:.4f}"],
        ["nanoGPT's recipe for a GPU, published", "10.7 million", f"{PUBLISHED}"],
    ]
    print_table(title, ["", "weights", "loss"], rows, machine)
    figures = {"benchmark": "shakespeare_loss", "machine": machine, "run": str(options.run), "loss": loss}
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
