"""The native engine: one prefill a prompt, continuous batching over slots, draws by counter noise.

A row enters with its prompt's keys and values but for the last prompt token, which is its first decode input; from
then on every decode input is a position whose next token the policy chooses. A row that finishes frees its slot for
one that waits, and when none waits the rows are packed together."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo.config import SamplingConfig
from grpo.policy import Policy
from grpo.sampling.invariance import layout_gap
from grpo.sampling.protocol import Completion, Request
from grpo.sampling.rows import MIN_ROWS, Prefix, Rows
from grpo.sampling.trials import check_decoding, decoder_of
from grpo.steering import Steering
from grpo.types import StopReason

LOOK_STEPS = {"cuda": 8}
"""Decodes between two looks at which rows are done. A look waits for a GPU; on a CPU it costs nothing."""


class NativeSampler:
    """Samples from the policy's own modules, recorded on a GPU; small models on a CPU from copies of their weights."""

    keeps_copy = False

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        *,
        end_token_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`tokenizer` is asked for text only where there are stop strings. Raises ConfigError as `check_decoding`.

        `on_progress` is called after each prefill and each decode; what it raises ends the sampling."""
        check_decoding(policy)
        self._decoder, self.why_not_fastest = decoder_of(policy)
        self._policy = policy
        self._config = config
        self._end_token_ids = torch.tensor(end_token_ids, device=policy.device)
        self._end_tokens = frozenset(end_token_ids)
        self._tokenizer = tokenizer
        self._on_progress = on_progress
        may_stop = _tokens_that_may_stop(tokenizer, config.stop_strings, vocabulary=policy.vocabulary)
        self._may_stop = None if may_stop is None else may_stop.to(policy.device)

    def load_weights(self, policy: Policy) -> None:
        """Draw from `policy`'s weights as they stand."""
        self._policy = policy
        self._decoder.load_weights(policy)

    def describe(self) -> str:
        """How tokens are decoded, and why, for people to read."""
        why_not = f" ({self.why_not_fastest})" if self.why_not_fastest else ""
        return f"sampling: decoded by {self._decoder.what}{why_not}"

    def layout_gap(self) -> float:
        """As `grpo.sampling.invariance.layout_gap`, of this sampler's own decodes."""
        return layout_gap(self._policy, self._config, decoder=self._decoder)

    def steer(self, steering: Steering | None) -> None:
        """Steer the policy that is drawn from; the trainer scores with the same module, so both are steered."""
        self._policy.steer(steering)

    @torch.no_grad()
    def sample(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield every completion as it finishes. Raises ValueError for an empty prompt, a limit above the config's, a
        grid where tokens are left out, and two grids of unlike length.

        Of a sequence all is known from the start. Any other iterable is asked for a request when a quarter of
        `sampling.max_rows` is free and nothing waits, and for one between two decodes: where several processes share a
        list, none takes all of a short one before the others ask."""
        waiting = _Waiting(requests, config=self._config)
        limit = self._config.max_rows
        if isinstance(requests, Sequence):
            waiting.pull_all()
            limit = min(limit, len(waiting.queue))
        # A prefill for one row at a time would cost more than it fills: wait for a quarter of the rows.
        least_free = max(1, limit // 4)
        rows = Rows(MIN_ROWS, config=self._config, policy=self._policy, decoder=self._decoder)
        held: Prefix | None = None
        # A stop string is looked for in the text, which is here.
        look_steps = 1 if self._may_stop is not None else LOOK_STEPS.get(self._policy.device.type, 1)
        steps = 0
        while waiting.may_have_more or rows.num_active:
            num_free = limit - rows.num_active
            if not waiting.queue and num_free >= least_free:
                waiting.pull()
            if waiting.queue and num_free >= min(len(waiting.queue), least_free):
                rows.widen(min(limit, rows.num_active + len(waiting.queue)))
                held = self._admit(waiting, rows, num_free=num_free, held=held)
            if not rows.num_active:
                continue
            tokens = rows.draw(rows.logits())
            rows.end(torch.isin(tokens, self._end_token_ids))
            self._on_progress()
            steps += 1
            if steps % look_steps:
                continue
            for row, stop_reason in self._finished_rows(rows, tokens):
                yield rows.leave(row, stop_reason)
            if not waiting.may_have_more:
                rows.pack()

    def _admit(self, waiting: "_Waiting", rows: Rows, *, num_free: int, held: Prefix | None) -> Prefix | None:
        """Fill the free rows. A group that they cut in two keeps its prefill, which is handed back: one a group."""
        queue, requests = waiting.queue, waiting.requests
        entering: dict[int, list[int]] = {}
        for _ in range(min(len(queue), num_free)):
            request, index = queue.popleft()
            entering.setdefault(request, []).append(index)
        cut = queue[0][0] if queue and queue[0][0] in entering else None
        rows.narrow()
        if held is not None:
            rows.enter(entering.pop(held.request), requests[held.request], prefix=held)
        still = held if held is not None and held.request == cut else None
        for batch in rows.prefill_batches(list(entering), requests, budget_tokens=self._config.prefill_tokens):
            cache = rows.prefill([requests[request].prompt_ids[:-1] for request in batch])
            self._on_progress()
            for source, request in enumerate(batch):
                prefix = Prefix(request=request, cache=cache, source=source)
                rows.enter(entering[request], requests[request], prefix=prefix)
                still = prefix if request == cut else still
        return still

    def _finished_rows(self, rows: Rows, tokens: Tensor) -> list[tuple[int, StopReason]]:
        """Rows that are done, in order; `tokens` [R] are the last drawn, which may have completed a stop string."""
        found = dict.fromkeys(rows.ended(), StopReason.LIMIT)
        if self._may_stop is not None:
            for row in (rows.is_owned & self._may_stop[tokens]).nonzero().flatten().tolist():
                if self._ends_in_stop_string(rows.token_ids(row)):
                    found[row] = StopReason.STOP_STRING
        for row in found:
            if rows.last_token(row) in self._end_tokens:
                found[row] = StopReason.END_TOKEN
        return sorted(found.items())

    def _ends_in_stop_string(self, ids: Sequence[int]) -> bool:
        # A token holds a byte at least, so a stop string that the last token completes lies within this tail.
        tail = ids[-(max(len(stop.encode()) for stop in self._config.stop_strings) + 1) :]
        text = self._tokenizer.decode(list(tail), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self._config.stop_strings)


class _Waiting:
    """Rollouts without a row, as (request, index), of requests that are pulled as they are wanted."""

    def __init__(self, requests: Iterable[Request], *, config: SamplingConfig) -> None:
        self._source = iter(requests)
        self._config = config
        self._is_exhausted = False
        self.requests: list[Request] = []  # all that were pulled, in order: a completion names its place in here
        self.queue: deque[tuple[int, int]] = deque()

    @property
    def may_have_more(self) -> bool:
        """False once every rollout of every request has left the queue."""
        return bool(self.queue) or not self._is_exhausted

    def pull(self) -> None:
        """Ask for one more request, unless there was none before. Raises ValueError for one that cannot be drawn."""
        request = None if self._is_exhausted else next(self._source, None)
        if request is None:
            self._is_exhausted = True
            return
        if not request.prompt_ids:
            raise ValueError("a prompt has no tokens; a completion needs at least one to follow")
        _check_request(request, self._config)
        self.queue.extend((len(self.requests), index) for index in range(len(request.keys)))
        self.requests.append(request)

    def pull_all(self) -> None:
        """Ask for every request there is."""
        while not self._is_exhausted:
            self.pull()


def _check_request(request: Request, config: SamplingConfig) -> None:
    limit = config.max_completion_tokens
    if request.limit_tokens is not None and not 1 <= request.limit_tokens <= limit:
        raise ValueError(
            f"limit_tokens = {request.limit_tokens}: must be from 1 to sampling.max_completion_tokens = {limit}"
        )
    if request.grid and (config.top_k or config.top_p < 1 or config.min_p):
        raise ValueError(
            f"grid = {list(request.grid)}: what top_k, top_p and min_p leave differs by temperature, so that a token "
            "drawn at one may be impossible at another; switch them off, or ask for no grid"
        )


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
