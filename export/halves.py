"""Half precision (fp16): weights, products and caches of 16 bits, as GPUs and their attention kernels want them.

Sums that need more stay in 32 bits: `LayerNormalization` takes its mean and variance there (its `stash_type`), the
attention operators their softmax, and the graphs cast logits before `log_softmax` (`dragoman.export.graphs`).
"""

import copy

import torch

from dragoman.export.errors import ExportError
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["halved"]


def halved(model: TranslationModel | LanguageModel) -> TranslationModel | LanguageModel:
    """A copy of `model` for export with weights in fp16; `model` stays as it is.

    Raises:
        ExportError: a weight is beyond the largest number that fp16 has, 65,504.
    """
    twin = copy.deepcopy(model).eval().half()
    for name, weight in twin.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ExportError(f"{name} has weights beyond 65,504, the largest number of fp16: export as fp32")
    return twin
