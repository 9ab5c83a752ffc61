"""How a bundle compares with PyTorch, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dragoman.export.verification import Agreement

__all__ = ["agreement_lines"]


def agreement_lines(agreement: "Agreement") -> list[str]:
    """The comparison, a fact a line."""
    equal = f"{agreement.num_equal_inputs} of {agreement.num_inputs} held-out inputs"
    tokens = f"{agreement.token_agreement:.2%} of {agreement.num_tokens} tokens, {agreement.num_ties} ties"
    return [
        f"same answer as PyTorch: {equal} ({tokens})",
        f"answers that change in a batch: {agreement.num_batch_differences}",
        f"largest logit difference: {agreement.max_logit_difference:.2e}",
    ]
