"""What every sampling engine offers the rest of the trainer: sample, load weights, steer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from grpo.policy import Policy
from grpo.steering import Steering
from grpo.types import KeptSets, StopReason


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and as many completions of it as there are keys."""

    prompt_ids: tuple[int, ...]
    keys: tuple[int, ...]  # a 64-bit key of each completion's noise, from grpo.seeds
    temperature: float
    grid: tuple[float, ...] = ()  # other temperatures to tell the completions' log-probs at; they change no draw
    limit_tokens: int | None = None  # of a completion; None: sampling.max_completion_tokens, which is never exceeded


@dataclass(frozen=True, slots=True)
class Completion:
    """What was drawn for `keys[index]` of the request that came in place `request`, the end token included."""

    request: int
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # nats, of each token under the distribution that it was drawn from
    kept: KeptSets | None  # what top-k, top-p and min-p left for each token; None: they are off
    stop_reason: StopReason
    grid_logprobs: tuple[float, ...] | None = None  # nats, summed over the tokens, at each temperature of the grid


class Sampler(Protocol):
    """An engine. Which tokens the native one draws is a function of weights, steering, prompt, temperature and key
    alone; another draws from the same distribution, and says what of it repeats."""

    keeps_copy: bool
    """Whether it draws from a copy of its own, so that it needs the policy while it loads weights alone."""

    def load_weights(self, policy: Policy) -> None:
        """Draw from this policy's weights as they stand, from the next `sample` on."""

    def steer(self, steering: Steering | None) -> None:
        """Draw with this steering, or none, from the next `sample` on. Raises ConfigError where the engine cannot."""

    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield every completion once, as it finishes, in an order that the requests alone decide.

        What is no sequence is asked for its next request while others are being drawn. The caller may stop at any
        completion: what was begun is dropped."""
