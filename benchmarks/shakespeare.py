"""Time to a validation loss on tiny Shakespeare, against nanoGPT's own recipe for a CPU.

    python -m benchmarks.shakespeare --data DIR --nanogpt CHECKOUT

DIR holds input.txt; CHECKOUT is a clone of github.com/karpathy/nanoGPT. One round trains with nanoGPT's train.py, with
the flags of its README (2,000 steps), and then with `dragoman train` a model of the same depth, width, heads and
context. nanoGPT's README gives a loss of 1.88 for that recipe; 1.886 is the loss to reach.

Times are wall times: of the process, from its start to the end of the training loop, and of the loop alone, both
with the evaluations that each makes on its way. The loss is measured afterwards, by one estimator for both: the mean
cross-entropy, in nats, of the same characters of the last 10 % of the text, all of them, in windows of the context's
length. A window gives nanoGPT the character before it and Dragoman the begin token: Dragoman predicts the same
characters with one less to go by.

nanoGPT runs in a copy of the files it needs, prepares its data by its own prepare.py, and has no network.
"""

import dataclasses
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from benchmarks.nanogpt import NUM_HEADS, NUM_LAYERS, WIDTH, prepare_nanogpt, run_nanogpt
from benchmarks.race import CONTEXT, Result, cut_windows, mean_loss, run_timed
from benchmarks.report import add_json_option, argument_parser, describe_machine, print_table, write_json
from rich.console import Console
from torch import Tensor

from dragoman.model.recipe import load_recipe
from dragoman.model.run import load_run
from dragoman.model.tokenizer import BEGIN_ID
from dragoman.model.transformer import LanguageModel

_EVALUATION: Final = re.compile(r"step [\d,]+: ")


def our_logits(model: LanguageModel) -> Callable[[Tensor], Tensor]:
    """The characters to predict are read from the begin token on; the one before them is not seen."""

    def logits_of(windows: Tensor) -> Tensor:
        begin = torch.full((len(windows), 1), BEGIN_ID)
        logits: Tensor = model(torch.cat([begin, windows[:, 1:-1]], dim=1))
        return logits

    return logits_of


def run_dragoman(recipe: str, overrides: Iterable[str], data: Path, out: Path, text: str) -> Result:
    """Train with Dragoman and measure the run that it leaves."""
    command = [
        sys.executable,
        "-m",
        "dragoman",
        "train",
        recipe,
        "--out",
        str(out),
        "--data",
        str(data),
    ]
    for override in overrides:
        command += ["--set", override]
    lines = run_timed(command, Path.cwd(), {})
    begin_s = next(second for second, line in lines if " parameters, " in line)
    end_s = max(second for second, line in lines if _EVALUATION.match(line))
    run = load_run(out)
    assert isinstance(run.model, LanguageModel)
    ids = run.tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text), "the recipe's tokenizer has one token a character"
    return Result(
        name="dragoman",
        num_parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        num_steps=run.step,
        process_s=end_s,
        loop_s=end_s - begin_s,
        loss=mean_loss(our_logits(run.model), cut_windows(ids)),
    )


def check_same_size(recipe_name: str, overrides: Sequence[str]) -> None:
    """The race is for models of one shape."""
    recipe = load_recipe(recipe_name, overrides)
    model = recipe.model
    found = model.width, model.num_heads, model.num_decoder_layers, model.max_target_tokens
    expected = WIDTH, NUM_HEADS, NUM_LAYERS, CONTEXT
    if found != expected:
        sys.exit(f"recipe {recipe_name}: width, heads, layers, context are {found}, nanoGPT's {expected}")


def report(results: Sequence[Result], num_characters: int, target: float, json_path: Path | None) -> None:
    machine = describe_machine()
    of = {name: [one for one in results if one.name == name] for name in ("nanoGPT", "dragoman")}
    medians = {
        name: {
            key: statistics.median(getattr(one, key) for one in ones)
            for key in ("process_s", "loop_s", "loss")
        }
        for name, ones in of.items()
    }
    rows = [
        [
            name,
            f"{ones[0].num_parameters:,}",
            f"{ones[0].num_steps:,}",
            f"{medians[name]['process_s']:.1f}",
            f"{medians[name]['loop_s']:.1f}",
            f"{medians[name]['loss']:.4f}",
            " ".join(f"{one.loss:.4f}" for one in ones),
            f"{sum(one.loss <= target for one in ones)} of {len(ones)}",
        ]
        for name, ones in of.items()
    ]
    ratio = {key: medians["dragoman"][key] / medians["nanoGPT"][key] for key in ("process_s", "loop_s")}
    rows.append(
        ["dragoman / nanoGPT", "", "", f"{ratio['process_s']:.2f}", f"{ratio['loop_s']:.2f}", "", "", ""]
    )
    title = (
        f"Tiny Shakespeare, {len(of['dragoman'])} rounds, medians; loss over {num_characters:,} characters"
    )
    columns = ["", "weights", "steps", "process s", "loop s", "loss", "of each round", f"at most {target}"]
    print_table(title, columns, rows, machine)
    figures: dict[str, Any] = {"benchmark": "shakespeare", "machine": machine, "target_loss": target}
    figures |= {"num_characters": num_characters, "medians": medians, "ratio_of_medians": ratio}
    figures["results"] = [dataclasses.asdict(one) for one in results]
    write_json(json_path, figures)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with input.txt")
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="CHECKOUT", help="a clone of nanoGPT")
    parser.add_argument("--recipe", default="shakespeare-small", help="Dragoman's recipe, by name or path")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the recipe, as in `train`",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="nanoGPT, dragoman, nanoGPT, ...; dragoman with another seed each time",
    )
    parser.add_argument("--threads", type=int, help="CPU threads of both; without it, what each chooses")
    parser.add_argument("--target", type=float, default=1.886, help="validation loss to reach")
    add_json_option(parser)
    options = parser.parse_args()
    overrides = list(options.set)
    if options.threads:
        overrides.append(f"training.num_threads={options.threads}")
        torch.set_num_threads(options.threads)
    check_same_size(options.recipe, overrides)
    text = (options.data / "input.txt").read_text(encoding="utf-8")
    held_out = text[int(0.9 * len(text)) :]  # as both split it
    console, results = Console(stderr=True), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_nanogpt(options.nanogpt, options.data / "input.txt", folder / "nanogpt")
        for number in range(1, options.rounds + 1):
            with console.status(f"round {number} of {options.rounds}: nanoGPT trains"):
                results.append(run_nanogpt(folder / "nanogpt", held_out, options.threads))
            with console.status(f"round {number} of {options.rounds}: dragoman trains"):
                out = folder / f"run-{number}"
                settings = [*overrides, f"seed={number}"]
                results.append(run_dragoman(options.recipe, settings, options.data, out, held_out))
            for one in results[-2:]:
                console.print(f"{one.name}: {one.loop_s:.1f} s, loss {one.loss:.4f}", highlight=False)
    num_characters = (len(held_out) - 1) // CONTEXT * CONTEXT
    report(results, num_characters, options.target, options.json)


if __name__ == "__main__":
    main()
