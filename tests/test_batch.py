"""How an update is cut into micro-batches changes no gradient, and what leaves the loss leaves its denominators."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from grpo import packing
from grpo.batch import MicroBatch, TrainedRollout, micro_batches, minibatches, trained_rollouts
from grpo.config import LossConfig
from grpo.logprobs import LossOf
from grpo.losses import policy_loss
from grpo.policy import Policy, Wanted
from grpo.steering import Steering
from grpo.types import Group, KeptSets, Message, Problem, Rollout, StopReason
from rewards import Reward, RewardSpec
from tests.conftest import tiny_policy

CPU = torch.device("cpu")
VOCABULARY = 96
LIMIT_TOKENS = 24
WHOLE = 10**6  # tokens: everything in one micro-batch
AGGREGATIONS = ["token", "sequence", "group", "constant"]
TOLERANCE = 2e-6  # relative L2 of a parameter's gradient, in float32, where logits have a standard deviation of 1


def rollout_of(num_prompt: int, num_completion: int, **fields: object) -> Rollout:
    """Token ids that say where they stand: 0, 1, 2 ..."""
    length = num_prompt + num_completion
    plain = Rollout(
        problem_id="p",
        attempt=0,
        token_ids=tuple(i % VOCABULARY for i in range(length)),
        action_mask=(False,) * num_prompt + (True,) * num_completion,
        logprobs=(0.0,) * length,
        kept=None,
        stop_reason=StopReason.END_TOKEN,
        temperature=1.0,
        policy_step=0,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def trained_of(rollouts: Sequence[Rollout], *, advantage: float = 1.0) -> list[TrainedRollout]:
    tokens = sum(rollout.num_actions for rollout in rollouts)
    return [
        TrainedRollout(rollout=rollout, advantage=advantage, group_tokens=tokens, group_rollouts=len(rollouts))
        for rollout in rollouts
    ]


def split(
    groups: Sequence[list[TrainedRollout]],
    *,
    tokens_per_micro_batch: int,
    aggregation: str = "token",
    shares_prompts: bool = True,
) -> list[MicroBatch]:
    return micro_batches(
        groups,
        tokens_per_micro_batch=tokens_per_micro_batch,
        limit_tokens=LIMIT_TOKENS,
        aggregation=aggregation,
        device=CPU,
        shares_prompts=shares_prompts,
    )


def random_groups(policy: Policy, *, seed: int = 0) -> list[list[TrainedRollout]]:
    """Four groups of three: lengths from 2 to 36, three temperatures, some kept sets, some tool output in between.

    The sampler's log-probs are the policy's with noise, so that ratios lie on both sides of every clip."""
    rng = random.Random(seed)
    groups = []
    for index in range(4):
        num_prompt = rng.randrange(1, 13)
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(num_prompt))
        rollouts = []
        for _ in range(3):
            num_completion = rng.randrange(1, 25)
            ids = prompt + tuple(rng.randrange(VOCABULARY) for _ in range(num_completion))
            mask = [False] * num_prompt + [True] * num_completion
            if num_completion > 8:
                mask[num_prompt + 3 : num_prompt + 6] = [False] * 3
            kept = KeptSets.of((*rng.sample(range(VOCABULARY), 20), i) for i, a in zip(ids, mask, strict=True) if a)
            rollouts.append(
                rollout_of(
                    num_prompt,
                    num_completion,
                    token_ids=ids,
                    action_mask=tuple(mask),
                    kept=kept if index == 1 else None,
                    temperature=(0.7, 1.0, 1.3)[index % 3],
                )
            )
        noisy = [replace(r, logprobs=scored(policy, r, noise=0.2, rng=rng)) for r in rollouts]
        groups.append([replace(t, advantage=rng.gauss(0, 1)) for t in trained_of(noisy)])
    return groups


def scored(policy: Policy, rollout: Rollout, *, noise: float, rng: random.Random) -> tuple[float, ...]:
    """The policy's own log-probs with normal noise, as a sampler would have left them."""
    (batch,) = split([trained_of([rollout])], tokens_per_micro_batch=WHOLE)
    with torch.no_grad():
        own = iter(policy(batch)[1].tolist())
    return tuple(next(own) + rng.gauss(0, noise) if action else 0.0 for action in rollout.action_mask)


