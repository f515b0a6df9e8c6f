"""Cold start: supervised steps on traces, by TRL's SFTTrainer, until a gate on pass@1 opens.

The gate is a number that a policy reaches, not a step: after the same number of steps one seed is at 0.03 and
another at 0.5. The traces are encoded by the same chat code as the prompts of the rollouts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo.chat import Chat
from grpo.config import SftConfig
from grpo.data import to_dataset, trace_text
from grpo.distributed.world import World
from grpo.errors import ConfigError, DataError, GateError, Interrupted
from grpo.model import max_positions
from grpo.persona.supervised import steered_by_labels
from grpo.policy import Policy
from grpo.seeds import torch_seed
from grpo.steering import Steering
from grpo.types import Problem

IGNORED = -100  # transformers' label of a token that is not learned


@dataclass(frozen=True, slots=True)
class ColdStart:
    """How the cold start went: supervised steps, and each look at the gate as (step, pass@1)."""

    steps: int
    looks: tuple[tuple[int, float], ...]


def cold_start(
    policy: Policy,
    *,
    chat: Chat,
    traces: Sequence[Problem],
    config: SftConfig,
    pass_at_1: Callable[[], float],
    should_stop: Callable[[], bool],
    on_look: Callable[[int, float], None],
    on_step: Callable[[int], None],
    seed: int,
    folder: Path,
    world: World,
    steering: Steering | None = None,
) -> ColdStart:
    """Train `policy` in place on `traces` until `pass_at_1()` reaches the gate; every rank takes its part of a batch.

    With `steering` the supervised forwards are steered, and neither the looks at the gate nor what is left behind.

    Raises GateError when max_steps end below the gate, ConfigError when `sft.completion` names a field that a row has
    not or the ranks do not divide a batch, DataError for a trace that the model's context cannot hold, Interrupted when
    `should_stop` says so (a cold start begins again from its seed)."""
    per_rank, remainder = divmod(config.batch_size, world.size)
    if remainder:
        raise ConfigError(
            f"sft.batch_size = {config.batch_size}: must be a multiple of the {world.size} ranks, each of which takes "
            "as many traces; change it"
        )
    # Imported here: trl takes seconds, and only a cold start needs it.
    from trl import SFTTrainer

    # bfloat16 weights would not feel a small learning rate: they are trained in float32, with autocast.
    dtype, dtypes = policy.dtype, _dtypes(policy)
    policy.float()
    gate = _Gate(
        policy,
        config=config,
        pass_at_1=pass_at_1,
        should_stop=should_stop,
        on_look=on_look,
        on_step=on_step,
        progress=world.progress,
    )
    on_cpu = policy.device.type == "cpu"
    trainer = SFTTrainer(
        model=policy.model,  # type: ignore[arg-type]  # nn.Module to us: a PreTrainedModel or a PeftModel
        args=_arguments(
            config, per_rank=per_rank, bf16=dtype == torch.bfloat16, use_cpu=on_cpu, folder=folder, seed=seed
        ),
        train_dataset=_dataset(chat, traces, config.completion, context_tokens=max_positions(policy.model)),
        processing_class=chat.tokenizer,
        callbacks=[gate],
    )
    trainer.remove_callback(PrinterCallback)  # the console speaks, and knows what is worth saying
    world.progress("cold start")
    steered = nullcontext() if steering is None else steered_by_labels(policy, steering, ignored_label=IGNORED)
    with torch.random.fork_rng(devices=[]), steered:
        trainer.train()
    # Each its own: adapters and rotary frequencies are float32 beside bfloat16 weights.
    for name, tensor in _tensors(policy):
        tensor.data = tensor.data.to(dtypes[name])
    policy.eval()
    if gate.interrupted:
        raise Interrupted("stopped during the cold start, which begins again from its seed: add --resume")
    if config.gate_pass_at_1 is not None and not gate.opened:
        looked = ", ".join(f"{value:.3f} at step {step}" for step, value in gate.looks[-3:])
        raise GateError(
            f"sft.gate_pass_at_1 = {config.gate_pass_at_1} was not reached in sft.max_steps = {config.max_steps} "
            f"(pass@1 {looked}); raise max_steps, add traces, or lower the gate, and begin it again with --fresh"
        )
    return ColdStart(steps=int(trainer.state.global_step), looks=tuple(gate.looks))


def _arguments(config: SftConfig, *, per_rank: int, bf16: bool, use_cpu: bool, folder: Path, seed: int) -> Any:
    """TRL's own settings; it writes, logs and saves nothing."""
    from trl import SFTConfig as TrlConfig

    micro_batch = math.gcd(config.micro_batch_size or per_rank, per_rank)
    arguments = TrlConfig(
        output_dir=str(folder),
        max_steps=config.max_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=per_rank // micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_length=None,  # nothing is cut off a trace in silence; one that is too long is an error of `_dataset`
        gradient_checkpointing=False,
        bf16=bf16,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=0,
        use_cpu=use_cpu,
        ddp_find_unused_parameters=False,
        seed=torch_seed(seed, "sft") % 2**32,
    )
    # One process trains on one device: transformers would split a batch over every GPU that it sees.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _tensors(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    yield from policy.named_parameters()
    yield from policy.named_buffers()


def _dtypes(policy: Policy) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in _tensors(policy)}


class _Gate(TrainerCallback):
    """Looks at pass@1 every so many steps and stops the SFTTrainer when it is enough."""

    def __init__(
        self,
        policy: Policy,
        *,
        config: SftConfig,
        pass_at_1: Callable[[], float],
        should_stop: Callable[[], bool],
        on_look: Callable[[int, float], None],
        on_step: Callable[[int], None],
        progress: Callable[[str], None],
    ) -> None:
        self._policy, self._config, self._progress = policy, config, progress
        self._pass_at_1, self._should_stop, self._on_look = pass_at_1, should_stop, on_look
        self._on_step = on_step
        self.looks: list[tuple[int, float]] = []
        self.opened = False
        self.interrupted = False

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """transformers' hook after each micro-batch but the last of a step (the signature is theirs)."""
        self._progress("cold start")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """transformers' hook after each optimizer step (the signature is theirs)."""
        self._progress("cold start")
        self._on_step(state.global_step)
        self.interrupted = self._should_stop()
        due = state.global_step % self._config.gate_every_steps == 0 or state.global_step == self._config.max_steps
        if self._config.gate_pass_at_1 is not None and due and not self.interrupted:
            self._policy.eval()
            value = self._pass_at_1()
            self._policy.train()
            self.looks.append((state.global_step, value))
            self._on_look(state.global_step, value)
            self.opened = value >= self._config.gate_pass_at_1
        control.should_training_stop = control.should_training_stop or self.opened or self.interrupted
        return control


def _dataset(chat: Chat, traces: Sequence[Problem], template: str, *, context_tokens: int | None) -> Any:
    input_ids, labels = [], []
    for problem in traces:
        ids, learned = chat.trace_ids(problem, trace_text(problem, template))
        if context_tokens is not None and len(ids) > context_tokens:
            raise DataError(
                f"sft.traces: the trace of problem {problem.id} ({problem.prompt[:60]!r}...) has {len(ids)} tokens, "
                f"more than the model's context of {context_tokens}; shorten or drop the row"
            )
        input_ids.append(list(ids))
        labels.append([token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)])
    return to_dataset({"input_ids": input_ids, "labels": labels})
