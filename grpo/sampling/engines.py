"""Which engine samples, by the config."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from grpo.config import RunConfig
from grpo.distributed.world import World
from grpo.model import max_positions
from grpo.policy import Policy
from grpo.sampling.invariance import verdict
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Sampler
from grpo.sampling.served import ServedSampler
from grpo.sampling.vllm import VllmSampler


def made_sampler(
    config: RunConfig,
    policy: Policy,
    *,
    end_token_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    say: Callable[[str], None],
    on_progress: Callable[[], None],
) -> Sampler:
    """The sampler of sampling.engine, which has been tried, and said what it is. Raises ConfigError as it does.

    Called by every rank, each with the policy that it samples from."""
    if config.sampling.engine == "native":
        native = NativeSampler(
            policy, config.sampling, end_token_ids=end_token_ids, tokenizer=tokenizer, on_progress=on_progress
        )
        say(native.describe())
        say(verdict(native.layout_gap()))
        return native
    context = max_positions(policy.model)
    longest = config.data.max_prompt_tokens + config.sampling.max_completion_tokens
    longest = longest if context is None else min(longest, context)
    if config.sampling.vllm.mode == "server":
        served = ServedSampler(
            policy,
            config.sampling,
            end_token_ids=end_token_ids,
            context_tokens=longest,
            world=world,
            on_progress=on_progress,
        )
        say(served.describe())
        return served
    colocated = VllmSampler(
        policy,
        config.sampling,
        end_token_ids=end_token_ids,
        tokenizer=tokenizer,
        context_tokens=longest,
        shares_process_group=world.size > 1,
        on_progress=on_progress,
    )
    say(colocated.describe())
    return colocated
