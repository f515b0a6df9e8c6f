"""What a forward has put in place while it runs, and activation checkpointing has to put back when it runs it again.

By the time of the backward pass the forward's own contexts are over: without them a block would be computed again with
another attention."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

Makes = Callable[[], AbstractContextManager[None]]

_in_place: ContextVar[tuple[Makes, ...]] = ContextVar("contexts of the forward under way", default=())


@contextmanager
def kept(*makes: Makes) -> Iterator[None]:
    """Enter what each of `makes` gives, now and in whatever is computed again of the forward inside."""
    token = _in_place.set((*_in_place.get(), *makes))
    try:
        with _entered(makes):
            yield
    finally:
        _in_place.reset(token)


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The `context_fn` of torch's checkpointing: a context for the forward, and one for what is computed again."""
    return nullcontext(), _entered(_in_place.get())


@contextmanager
def _entered(makes: tuple[Makes, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for make in makes:
            stack.enter_context(make())
        yield
