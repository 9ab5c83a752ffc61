"""Outputs of one length are aligned in one run, and each as it is alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman.server.bundle.reader import Bundle
from dragoman.server.execution import rows as rows_module
from dragoman.server.execution.backend import Backend
from dragoman.server.execution.rows import Rows

ALIGNED = Path(__file__).parents[1] / "fixtures" / "aligned"


@pytest.mark.parametrize("max_run_tokens", [16_384, 16])
def test_outputs_of_one_length_share_a_run(monkeypatch: pytest.MonkeyPatch, max_run_tokens: int) -> None:
    bundle = Bundle.read(next(ALIGNED.glob("*/*")))
    rows = Backend.load(bundle, provider="cpu", num_threads=1).rows(2)
    source = list(bundle.tokenizer.encode("907").ids)
    outputs = [[5, 6, 7], [8], [9, 5, 6], [7], [], [6, 6, 6], [5]]
    alone = [rows.align(source, [output])[0] for output in outputs]
    monkeypatch.setattr(rows_module, "MAX_RUN_TOKENS", max_run_tokens)
    num_together, run = [], Rows._align

    def recorded(self: Rows, inputs: Any) -> Any:
        num_together.append(len(inputs["target_ids"]))
        return run(self, inputs)

    monkeypatch.setattr(Rows, "_align", recorded)
    together = rows.align(source, outputs)
    for one, other, output in zip(together, alone, outputs, strict=True):
        assert one.shape == (len(output) + 1, len(source))
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert sum(num_together) == len(outputs)
    assert len(num_together) == 3 if max_run_tokens > 16 else len(num_together) > 3