def add_gradient(policy: Policy, batches: Sequence[MicroBatch], config: LossConfig) -> None:
    for batch in batches:
        wanted = Wanted(loss_of=loss_of(batch, config), token_by_token=config.ratio == "token")
        loss, *_ = policy(batch, wanted)
        loss.backward()


def loss_of(batch: MicroBatch, config: LossConfig) -> LossOf:
    def of_part(logprobs: Tensor, part: slice) -> Tensor:
        return policy_loss(
            logprobs,
            old_logprobs=batch.sampler_logprobs[part],
            sampler_logprobs=batch.sampler_logprobs[part],
            advantages=batch.advantages[part],
            rollout_index=batch.rollout_index[part],
            weights=batch.weights[part],
            config=config,
        ).loss

    return of_part


def gradient(
    policy: Policy,
    groups: Sequence[list[TrainedRollout]],
    *,
    tokens_per_micro_batch: int = WHOLE,
    config: LossConfig | None = None,
) -> dict[str, Tensor]:
    config = config or LossConfig()
    policy.zero_grad(set_to_none=True)
    batches = split(groups, tokens_per_micro_batch=tokens_per_micro_batch, aggregation=config.aggregation)
    add_gradient(policy, batches, config)
    return gradients_of(policy)


def gradients_of(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Relative L2 of the parameter that differs most."""
    assert one.keys() == two.keys()
    assert one
    assert all(bool(g.any()) for g in one.values())
    return max(float((one[name] - two[name]).norm() / one[name].norm()) for name in one)


def tolerance(policy: Policy) -> float:
    """Rounding in log-probs, and so in gradients, grows with the spread of the logits (6 in the tiny gemma3)."""
    with torch.no_grad():
        return TOLERANCE * max(1.0, float(policy.head(policy.hidden(torch.arange(90).unsqueeze(0))[0]).std()))


# --- the gradient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["choosing", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_long_row_is_filled_up_and_nothing_hears_of_it(name, positions, monkeypatch):
    policy = tiny_policy(name)
    policy.steer(Steering({0: torch.linspace(-1, 1, policy.hidden_size)}, 0.5, positions=positions))
    groups = random_groups(policy)
    (plain,), expected = split(groups, tokens_per_micro_batch=WHOLE), gradient(policy, groups)
    scores = policy(plain)[1]
    monkeypatch.setattr(packing, "LONG_TOKENS", 1)
    (filled,) = split(groups, tokens_per_micro_batch=WHOLE)
    missing = len(filled.input_ids) - len(plain.input_ids)
    assert 0 < missing < packing.STEP_TOKENS
    assert len(filled.input_ids) % packing.STEP_TOKENS == 0
    assert torch.allclose(policy(filled)[1], scores, atol=1e-5)
    assert largest_difference(expected, gradient(policy, groups)) < tolerance(policy)
    # Models that take no packed row have rows of their own.
    (apart,) = split(groups, tokens_per_micro_batch=WHOLE, shares_prompts=False)
    assert len(apart.input_ids) == sum(len(t.rollout.token_ids) - 1 for group in groups for t in group)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_splitting_an_update_into_micro_batches_does_not_change_the_gradient(ratio, aggregation):
    policy = tiny_policy("llama")
    groups = random_groups(policy)
    clips = {"clip_low": 0.02, "clip_high": 0.03} if ratio == "sequence" else {}
    config = LossConfig(ratio=ratio, aggregation=aggregation, **clips)
    whole = gradient(policy, groups, config=config)
    for tokens in (1, 40, 100, 200):
        found = gradient(policy, groups, tokens_per_micro_batch=tokens, config=config)
        assert largest_difference(whole, found) < TOLERANCE


def test_splitting_changes_the_gradient_of_no_architecture(policy):
    groups = random_groups(policy)
    whole = gradient(policy, groups)
    for tokens in (1, 64):
        assert largest_difference(whole, gradient(policy, groups, tokens_per_micro_batch=tokens)) < tolerance(policy)


@pytest.mark.parametrize("surrogate", ["clip", "cispo"])
def test_the_order_of_rollouts_and_groups_does_not_change_the_gradient(surrogate):
    policy = tiny_policy("qwen3")
    groups = random_groups(policy)
    config = LossConfig(surrogate=surrogate, aggregation="group")
    whole = gradient(policy, groups, tokens_per_micro_batch=80, config=config)
    rng = random.Random(1)
    for _ in range(3):
        shuffled = [rng.sample(group, len(group)) for group in rng.sample(groups, len(groups))]
        found = gradient(policy, shuffled, tokens_per_micro_batch=80, config=config)
        assert largest_difference(whole, found) < TOLERANCE


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}}])
@pytest.mark.parametrize("steered", [False, True])
def test_activation_checkpointing_does_not_change_the_gradient(steered, changes):
    found = []
    for recompute in (False, True):
        policy = tiny_policy("gemma3", activation_checkpointing=recompute, **changes)
        awaken_adapters(policy)
        groups = random_groups(policy)
        if steered:
            vector = torch.randn(policy.hidden_size, generator=torch.Generator().manual_seed(0))
            policy.steer(Steering(vectors={0: vector, 1: vector}, coefficient=2.0))
        found.append([gradient(policy, groups, tokens_per_micro_batch=tokens) for tokens in (64, WHOLE)])
    for held, recomputed in zip(*found, strict=True):
        assert largest_difference(held, recomputed) < 1e-7


def test_activation_checkpointing_recomputes_every_block():
    policy = tiny_policy("llama", activation_checkpointing=True)
    groups = random_groups(policy)
    calls: list[int] = []
    for block in policy.model.model.layers:
        # Before the block's last product: recomputing ends with the last tensor that the backward pass needs.
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradient(policy, groups)
    assert len(calls) == 4  # two blocks, forward and again in the backward pass


def test_splitting_does_not_change_the_gradient_of_adapters_and_the_base_has_none():
    policy = tiny_policy("qwen3", lora={"rank": 4})
    awaken_adapters(policy)
    groups = random_groups(policy)
    whole = gradient(policy, groups)
    assert all("lora_" in name for name in whole)
    for tokens in (1, 64):
        assert largest_difference(whole, gradient(policy, groups, tokens_per_micro_batch=tokens)) < TOLERANCE


def awaken_adapters(policy: Policy) -> None:
    """Fresh adapters multiply by zero, and half of their gradients are zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_micro_batchs_own_denominators_would_be_seen(aggregation):
    """Each micro-batch divided by its own counts, and the mean over micro-batches taken."""
    policy = tiny_policy("llama")
    groups = random_groups(policy)
    config = LossConfig(aggregation=aggregation)
    whole = gradient(policy, groups, config=config)
    layout = split(groups, tokens_per_micro_batch=40, aggregation=aggregation)
    policy.zero_grad(set_to_none=True)
    for batch in layout:
        of_batch = [[t for t in batch.rollouts if t in group] for group in groups]
        local = [trained_again(group) for group in of_batch if group]
        add_gradient(policy, split(local, tokens_per_micro_batch=WHOLE, aggregation=aggregation), config)
    local_gradient = {name: g / len(layout) for name, g in gradients_of(policy).items()}
    assert largest_difference(whole, local_gradient) > 0.05


def trained_again(group: Sequence[TrainedRollout]) -> list[TrainedRollout]:
    tokens = sum(t.rollout.num_actions for t in group)
    return [replace(t, group_tokens=tokens) for t in group]


def test_on_policy_the_gradient_by_token_is_the_weighted_log_likelihoods():
    """Σ A·∇log π / N, with no batch, no padding and no chunk: transformers' own logits, one rollout at a time."""
    policy = tiny_policy("qwen3")
    groups = [[replace(t, rollout=replace(t.rollout, kept=None)) for t in group] for group in random_groups(policy)]
    rng = random.Random(0)
    groups = [
        [replace(t, rollout=replace(t.rollout, logprobs=scored(policy, t.rollout, noise=0.0, rng=rng)))]
        for (t, *_) in groups
    ]
    groups = [[replace(t, group_tokens=t.rollout.num_actions, group_rollouts=1)] for (t,) in groups]
    found = gradient(policy, groups, tokens_per_micro_batch=64)
    policy.zero_grad(set_to_none=True)
    total = sum(t.rollout.num_actions for group in groups for t in group)
    for (trained,) in groups:
        ids = torch.tensor([trained.rollout.token_ids])
        logits = policy.model(input_ids=ids).logits[0, :-1] / trained.rollout.temperature
        chosen = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(trained.rollout.action_mask[1:])
        (-trained.advantage * chosen[mask].sum() / total).backward()
    assert largest_difference(gradients_of(policy), found) < 2 * TOLERANCE


# --- the layout ---------------------------------------------------------------------------------------------------

lengths = st.lists(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60)), min_size=1, max_size=6), min_size=1)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, tokens=st.integers(1, 400))
def test_every_rollout_is_in_one_micro_batch_within_the_budget(lengths, tokens):
    """Each group has its first problem's prompt, so that all of it is shared."""
    groups = [trained_of([rollout_of(group[0][0], completion) for _, completion in group]) for group in lengths]
    groups = [[replace(t, group_tokens=number) for t in group] for number, group in enumerate(groups, start=1)]
    batches = split(groups, tokens_per_micro_batch=tokens, aggregation="sequence")
    placed = [id(t) for batch in batches for t in batch.rollouts]
    assert sorted(placed) == sorted(id(t) for group in groups for t in group)
    for batch in batches:
        assert len(batch.input_ids) == batch.layout.num_tokens == tokens_needed(batch)
        assert len(batch.input_ids) <= tokens or len(batch.rollouts) == 1
    assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1)


