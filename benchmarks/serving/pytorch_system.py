"""The model itself in PyTorch, eager: what a user has before exporting."""

from benchmarks.serving.dragoman_systems import repeat
from benchmarks.serving.systems import Reading, Setting, Workload

from dragoman.model.beam_search import beam_search
from dragoman.model.decoding import greedy_decode
from dragoman.model.transformer import TranslationModel

__all__ = ["PyTorchEager"]


class PyTorchEager:
    """`model/decoding.py` and `model/beam_search.py`, with all of PyTorch's threads, or where the model is."""

    name = "PyTorch eager"

    def __init__(self, model: TranslationModel, precision: str = "fp32") -> None:
        self._model = model
        self.precision = precision

    def settings(self, workload: Workload) -> list[Setting]:
        can_do = (
            workload.beam_size == 1 or not workload.min_tokens
        )  # its beam search knows no shortest length
        return [{}] if can_do else []

    def prepare(self, setting: Setting) -> None:
        pass

    def run(self, workload: Workload, turn_s: float) -> Reading:
        return repeat(lambda: self._decode(workload), turn_s)

    def close(self) -> None:
        pass

    def _decode(self, workload: Workload) -> int:
        if workload.beam_size == 1:
            answers = greedy_decode(
                self._model, workload.inputs, workload.max_tokens, min_tokens=workload.min_tokens
            )
            return sum(len(answer.token_ids) for answer in answers)
        found = beam_search(self._model, workload.inputs, workload.max_tokens, beam_size=workload.beam_size)
        return sum(len(hypotheses[0].token_ids) for hypotheses in found)
