"""What a request is in vLLM's words, and what its answer is in ours; the same for an engine here and for a server."""

from collections.abc import Sequence
from typing import Any

from grpo.config import VLLM_LEAST_TEMPERATURE, SamplingConfig
from grpo.errors import ConfigError
from grpo.sampling.protocol import Request
from grpo.steering import Steering
from grpo.types import StopReason

MAX_SEED = 2**63 - 1
"""Of vLLM's generators, which take 64 bits with a sign."""


class Asked:
    """Of one run: its limits, stop strings and end tokens."""

    def __init__(self, config: SamplingConfig, *, end_token_ids: Sequence[int]) -> None:
        self._config = config
        self._end_tokens = tuple(end_token_ids)

    def check(self, request: Request) -> None:
        """Raises ValueError for an empty prompt, a limit above the config's, a temperature that vLLM would raise, and a
        grid."""
        limit = self._config.max_completion_tokens
        if not request.prompt_ids:
            raise ValueError("a prompt has no tokens; a completion needs at least one to follow")
        if request.limit_tokens is not None and not 1 <= request.limit_tokens <= limit:
            raise ValueError(
                f"limit_tokens = {request.limit_tokens}: must be from 1 to sampling.max_completion_tokens = {limit}"
            )
        if request.temperature < VLLM_LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature = {request.temperature:g}: vLLM draws at {VLLM_LEAST_TEMPERATURE} where less is asked "
                "for; raise it, or set sampling.engine: native"
            )
        if request.grid:
            raise ValueError(
                f"grid = {list(request.grid)}: vLLM tells log-probs at the temperature of the draw alone; ask for no "
                "grid, or set sampling.engine: native"
            )

    def parameters(self, request: Request) -> dict[str, Any]:
        """Fields of vLLM's SamplingParams, but for the seed."""
        return {
            "temperature": request.temperature,
            "max_tokens": request.limit_tokens or self._config.max_completion_tokens,
            # The end tokens are the run's, and all of them end a completion, whichever the engine's folder names.
            "ignore_eos": True,
            "stop_token_ids": list(self._end_tokens),
            "stop": list(self._config.stop_strings) or None,
            "include_stop_str_in_output": bool(self._config.stop_strings),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "detokenize": bool(self._config.stop_strings),
            "logprobs": 0,  # of the drawn token alone
        }

    def stop_reason(self, token_ids: Sequence[int], *, finish: str | None, stop: int | str | None) -> StopReason:
        """Why a completion ended, from vLLM's two words for it. Raises RuntimeError where it was broken off."""
        if finish == "length":
            return StopReason.LIMIT
        if finish != "stop":
            raise RuntimeError(f"vLLM broke a completion off: finish_reason = {finish!r} after {len(token_ids)} tokens")
        if isinstance(stop, str) and token_ids[-1] not in self._end_tokens:
            return StopReason.STOP_STRING
        return StopReason.END_TOKEN


def refuse_steering(steering: Steering | None) -> None:
    """Raises ConfigError for any steering: vLLM's kernels have no place for it that is the policy's own."""
    if steering is not None:
        raise ConfigError("sampling.engine = 'vllm' steers no draws; set sampling.engine: native")