def tokens_needed(batch: MicroBatch) -> int:
    """The prompt of each group but for its last token, and the tokens that were followed by a drawn one."""
    prompts = {
        t.group_tokens: t.rollout.action_mask.index(True) - 1 for t in batch.rollouts
    }  # by what tells groups apart
    return sum(prompts.values()) + sum(t.rollout.num_actions for t in batch.rollouts)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths, tokens=st.integers(1, 400))
def test_without_shared_prompts_rollouts_are_padded_only_to_the_longest_of_their_micro_batch(lengths, tokens):
    groups = [trained_of([rollout_of(*pair) for pair in group]) for group in lengths]
    for batch in split(groups, tokens_per_micro_batch=tokens, shares_prompts=False):
        places, real = batch.layout.padded()
        rows, width = places.shape
        assert width == max(len(t.rollout.token_ids) for t in batch.rollouts) - 1
        assert rows * width <= tokens or rows == 1
        for row, trained in enumerate(batch.rollouts):
            assert batch.input_ids[places[row, real[row]]].tolist() == list(trained.rollout.token_ids[:-1])


def parts(
    groups: Sequence[list[TrainedRollout]], *, num_ranks: int, tokens: int, shares_prompts: bool = True
) -> list[list[MicroBatch]]:
    """Each rank's micro-batches."""
    return [
        micro_batches(
            groups,
            tokens_per_micro_batch=tokens,
            limit_tokens=LIMIT_TOKENS,
            aggregation="token",
            device=CPU,
            shares_prompts=shares_prompts,
            rank=rank,
            num_ranks=num_ranks,
        )
        for rank in range(num_ranks)
    ]


