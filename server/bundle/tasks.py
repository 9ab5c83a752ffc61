"""The facts of a task: they decide how its models read, decode and answer. Nothing else asks for a task's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["FACTS", "Task", "TaskFacts"]

Task: TypeAlias = Literal["translation", "generation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """Which graphs a task has is in `dragoman.server.bundle.graph_names`, which methods in each front.

    Attributes:
        has_source: an encoder reads the input as a whole, and the output begins anew. Without a source the output
            continues its input: both share the context.
        takes_blank_inputs: whether white space alone is an input.
    """

    has_source: bool
    takes_blank_inputs: bool


FACTS: Final[Mapping[Task, TaskFacts]] = {
    # White space is a fine beginning for a language model; to a translation model it says nothing.
    "translation": TaskFacts(has_source=True, takes_blank_inputs=False),
    "generation": TaskFacts(has_source=False, takes_blank_inputs=True),
}
