"""The processes that do a phase together; without jax, as those that play a game are."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is; alone unless told otherwise."""

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda what: None  # until all have come to what it names

    def own(self, things: Sequence[T]) -> list[T]:
        """This process's share: every `count`th thing."""
        return list(things[self.index :: self.count])

    def first_then_all(self, work: Callable[[], T]) -> T:
        """`work()`, by the first process before the others: what it mends on disk it mends once."""
        done: Any = work() if self.index == 0 else None
        self.wait("what the first process does")
        return done if self.index == 0 else work()
