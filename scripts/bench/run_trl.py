"""TRL's side: its GRPOTrainer without vLLM, so that transformers' generate samples, with a clock around its parts.

It is given what suits it on the machine: no gradient checkpointing and no autocast (both are on by default), no log, no
checkpoint, and the rows of a forward and backward pass that the case says were fastest."""

import json
import zlib
from pathlib import Path
from typing import Any

from cases import LEARNING_RATE, Case, policy_path, rows_path
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns, watch


def judge(completions: list[str], **columns: Any) -> list[float | None]:
    """As the other side's."""
    return [zlib.crc32(completion.encode()) / 2**32 for completion in completions]


def arguments_of(case: Case, *, folder: Path, num_steps: int) -> GRPOConfig:
    """One update a step on all of its rollouts, and the loss of this package's defaults: DAPO's, no KL, no scaling."""
    num_micro_batches = case.num_rollouts // case.trl_rows
    assert case.trl_rows * num_micro_batches == case.num_rollouts
    is_cpu = case.device == "cpu"
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=case.trl_rows,
        gradient_accumulation_steps=num_micro_batches,
        steps_per_generation=num_micro_batches,
        num_generations=case.group_size,
        max_completion_length=case.limit_tokens,
        temperature=1.0,
        top_k=0,
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="none",
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.98,
        max_grad_norm=1.0,
        max_steps=num_steps,
        bf16=not is_cpu,
        use_cpu=is_cpu,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": case.shape.dtype},
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class Metronome(TrainerCallback):
    """Hears the beginning and the end of each step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self._turns.begin()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self._turns.end_phase()  # training
        self._turns.step_done()


def run(case: Case, turns: Turns, *, folder: Path, threads: int, num_steps: int) -> None:
    """Train for so many steps, in turns."""
    adapters = None
    if case.lora_rank is not None:
        from peft import LoraConfig

        adapters = LoraConfig(r=case.lora_rank, lora_alpha=2 * case.lora_rank, target_modules="all-linear")
    lines = rows_path(case, folder=folder).read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": json.loads(line)["prompt"]} for line in lines]
    trainer = GRPOTrainer(
        model=str(policy_path(case, folder=folder)),
        reward_funcs=judge,
        args=arguments_of(case, folder=folder, num_steps=num_steps),
        train_dataset=Dataset.from_list(rows),
        callbacks=[Metronome(turns)],
        peft_config=adapters,
    )

    def note_lengths(generated: tuple[Any, ...]) -> None:
        prompt_ids, completion_ids = generated[:2]
        size = case.group_size
        turns.step.prompt_lengths = [len(ids) for ids in prompt_ids[::size]]
        lengths = [len(ids) for ids in completion_ids]
        turns.step.lengths = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        turns.step.trained_tokens = sum(lengths)

    watch(trainer, "_generate", during=lambda: turns.phase("sampling"), then=note_lengths)
    # Once a step, before its first forward and backward pass: from there to the step's end all is training.
    watch(trainer, "_generate_and_score_completions", then=lambda scored: turns.begin_phase("training"))
    trainer.train()
