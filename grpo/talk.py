"""`grpo talk`: a conversation with a checkpoint in a terminal, steered by persona vectors where wished.

The native sampler and the run's own chat code answer, so that what is felt here is what training and evaluation see.
Lines come in and lines go out: a terminal is no part of it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpo import checkpoint, seeds
from grpo.chat import Chat
from grpo.config import ChatConfig, ModelConfig, SamplingConfig
from grpo.errors import ConfigError, DataError
from grpo.export import find_source, read_weights
from grpo.folder import COLD_START, RunFolder
from grpo.model import end_token_ids, load_model, load_tokenizer, max_positions
from grpo.persona.applied import check_shape
from grpo.persona.vectors import load
from grpo.policy import Policy
from grpo.replay import printable
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Request
from grpo.steering import Steering
from grpo.types import Message, StopReason

START = "start"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")
LIMIT_TOKENS = 512
"""Of an answer, where no run says how long a completion may be."""
HELP = """/steer TRAIT=FACTOR ...  steer by a trait's vectors from here on; a factor of 0 leaves it out
/steer                   what steers at present
/reset                   forget the conversation
/quit                    end (or the end of the input)"""


@dataclass(frozen=True, slots=True)
class Speaker:
    """Whom to talk to: a policy, how it is spoken to, and where the vectors of its traits lie."""

    name: str
    policy: Policy
    chat: Chat
    sampling: SamplingConfig
    remembers: bool  # whether its prompts hold a conversation; a plain text is a prompt alone
    vectors: Path | None  # folder of TRAIT.safetensors


def speaker_of(
    folder: Path, *, checkpoint_name: str | None, device: torch.device, say: Callable[[str], None]
) -> Speaker:
    """The policy of a checkpoint of a run's folder, or of a model's folder such as `grpo export` writes.

    `checkpoint_name` is of a run, as for `grpo export`, or "start": the policy that training starts from; None takes
    the newest whole step. Raises ConfigError for a folder of neither, CheckpointError where there is no such
    checkpoint."""
    if (folder / "config.yaml").is_file():
        return _of_run(RunFolder(folder), checkpoint_name=checkpoint_name, device=device, say=say)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: neither a run's folder (config.yaml) nor a model's (config.json)")
    if checkpoint_name is not None:
        raise ConfigError(f"--checkpoint {checkpoint_name}: {folder} is one model and no run; leave it out")
    config = ModelConfig(path=str(folder), dtype="float32" if device.type == "cpu" else "bfloat16")
    tokenizer = load_tokenizer(config)
    chat_config = ChatConfig(style="template" if tokenizer.chat_template else "plain")
    model = load_model(config, tokenizer=tokenizer, seed=0, device=device)
    return Speaker(
        name=str(folder),
        policy=_policy(model),
        chat=Chat(tokenizer, chat_config, end_token_ids=end_token_ids(model, tokenizer)),
        sampling=SamplingConfig(max_completion_tokens=LIMIT_TOKENS),
        remembers=chat_config.style == "template",
        vectors=None,
    )


def _of_run(
    folder: RunFolder, *, checkpoint_name: str | None, device: torch.device, say: Callable[[str], None]
) -> Speaker:
    config = folder.read_config()
    name = COLD_START if checkpoint_name == START and config.sft is not None else checkpoint_name
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=device)
    if name != START:  # else the weights are those that the config gives
        source = find_source(folder.checkpoints, name, say=say)
        checkpoint.load_weights(model, read_weights(source))
        name = str(source)
    return Speaker(
        name=name,
        policy=_policy(model),
        chat=Chat(tokenizer, config.chat, end_token_ids=end_token_ids(model, tokenizer)),
        sampling=config.sampling,
        remembers=config.chat.style == "template",
        vectors=folder.path / "persona",
    )


def _policy(model: torch.nn.Module) -> Policy:
    try:
        return Policy(model)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


class Conversation:
    """What was said so far, what steers, and the next answer."""

    def __init__(self, speaker: Speaker, *, temperature: float, seed: int, limit_tokens: int | None) -> None:
        """Answers of at most `limit_tokens`, or of the sampling config's limit. The noise of an answer is of `seed` and
        of its number."""
        limit = speaker.sampling.max_completion_tokens if limit_tokens is None else limit_tokens
        self._speaker, self._temperature, self._seed, self._limit = speaker, temperature, seed, limit
        self._context_tokens = max_positions(speaker.policy.model)
        self._sampler = NativeSampler(
            speaker.policy,
            speaker.sampling.model_copy(update={"max_completion_tokens": limit}),
            end_token_ids=speaker.chat.end_token_ids,
            tokenizer=speaker.chat.tokenizer,
        )
        self._messages: list[Message] = []
        self._num_answers = 0
        self._factors: dict[str, float] = {}
        self._vectors: dict[str, tuple[int, Tensor]] = {}  # of each trait that was named: its block and its vector [D]

    def answer(self, text: str) -> str:
        """The next answer to `text`, with a word on one that was cut. Raises ConfigError where there is no room."""
        messages = [*self._messages, Message("user", text)]
        try:
            prompt = self._speaker.chat.conversation_ids(messages)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        room = self._limit if self._context_tokens is None else self._context_tokens - len(prompt)
        if room < 1:
            raise ConfigError(
                f"the conversation has {len(prompt)} tokens, and the model's context {self._context_tokens}: /reset"
            )
        request = Request(
            prompt_ids=prompt,
            keys=(seeds.key(self._seed, "talk", self._num_answers),),
            temperature=self._temperature,
            limit_tokens=min(room, self._limit),
        )
        (completion,) = self._sampler.sample([request])
        self._num_answers += 1
        answer = self._speaker.chat.text(completion.token_ids)
        if self._speaker.remembers:
            self._messages = [*messages, Message("assistant", answer)]
        cut = f" [cut after {len(completion.token_ids)} tokens]" if completion.stop_reason is StopReason.LIMIT else ""
        return f"{answer}{cut}"

    def reset(self) -> None:
        """Forget what was said. What steers goes on steering."""
        self._messages = []

    def steer(self, wishes: Iterable[str]) -> str:
        """Steer by TRAIT=FACTOR, one a wish, beside what steers already; returns `steered`.

        Raises ConfigError or DataError for a wish that cannot be read or met; then nothing has changed."""
        factors = dict(self._factors)
        for wish in wishes:
            trait, _, number = wish.rpartition("=")
            if not trait or not NUMBER.fullmatch(number):
                raise ConfigError(f"{wish!r}: say TRAIT=FACTOR, such as sycophancy=1.5 or path/to/file.safetensors=-1")
            factors[trait] = float(number)
            if trait not in self._vectors:
                self._vectors[trait] = self._vector(trait)
        self._factors = {trait: factor for trait, factor in factors.items() if factor}
        moved: dict[int, Tensor] = {}
        for trait, factor in self._factors.items():
            block, vector = self._vectors[trait]
            moved[block] = moved.get(block, torch.zeros_like(vector)) + factor * vector
        self._sampler.steer(Steering(moved, coefficient=1.0) if moved else None)
        return self.steered

    @property
    def steered(self) -> str:
        """What steers, for people to read."""
        each = [f"{trait}={factor:g} at block {self._vectors[trait][0]}" for trait, factor in self._factors.items()]
        return f"steered by {', '.join(each)}" if each else "not steered"

    def _vector(self, trait: str) -> tuple[int, Tensor]:
        folder = self._speaker.vectors
        path = Path(trait) if trait.endswith(".safetensors") or folder is None else folder / f"{trait}.safetensors"
        if not path.is_file():
            known = sorted(found.stem for found in folder.glob("*.safetensors")) if folder is not None else []
            has = f"the run has {', '.join(known)}" if known else "give the path of a file from `grpo persona extract`"
            raise DataError(f"{path}: no vectors of {trait} there; {has}")
        vectors = load(path)
        check_shape(vectors.origin, self._speaker.policy, name=str(path))
        block = vectors.default_block
        return block, vectors.vectors([block])[block].to(self._speaker.policy.device)


def converse(conversation: Conversation, lines: Iterable[str], *, say: Callable[[str], None]) -> None:
    """Answer each of `lines` until /quit or their end. What is wrong with one is said, and the next one is read."""
    for line in lines:
        text = line.strip()
        command, *words = text.split() or [""]
        try:
            if command == "/quit":
                return
            if command == "/reset":
                conversation.reset()
                say("forgotten")
            elif command == "/steer":
                say(conversation.steer(words) if words else conversation.steered)
            elif command.startswith("/"):
                say(HELP)
            elif text:
                say(printable(conversation.answer(text)))
        except (ConfigError, DataError) as error:
            say(str(error))
