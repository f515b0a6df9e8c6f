"""When a sampler is handed the policy's weights, and how: whole beside it while it draws, or one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from grpo.distributed.strategy import Strategy
from grpo.policy import Policy
from grpo.sampling.protocol import Sampler


class Current:
    """A sampler that draws from the weights as they stand."""

    def __init__(self, sampler: Sampler, strategy: Strategy) -> None:
        self.sampler = sampler
        self._strategy = strategy
        self._is_due = True

    def load(self) -> None:
        """Hand the weights over before the next draw. To be called wherever they have changed."""
        self._is_due = True

    @contextmanager
    def drawing(self) -> Iterator[Sampler]:
        """The sampler, with the weights as they stand, while the context lasts. Called by every rank."""
        if not self.sampler.keeps_copy:
            with self._strategy.sampling_policy() as policy:
                self._hand_over(policy)
                yield self.sampler
            return
        if self._is_due:
            with self._strategy.handed_over() as policy:
                self._hand_over(policy)
        yield self.sampler

    def _hand_over(self, policy: Policy) -> None:
        if self._is_due:
            self.sampler.load_weights(policy)
            self._is_due = False