@given(
    lengths=st.lists(st.integers(1, LIMIT_TOKENS), min_size=1, max_size=30),
    tokens=st.integers(1, 200),
    num_ranks=st.integers(1, 5),
)
def test_ranks_have_as_many_micro_batches_and_every_rollout_once(lengths, tokens, num_ranks):
    groups = [trained_of([rollout_of(2, length, attempt=n) for n, length in enumerate(lengths)])]
    of_ranks = parts(groups, num_ranks=num_ranks, tokens=tokens)
    assert len({len(of_rank) for of_rank in of_ranks}) == 1
    attempts = [t.rollout.attempt for of_rank in of_ranks for batch in of_rank for t in batch.rollouts]
    assert sorted(attempts) == list(range(len(lengths)))
    for at_once in zip(*of_ranks, strict=True):
        assert {batch.most_actions for batch in at_once} == {max(len(batch.targets) for batch in at_once)}
        assert all(len(b.rollouts) == 1 or b.input_ids.numel() <= tokens for b in at_once if b.rollouts)


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_what_ranks_have_at_the_same_time_differs_by_no_more_than_a_rollout(shares_prompts):
    lengths = [24, 24, 23, 23, 12, 12, 11, 11, 4, 4, 3, 3] * 4
    groups = [trained_of([rollout_of(2, length) for length in lengths])]
    of_ranks = parts(groups, num_ranks=2, tokens=120, shares_prompts=shares_prompts)
    assert len(of_ranks[0]) > 2
    for first, second in zip(*of_ranks, strict=True):
        assert abs(len(first.input_ids) - len(second.input_ids)) <= 25


