"""Finding a microbatch's answers in a thread, while the student computes its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from composer_distill.teachers.splitting import parts_of, same_parts

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """Does something with a batch in a thread, before it is asked for.

    Args:
        work: What is done; it must leave the batch as it is.

    Example:
        >>> import torch
        >>> ahead = Ahead(lambda batch: float(batch[0].sum()))
        >>> batch = (torch.ones(3), torch.zeros(3))
        >>> ahead.begin(batch)
        >>> ahead.take(batch)
        3.0
    """

    def __init__(self, work: Callable[[Any], Result]) -> None:
        self._work = work
        self._thread: ThreadPoolExecutor | None = None
        self._begun: tuple[list[tuple[Any, int]], Future[Result]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy what is done, and nothing of what is under way."""
        return type(self), (self._work,)

    def begin(self, batch: Any) -> None:
        """Start the work, unless it was started for this batch."""
        seen = parts_of(batch)
        if self._begun is not None:
            if same_parts(self._begun[0], seen):
                return
            self.forget()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._begun = seen, self._thread.submit(self._work, batch)

    def take(self, batch: Any) -> Result:
        """Return the result for a batch: what was begun, if that is what the batch still holds."""
        if self._begun is not None and same_parts(self._begun[0], parts_of(batch)):
            _, future = self._begun
            self._begun = None
            return future.result()
        self.forget()
        return self._work(batch)

    def forget(self) -> None:
        """Wait for what was begun and drop it, and the batch."""
        if self._begun is not None:
            self._begun[1].exception()
            self._begun = None
