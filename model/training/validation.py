"""The validation loss: on the whole split or, where a limit of minutes leaves no time for that, on a part of it."""

from collections.abc import Callable, Iterator

from torch import Tensor

from dragoman.model.batching import Batch, Examples, Rows
from dragoman.model.loss import sum_losses, total_loss
from dragoman.model.training.distributed import World
from dragoman.model.transformer import LanguageModel, TranslationModel

__all__ = ["Validation", "evenly_spread"]

_MIN_BATCH_TOKENS = 4_096  # small batches help learning; here they would only take time


class Validation:
    """The validation split in batches, the same ones each time, so that losses compare."""

    def __init__(self, examples: Examples, batch_tokens: int, num_batches: int | None = None) -> None:
        """Choose the batches.

        Args:
            examples: the split.
            batch_tokens: as in training; batches are larger where that is small.
            num_batches: the number of batches that an earlier sitting had time for; None if it is not known.
        """
        self._examples = examples
        self._plan = list(examples.plan(max(batch_tokens, _MIN_BATCH_TOKENS)))
        self._order = evenly_spread(len(self._plan))
        self.num_batches = num_batches

    @property
    def share(self) -> float:
        """The part of the split that is read, 1 for all of it."""
        return min(1.0, (self.num_batches or len(self._plan)) / len(self._plan))

    def batches(self) -> Iterator[Batch]:
        """The batches of the split that are read."""
        return (self._examples.batch(self._plan[number]) for number in self._order[: self.num_batches])

    def loss_of(self, model: TranslationModel | LanguageModel) -> float:
        """Cross-entropy in nats a token of `model` alone, in this process alone."""
        device = model.embedding.token.weight.device
        total, num_labels = sum_losses(
            model, self.batches(), lambda batch: total_loss(model, batch.to(device))
        )
        return total / num_labels

    def loss(
        self,
        model: TranslationModel | LanguageModel,
        loss: Callable[[Batch], Tensor],
        *,
        world: World,
        part: Callable[[Examples, Rows], Batch],
        is_over: Callable[[], bool],
    ) -> float:
        """Cross-entropy in nats a token, in evaluation mode, over all processes, which call this together.

        Args:
            model: what is validated.
            loss: the summed loss of a batch.
            world: the processes.
            part: this process's share of some rows.
            is_over: returns whether the time for this is over. Only the first call asks it. Later calls read the
                batches that the first one read, at least one.
        """
        num_read = 0

        def batches() -> Iterator[Batch]:
            nonlocal num_read
            for number in self._order[: self.num_batches]:
                if num_read and self.num_batches is None and world.from_main(is_over()):
                    break
                num_read += 1
                yield part(self._examples, self._plan[number])

        total, num_labels = world.sum(*sum_losses(model, batches(), loss))
        self.num_batches = num_read
        return total / num_labels


def evenly_spread(count: int) -> list[int]:
    """The numbers below `count` in an order of which every beginning is spread over all of them.

    The middle first, then the middles of the halves: batches stand in order of length, and files are often sorted.
    """
    order: list[int] = []
    ranges = [(0, count)]
    for start, end in ranges:  # which grows as it is gone through
        if start < end:
            middle = (start + end) // 2
            order.append(middle)
            ranges += [(start, middle), (middle + 1, end)]
    return order