def test_a_rank_without_a_rollout_has_a_filler_that_adds_nothing_to_the_gradient():
    policy = tiny_policy("llama")
    (only,), (filler,) = parts([trained_of([rollout_of(3, 4)])], num_ranks=2, tokens=WHOLE)
    assert (len(only.rollouts), len(filler.rollouts), len(filler.targets)) == (1, 0, 0)
    loss, logprobs, entropy, _ = policy(filler, Wanted(loss_of=loss_of(filler, LossConfig())))
    assert (len(logprobs), len(entropy)) == (0, 0)
    loss.backward()
    assert all(not parameter.grad.any() for parameter in policy.parameters() if parameter.grad is not None)


def test_a_group_has_its_prompt_once_in_each_micro_batch():
    groups = [trained_of([rollout_of(10, 190)] + [rollout_of(10, 6) for _ in range(20)])]
    alone, together = split(groups, tokens_per_micro_batch=210)
    # The longest fills a micro-batch; without others it is a plain sequence.
    assert [(s.prefix_tokens, s.row_tokens) for s in alone.layout.segments] == [(0, (199,))]
    assert [(s.prefix_tokens, s.row_tokens) for s in together.layout.segments] == [(9, (6,) * 20)]
    assert len(together.input_ids) == 9 + 20 * 6


def test_a_micro_batch_says_which_position_predicts_which_token():
    short = rollout_of(2, 2, logprobs=(0.0, 0.0, -0.5, -0.25), temperature=0.5)
    tool = rollout_of(1, 4, action_mask=(False, True, False, True, True), logprobs=(0.0, -1.0, 0.0, -2.0, -3.0))
    (batch,) = split(
        [trained_of([short], advantage=3.0), trained_of([tool], advantage=-1.0)], tokens_per_micro_batch=10
    )
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.layout.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.predicts_action.int().tolist() == [1, 0, 1, 1, 0, 1, 1]
    assert batch.targets.tolist() == [1, 3, 4, 2, 3]
    assert batch.rollout_index.tolist() == [0, 0, 0, 1, 1]
    assert batch.sampler_logprobs.tolist() == [-1.0, -2.0, -3.0, -0.5, -0.25]
    assert batch.advantages.tolist() == [-1.0, -1.0, -1.0, 3.0, 3.0]
    assert batch.temperature.tolist() == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert batch.kept is None


def test_kept_sets_follow_their_tokens_and_an_unrestricted_rollout_keeps_everything():
    restricted = rollout_of(1, 2, kept=KeptSets.of([(1, 5), (2,)]))
    (batch,) = split([trained_of([rollout_of(1, 3), restricted])], tokens_per_micro_batch=WHOLE)
    assert batch.kept == KeptSets.of([(), (), (), (1, 5), (2,)])


# --- what enters the loss -----------------------------------------------------------------------------------------


def group_of(rollouts: Sequence[Rollout], rewards: Sequence[Reward]) -> Group:
    problem = Problem(id="p", messages=(Message("user", "?"),), answer="1", reward=RewardSpec(name="list_machine"))
    return Group(
        problem=problem,
        rollouts=tuple(rollouts),
        completions=("",) * len(rollouts),
        rewards=tuple(rewards),
        success_threshold=1.0,
    )


