"""From named arrays to a model folder of CTranslate2, whatever its kind. Runs in the peers' environment."""

from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN, BEGIN, END = "1", "2", "3"


def token_names(vocabulary_size: int) -> list[str]:
    """A token is its id in decimal."""
    return [str(token_id) for token_id in range(vocabulary_size)]


def assign_weights(spec: Any, weights: str) -> None:
    """Put each array of the .npz file `weights` where its name says: `encoder.layer.0.ffn.linear_0.weight`."""
    with np.load(weights) as arrays:
        for path, array in arrays.items():
            *parents, last = path.split(".")
            part = spec
            for name in parents:
                part = part[int(name)] if name.isdecimal() else getattr(part, name)
            setattr(part, last, array)


def save(spec: Any, folder: str) -> None:
    """Write a spec with weights and vocabulary to `folder`, which is made."""
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = UNKNOWN, BEGIN, END
    spec.validate()
    spec.optimize()  # one matrix for the embeddings and the projection, as in the model
    Path(folder).mkdir(parents=True)
    spec.save(folder)
