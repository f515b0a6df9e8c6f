"""The native engine: one prefill a prompt, continuous batching over slots, draws by counter noise.

A row enters with its prompt's keys and values but for the last prompt token, which is its first decode input; from
then on every decode input is a position whose next token the policy chooses. A row that finishes frees its slot for
one that waits, and when none waits the rows are packed together."""

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from grpo.config import SamplingConfig
from grpo.errors import ConfigError
from grpo.logprobs import tempered
from grpo.model import base_of
from grpo.policy import Policy
from grpo.sampling.cache import SlotCache
from grpo.sampling.noise import gumbel, signed
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.restrict import kept_tokens
from grpo.steering import Steering
from grpo.types import KeptSets, StopReason

# Matrix products of fewer rows take other code paths and round differently (from five rows on they were bit-equal
# on CPU), so a batch is never packed below this.
MIN_ROWS = 8
CAPACITY_STEP_TOKENS = 128
# Share of the logits' spread by which a decode may differ from a forward: above rounding (in bfloat16 0.03 at 28
# layers), below what a wrong mask or position does to a model with opinions.
DECODING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class NativeSampler:
    """Samples from the policy's own modules: loading weights is a reference, and nothing is copied."""

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        *,
        end_token_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`tokenizer` is asked for text only where there are stop strings; `on_progress` is called for every decode
        step. Raises ConfigError as `check_decoding`."""
        check_decoding(policy)
        self._policy = policy
        self._config = config
        self._end_token_ids = torch.tensor(end_token_ids, device=policy.device)
        self._tokenizer = tokenizer
        self._on_progress = on_progress
        may_stop = _tokens_that_may_stop(tokenizer, config.stop_strings, vocabulary=policy.vocabulary)
        self._may_stop = None if may_stop is None else may_stop.to(policy.device)

    def load_weights(self, policy: Policy) -> None:
        """Draw from `policy`'s weights as they stand at each call."""
        self._policy = policy

    def steer(self, steering: Steering | None) -> None:
        """Steer the policy that is drawn from; the trainer scores with the same module, so both are steered."""
        self._policy.steer(steering)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield every completion as it finishes. Raises ValueError for an empty prompt."""
        if any(not request.prompt_ids for request in requests):
            raise ValueError("a prompt has no tokens; a completion needs at least one to follow")
        queue = deque((r, i) for r, request in enumerate(requests) for i in range(len(request.keys)))
        if not queue:
            return
        num_rows = max(MIN_ROWS, min(self._config.max_rows, len(queue)))
        rows = _Rows(num_rows, config=self._config, policy=self._policy)
        held: _Prefix | None = None
        while queue or rows.num_active:
            # A prefill for one row at a time would cost more than it fills: wait for a quarter of the rows.
            if queue and rows.num_free >= min(len(queue), max(1, num_rows // 4)):
                held = self._admit(queue, requests, rows, held=held)
            tokens = rows.decode()
            self._on_progress()
            for row in self._finished_rows(rows, tokens):
                yield rows.leave(row, self._stop_reason(rows, row))
            if not queue:
                rows.pack()

    def _admit(
        self, queue: deque[tuple[int, int]], requests: Sequence[Request], rows: "_Rows", *, held: "_Prefix | None"
    ) -> "_Prefix | None":
        """Fill the free rows. A group that they cut in two keeps its prefill, which is handed back: one a group."""
        entering: dict[int, list[int]] = {}
        for _ in range(min(len(queue), rows.num_free)):
            request, index = queue.popleft()
            entering.setdefault(request, []).append(index)
        cut = queue[0][0] if queue and queue[0][0] in entering else None
        rows.narrow()
        if held is not None:
            rows.enter(entering.pop(held.request), requests[held.request], prefix=held)
        still = held if held is not None and held.request == cut else None
        for batch in _prefill_batches(list(entering), requests, budget_tokens=self._config.prefill_tokens):
            cache = rows.prefill([requests[request].prompt_ids[:-1] for request in batch])
            for source, request in enumerate(batch):
                prefix = _Prefix(request=request, cache=cache, source=source)
                rows.enter(entering[request], requests[request], prefix=prefix)
                still = prefix if request == cut else still
        return still

    def _finished_rows(self, rows: "_Rows", tokens: Tensor) -> list[int]:
        ended = torch.isin(tokens, self._end_token_ids)  # [R]
        done = rows.active & (ended | (rows.num_drawn >= self._config.max_completion_tokens))
        if self._may_stop is not None:
            suspects = (rows.active & ~done & self._may_stop[tokens]).nonzero().flatten().tolist()
            for row in suspects:
                if self._ends_in_stop_string(rows.token_ids(row)):
                    done[row] = True
        return list(done.nonzero().flatten().tolist())

    def _stop_reason(self, rows: "_Rows", row: int) -> StopReason:
        ids = rows.token_ids(row)
        if ids[-1] in self._end_token_ids.tolist():
            return StopReason.END_TOKEN
        return StopReason.STOP_STRING if self._ends_in_stop_string(ids) else StopReason.LIMIT

    def _ends_in_stop_string(self, ids: Sequence[int]) -> bool:
        if not self._config.stop_strings:
            return False
        # A token holds a byte at least, so a stop string that the last token completes lies within this tail.
        tail = ids[-(max(len(stop.encode()) for stop in self._config.stop_strings) + 1) :]
        text = self._tokenizer.decode(list(tail), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self._config.stop_strings)


@torch.no_grad()
def check_decoding(policy: Policy) -> None:
    """Decode two rows of unequal length from the cache, and compare with the forward that training scores by.

    Raises ConfigError where the logits differ or an architecture's own code fails: nothing is sampled wrongly."""
    name = type(base_of(policy.model)).__name__
    prompts = [tuple((5 * i + 1) % policy.vocabulary for i in range(length)) for length in (3, 12)]
    try:
        rows = _Rows(MIN_ROWS, config=SamplingConfig(max_completion_tokens=1), policy=policy)
        cache = rows.prefill([prompt[:-1] for prompt in prompts])
        for source, prompt in enumerate(prompts):
            request = Request(prompt_ids=prompt, keys=(0,), temperature=1.0)
            rows.enter([0], request, prefix=_Prefix(request=source, cache=cache, source=source))
        found = rows.logits()[: len(prompts)].float()  # [2, V]
        expected = torch.cat([_last_logits(policy, prompt) for prompt in prompts]).float()  # [2, V]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the code of any architecture raises
        raise ConfigError(
            f"model: {name} cannot be decoded by the native sampler ({type(error).__name__}: {error}); take a model of "
            "another architecture"
        ) from error
    gap, spread = float((found - expected).square().mean().sqrt()), float(expected.std())
    if not gap <= DECODING_TOLERANCE[policy.dtype] * spread:
        raise ConfigError(
            f"model: {name} is decoded wrongly by the native sampler (logits off by {gap:.2g}, where they spread by "
            f"{spread:.2g}); take a model of another architecture"
        )