def test_rollouts_without_a_value_leave_loss_and_denominators():
    rollouts = [rollout_of(1, n) for n in (2, 3, 5)]
    rewards = [Reward.scored(1.0), Reward.abstained(), Reward.scored(0.0)]
    (entering,) = trained_rollouts([group_of(rollouts, rewards)], [[0.5, -0.5]], mask_truncated=False)
    assert [(t.rollout.num_actions, t.advantage, t.group_tokens) for t in entering] == [(2, 0.5, 7), (5, -0.5, 7)]
    for aggregation, expected in (("token", 1 / 7), ("constant", 1 / (2 * LIMIT_TOKENS)), ("group", 1 / 7)):
        (batch,) = split([entering], tokens_per_micro_batch=WHOLE, aggregation=aggregation)
        assert batch.weights.tolist() == pytest.approx([expected] * 7)


def test_truncated_rollouts_leave_loss_and_denominators_only_where_they_are_masked():
    rollouts = [rollout_of(1, 2), rollout_of(1, 6, stop_reason=StopReason.LIMIT), rollout_of(1, 4)]
    group = group_of(rollouts, [Reward.scored(1.0), Reward.scored(0.0), Reward.scored(0.0)])
    advantages = [[0.7, -0.3, -0.4]]
    (masked,) = trained_rollouts([group], advantages, mask_truncated=True)
    assert [(t.rollout.num_actions, t.advantage, t.group_tokens) for t in masked] == [(2, 0.7, 6), (4, -0.4, 6)]
    (kept,) = trained_rollouts([group], advantages, mask_truncated=False)
    assert [(t.advantage, t.group_tokens) for t in kept] == [(0.7, 12), (-0.3, 12), (-0.4, 12)]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_group_whose_rollouts_were_all_cut_changes_nothing_when_they_are_masked(aggregation):
    cut = group_of([rollout_of(1, 6, stop_reason=StopReason.LIMIT)] * 2, [Reward.scored(1.0), Reward.scored(0.0)])
    whole = group_of([rollout_of(1, 3), rollout_of(1, 4)], [Reward.scored(1.0), Reward.scored(0.0)])
    advantages = [[0.5, -0.5], [0.5, -0.5]]
    both = trained_rollouts([cut, whole], advantages, mask_truncated=True)
    alone = trained_rollouts([whole], advantages[1:], mask_truncated=True)
    (of_both,) = minibatches(both, number=1)
    for groups in (of_both, both):
        (batch,) = split(groups, tokens_per_micro_batch=WHOLE, aggregation=aggregation)
        (expected,) = split(alone, tokens_per_micro_batch=WHOLE, aggregation=aggregation)
        assert torch.equal(batch.weights, expected.weights)


def test_advantages_and_rollouts_with_a_value_must_be_as_many():
    group = group_of([rollout_of(1, 2)] * 2, [Reward.scored(1.0), Reward.abstained()])
    with pytest.raises(ValueError, match="zip"):
        trained_rollouts([group], [[0.5, -0.5]], mask_truncated=False)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), max_size=20), number=st.integers(1, 25))
def test_minibatches_keep_every_group_in_order_in_parts_that_differ_by_one_at_most(sizes, number):
    groups = [trained_of([rollout_of(1, 1)] * size) for size in sizes]
    parts = minibatches(groups, number=number)
    assert list(itertools.chain(*parts)) == [group for group in groups if group]
    assert len(parts) == min(number, sum(size > 0 for size in sizes))
    counts = [len(part) for part in parts]
    assert not counts or (min(counts) > 0 and max(counts) - min(counts) <= 1)


def test_minibatches_have_denominators_of_their_own_update():
    groups = [trained_of([rollout_of(1, n)]) for n in (2, 3, 5, 6)]
    first, second = minibatches(groups, number=2)
    for part, tokens in ((first, 5), (second, 11)):
        (batch,) = split(part, tokens_per_micro_batch=WHOLE)
        assert batch.weights.tolist() == pytest.approx([1 / tokens] * tokens)
