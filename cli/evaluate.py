"""`dragoman evaluate`: the quality of what is served, as JSON."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.credentials import with_credentials
from dragoman.cli.decoding_options import BeamSize, LengthPenalty
from dragoman.cli.options import DEFAULT_TIMEOUT_S, Data, ModelVersion, Timeout, complete_model, examples
from dragoman.cli.output import write_json
from dragoman.cli.progress import progress_bar
from dragoman.client.credentials import Credentials
from dragoman.common.errors import UsageError
from dragoman.common.extras import require_extra

__all__ = ["EPILOG", "evaluate"]

EPILOG = examples(
    "dragoman evaluate models/dates/1",
    "dragoman evaluate localhost:8500 --model dates --limit 1000",
    "dragoman evaluate models/multi30k/1 --data ~/multi30k --beam-size 5 --length-penalty 2",
)


@with_credentials
def evaluate(
    subject: Annotated[
        str,
        typer.Argument(metavar="BUNDLE_OR_HOST", help="A bundle's folder, or HOST:PORT of a running server."),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            autocompletion=complete_model,
            help="With a server: name of the model.",
            show_default="the only one",
        ),
    ] = None,
    model_version: ModelVersion = "",
    data: Data = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Use the first N examples only.", show_default="all"),
    ] = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    credentials: Credentials,
) -> None:
    """Measure a model on test examples that training never saw, and print the figures as JSON.

    Translation: exact match, BLEU and chrF, measured as the recipe says, of a server's model or of a bundle.
    `headline` names the figures that fit the task best. Generation: bits per byte, of a bundle only. A server does
    not take documents of that length; `dragoman score` scores shorter texts.
    """
    require_extra("train")
    folder = Path(subject)
    is_folder = folder.is_dir()
    if not is_folder and ":" not in subject:
        raise UsageError(f"{subject!r} is neither a bundle's folder nor HOST:PORT")
    from dragoman.cli.bundle_evaluation import evaluate_bundle
    from dragoman.cli.evaluation import Search
    from dragoman.cli.served_evaluation import evaluate_served

    search = Search.of(beam_size, length_penalty)
    with progress_bar() as progress:
        evaluation = (
            evaluate_bundle(folder, data=data, limit=limit, search=search, progress=progress)
            if is_folder
            else evaluate_served(
                subject,
                model,
                version=model_version,
                data=data,
                limit=limit,
                search=search,
                timeout_s=timeout_s,
                credentials=credentials,
                progress=progress,
            )
        )
    write_json(dataclasses.asdict(evaluation))