def _last_logits(policy: Policy, prompt: Sequence[int]) -> Tensor:
    ids = torch.tensor([prompt], device=policy.device)  # [1, T]
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True  # where the decode steers too, if the policy is steered
    return policy.head(policy.hidden(ids, steer_at=last)[:, -1])  # [1, V]


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A request's prompt, prefilled: row `source` of a cache of several."""

    request: int
    cache: DynamicCache
    source: int


class _Rows:
    """The decode batch: per row where it is, what it has drawn, and whose it is. Tensors are [R]."""

    def __init__(self, num_rows: int, *, config: SamplingConfig, policy: Policy) -> None:
        self._policy, self._config = policy, config
        device = policy.device
        self.active = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.num_drawn = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._length = torch.zeros(num_rows, dtype=torch.long, device=device)  # tokens in the cache
        self._next_input = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._keys = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._temperature = torch.ones(num_rows, device=device)
        self._drawn = torch.zeros(num_rows, config.max_completion_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(num_rows, config.max_completion_tokens, device=device)
        self._kept: list[list[array[int]]] = [[] for _ in range(num_rows)]
        self._owner: list[tuple[int, int] | None] = [None] * num_rows  # request and index
        self.num_active = 0
        self._width = 0  # longest row, in tokens, known without asking the device
        self._cache: SlotCache | None = None
        model_config = base_of(policy.model).config.get_text_config()
        self._eager = model_config._attn_implementation == "eager"
        self._window: int | None = getattr(model_config, "sliding_window", None)
        self._layer_types = set(getattr(model_config, "layer_types", None) or [])

    @property
    def num_free(self) -> int:
        """Rows without one."""
        return len(self._owner) - self.num_active

    def token_ids(self, row: int) -> list[int]:
        """What `row` has drawn."""
        return list(self._drawn[row, : int(self.num_drawn[row])].tolist())

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> DynamicCache:
        """Keys and values of prompts without their last token, in one forward, padded on the right."""
        longest = max(1, *(len(prefix) for prefix in prefixes))
        ids = torch.zeros(len(prefixes), longest, dtype=torch.long)  # [P, T]
        for row, prefix in enumerate(prefixes):
            ids[row, : len(prefix)] = torch.tensor(prefix, dtype=torch.long)
        # Without a config the cache keeps every position of sliding layers too; short rows need what padding displaced.
        cache = DynamicCache()
        self._policy.hidden(ids.to(self._policy.device), cache=cache)
        return cache

    def enter(self, indices: Sequence[int], wanted: Request, *, prefix: _Prefix) -> None:
        """Put rollouts `indices` of the prefix's request, `wanted`, into free rows."""
        length = len(wanted.prompt_ids) - 1
        free = [row for row, owner in enumerate(self._owner) if owner is None][: len(indices)]
        self._width = max(self._width, length)
        if self._cache is None:
            capacity = self._width + min(self._config.max_completion_tokens, CAPACITY_STEP_TOKENS) + 1
            self._cache = SlotCache(prefix.cache, num_rows=len(self._owner), capacity_tokens=capacity)
        if self._cache.capacity_tokens <= self._width:
            self._cache.grow(self._width + CAPACITY_STEP_TOKENS)
        self._cache.enter(free, prefix.cache, source=prefix.source, length=length)
        rows = torch.tensor(free, device=self.active.device)
        self.active[rows] = True
        self.num_drawn[rows] = 0
        self._length[rows] = length
        self._next_input[rows] = wanted.prompt_ids[-1]
        self._keys[rows] = torch.tensor([signed(wanted.keys[i]) for i in indices], device=rows.device)
        self._temperature[rows] = wanted.temperature
        for row, index in zip(free, indices, strict=True):
            self._owner[row] = (prefix.request, index)
            self._kept[row] = []
        self.num_active += len(free)

    def logits(self) -> Tensor:
        """Read each row's next input into the cache; returns the logits of what follows it, [R, V]."""
        assert self._cache is not None
        self._width += 1
        if self._cache.capacity_tokens < self._width:
            self._cache.grow(self._width + CAPACITY_STEP_TOKENS)
        self._cache.write_at(self._length, width=self._width)
        hidden = self._policy.hidden(
            self._next_input.unsqueeze(1),
            position_ids=self._length.unsqueeze(1),
            attention_mask=self._attention_mask(),
            cache=self._cache,
            steer_at=self.active.unsqueeze(1),
        )[:, 0]  # [R, D]
        return self._policy.head(hidden)

    def decode(self) -> Tensor:
        """Draw one token for every active row; returns the tokens [R] (of no meaning in free rows)."""
        logits = tempered(self.logits(), temperature=self._temperature)  # [R, V]
        config = self._config
        kept = kept_tokens(logits, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        if kept is not None:
            logits = logits.masked_fill(~kept, -torch.inf)
            self._note_kept(kept)
        tokens = (logits + gumbel(self._keys, self.num_drawn, vocabulary=logits.shape[-1])).argmax(dim=-1)  # [R]
        chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)  # [R]
        at = self.num_drawn.clamp(max=config.max_completion_tokens - 1).unsqueeze(1)
        self._drawn.scatter_(1, at, tokens.unsqueeze(1))
        self._logprobs.scatter_(1, at, chosen.unsqueeze(1))
        # Free rows stay where they are, or they would outgrow their slots.
        self.num_drawn += self.active
        self._length += self.active
        self._next_input = tokens
        return tokens

    def leave(self, row: int, stop_reason: StopReason) -> Completion:
        """Take the finished rollout out of `row` and free it."""
        owner = self._owner[row]
        assert owner is not None
        count = int(self.num_drawn[row])
        completion = Completion(
            request=owner[0],
            index=owner[1],
            token_ids=tuple(self._drawn[row, :count].tolist()),
            logprobs=tuple(self._logprobs[row, :count].tolist()),
            kept=KeptSets.of(self._kept[row]) if self._kept[row] else None,
            stop_reason=stop_reason,
        )
        self._owner[row] = None
        self.num_active -= 1
        self.active[row] = False
        self._length[row] = 0
        return completion

    def narrow(self) -> None:
        """Forget the width of rows that have left: attention looks at no more than the longest row has."""
        self._width = int(self._length.max())

    def pack(self) -> None:
        """Drop free rows once they are a quarter of all, so that the last rollouts do not drag an empty batch along."""
        target = max(MIN_ROWS, self.num_active)
        if self._cache is None or not self.num_active or target > 0.75 * len(self._owner):
            return
        # Active rows first, in their order; free ones fill up to the least number of rows.
        order = sorted(range(len(self._owner)), key=lambda row: self._owner[row] is None)[:target]
        rows = torch.tensor(order, device=self.active.device)
        self._cache.select(rows)
        for name in ("active", "num_drawn", "_length", "_next_input", "_keys", "_temperature", "_drawn", "_logprobs"):
            setattr(self, name, getattr(self, name)[rows])
        self._owner = [self._owner[row] for row in order]
        self._kept = [self._kept[row] for row in order]
        self.narrow()

    def _attention_mask(self) -> Tensor | dict[str, Tensor]:
        """What each row's token sees, [R, 1, 1, width]: its own past, in sliding layers no more than a window of it."""
        at = torch.arange(self._width, device=self._length.device)  # [W]
        last = self._length.unsqueeze(1)  # [R, 1], the position being written
        full = at <= last  # [R, W]
        if self._window is None:
            return self._for_attention(full)
        sliding = full & (at > last - self._window)
        if not self._layer_types:  # one window for every layer, as in Mistral
            return self._for_attention(sliding)
        masks = {"full_attention": full, "sliding_attention": sliding}
        return {name: self._for_attention(mask) for name, mask in masks.items()}

    def _for_attention(self, mask: Tensor) -> Tensor:
        mask = mask[:, None, None]
        if not self._eager:
            return mask
        dtype = self._policy.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def _note_kept(self, kept: Tensor) -> None:
        ids = array("i", kept.nonzero()[:, 1].int().cpu().numpy().tobytes())
        stop = 0
        for row, size in enumerate(kept.sum(dim=1).tolist()):
            start, stop = stop, stop + size
            if self._owner[row] is not None:
                # An empty set stands for the whole vocabulary.
                self._kept[row].append(ids[start:stop] if size < kept.shape[1] else array("i"))


def _prefill_batches(prompts: Sequence[int], requests: Sequence[Request], *, budget_tokens: int) -> Iterator[list[int]]:
    """Split prompts, longest first, into prefills of at most `budget_tokens` padded tokens; a longer one goes alone."""
    batch: list[int] = []
    longest = 0
    for request in sorted(prompts, key=lambda r: -len(requests[r].prompt_ids)):
        if batch and (len(batch) + 1) * longest > budget_tokens:
            yield batch
            batch = []
        if not batch:
            longest = len(requests[request].prompt_ids)
        batch.append(request)
    if batch:
        yield batch


def _tokens_that_may_stop(
    tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str], *, vocabulary: int
) -> Tensor | None:
    """Mask [V] of tokens that can complete a stop string, so that text is made for few rows; None without stop strings.

    A token whose bytes are no text of their own may complete anything."""
    if not stop_strings:
        return None
    last_characters = {stop[-1] for stop in stop_strings}
    # Decoded after a token of plain text: a tokenizer in the manner of SentencePiece drops the space that a text
    # begins with, and a stop string may end in that space.
    before = tokenizer.encode("a", add_special_tokens=False)[-1:]
    decoded = tokenizer.batch_decode(
        [before, *([*before, token] for token in range(vocabulary))],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    texts = [text.removeprefix(decoded[0]) for text in decoded[1:]]
    return torch.tensor(["�" in text or bool(last_characters & set(text)) for text in texts])
