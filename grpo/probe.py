"""`grpo check --probe`: the train.tokens_per_micro_batch that fits, found by training with it.

Each size is tried by a process of its own, so that running out of memory ends that one alone. It makes the run's model
and optimizer, makes an update so that the moments are there, and takes two micro-batches of the longest rollouts: the
second is computed beside the gradients of the first, as in a run. One process holds everything whole: it is ddp that
is probed, beside which ZeRO on several ranks has more room."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpo.batch import MicroBatch, TrainedRollout, micro_batches
from grpo.check import GIB, longest_tokens
from grpo.config import RunConfig, dump, load
from grpo.errors import ConfigError, OutOfMemoryError, RunError, says_out_of_memory
from grpo.model import load_model, load_tokenizer, max_positions, skeleton
from grpo.optim import Optimizer
from grpo.policy import Policy, Wanted
from grpo.recipe import stages_of
from grpo.types import Rollout, StopReason

POLL_SECONDS = 0.01
MEMORY_FILE = Path("/proc/meminfo")
KILLED = -9


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one size."""

    tokens: int
    peak_bytes: int | None  # None: it ran out of memory, or of the bound
    bound_bytes: int


def probe(config: RunConfig, *, memory_gib: float | None) -> Iterator[str]:
    """A line for each size as it is known, then one for the largest that fits.

    The bound is `memory_gib`, or the memory of the GPU, or what the machine has left. A process's memory counts whole
    on the CPU, Python and torch included. Raises OutOfMemoryError where not even one rollout fits, and what a run
    would raise for its model."""
    tokenizer = load_tokenizer(config.model)
    longest = longest_tokens(config, max_positions(skeleton(config.model, tokenizer=tokenizer)))
    most_rows = max(stage.problems_per_step * stage.group_size for stage in stages_of(config))
    bound = None if memory_gib is None else int(memory_gib * GIB)
    if bound is None and device_of(config).type == "cpu":
        bound = _available_bytes()
    fitting: Probe | None = None
    rows = 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump(config), encoding="utf-8")
        while True:
            found = _tried(config, file, tokens=rows * longest, longest=longest, bound=bound)
            size = f"train.tokens_per_micro_batch = {found.tokens:,} (rollouts: {rows} of {longest} tokens)"
            if found.peak_bytes is None:
                yield f"{size}: more than {found.bound_bytes / GIB:.3f} GiB"
                break
            yield f"{size}: {found.peak_bytes / GIB:.3f} of {found.bound_bytes / GIB:.3f} GiB at the peak"
            fitting = found
            if rows == most_rows:
                break
            rows = min(2 * rows, most_rows)
    if fitting is None:
        raise OutOfMemoryError(
            f"not even one rollout of {longest} tokens fits into {found.bound_bytes / GIB:.3f} GiB; set "
            "model.activation_checkpointing=true, lower sampling.max_completion_tokens, take a smaller model or "
            "model.lora, or shard with distributed.strategy zero2 or zero3"
        )
    own = config.train.tokens_per_micro_batch
    verdict = "fits" if own <= fitting.tokens else "is never filled" if found is fitting else "was not seen to fit"
    yield f"largest that fits: train.tokens_per_micro_batch={fitting.tokens} (the config's {own:,} {verdict})"


def _tried(config: RunConfig, file: Path, *, tokens: int, longest: int, bound: int | None) -> Probe:
    """One size in a process of its own, which is ended where it takes more than `bound` of the host's memory."""
    on_cpu = device_of(config).type == "cpu"
    command = [sys.executable, "-m", "grpo.probe", str(file), str(tokens), str(longest), str(bound or 0)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(command, stdout=said, stderr=complained)
        try:
            while process.poll() is None:
                if on_cpu and bound is not None and _resident_bytes(process.pid) > bound:
                    process.kill()
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        complained.seek(0)
        printed, errors = said.read(), complained.read()
    if process.returncode == KILLED and bound is not None:  # by us, or by the machine for want of memory
        return Probe(tokens=tokens, peak_bytes=None, bound_bytes=bound)
    if process.returncode:
        kind = ConfigError if process.returncode == ConfigError.exit_code else RunError
        raise kind(f"the probe of {tokens} tokens ended with code {process.returncode}: {errors.strip()[-2000:]}")
    found = json.loads(printed.splitlines()[-1])
    bound_bytes = found["bound"] if bound is None else bound
    fits = found["peak"] is not None and found["peak"] <= bound_bytes
    return Probe(tokens=tokens, peak_bytes=found["peak"] if fits else None, bound_bytes=bound_bytes)


def measured(config: RunConfig, *, tokens: int, longest: int, device: torch.device) -> int:
    """Peak bytes of this process, on `device`, for two micro-batches of `tokens`. Leaves model and optimizer behind."""
    tokenizer = load_tokenizer(config.model)
    policy = Policy(load_model(config.model, tokenizer=tokenizer, seed=config.run.seed, device=device))
    optimizer = Optimizer(policy.model, config.optim)
    optimizer.backward(loss_of(policy, batch_of(policy, config, rows=1, num_tokens=min(longest, 8))))
    optimizer.update(rate=config.optim.learning_rate)
    batch = batch_of(policy, config, rows=max(1, tokens // longest), num_tokens=longest)
    for _ in range(2):
        optimizer.backward(loss_of(policy, batch))
    optimizer.update(rate=config.optim.learning_rate)
    return _peak_bytes(device)


def loss_of(policy: Policy, batch: MicroBatch) -> Tensor:
    """A loss that takes what the run's own takes."""
    loss: Tensor
    loss, *_ = policy(batch, Wanted(loss_of=lambda logprobs, part: (logprobs * batch.weights[part]).sum()))
    return loss


def batch_of(policy: Policy, config: RunConfig, *, rows: int, num_tokens: int) -> MicroBatch:
    """Rollouts whose prompt is one token: nothing takes more than a token that the policy chose."""
    token_ids = tuple(number % policy.vocabulary for number in range(num_tokens))
    rollout = Rollout(
        problem_id="probe",
        attempt=0,
        token_ids=token_ids,
        action_mask=(False,) + (True,) * (num_tokens - 1),
        logprobs=(0.0,) * num_tokens,
        kept=None,
        stop_reason=StopReason.LIMIT,
        temperature=1.0,
        policy_step=0,
    )
    trained = TrainedRollout(rollout=rollout, advantage=1.0, group_tokens=rows * (num_tokens - 1), group_rollouts=rows)
    (batch,) = micro_batches(
        [[trained] * rows],
        tokens_per_micro_batch=rows * num_tokens,
        limit_tokens=config.sampling.max_completion_tokens,
        aggregation=config.loss.aggregation,
        device=policy.device,
        shares_prompts=policy.packs,
    )
    return batch


def device_of(config: RunConfig) -> torch.device:
    """The device that a run of one process takes."""
    return torch.device("cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu")


def _available_bytes() -> int:
    if not MEMORY_FILE.is_file():
        raise ConfigError(f"--probe: there is no {MEMORY_FILE} that tells how much memory is left; set --memory-gib")
    fields = dict(line.split(":") for line in MEMORY_FILE.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _resident_bytes(pid: int) -> int:
    """Of a process that may have ended meanwhile."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def main(arguments: list[str]) -> int:
    """The process of one size: its peak and the device's memory as JSON on standard output."""
    file, tokens, longest, bound = Path(arguments[0]), *map(int, arguments[1:])
    config = load(file)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    device, total = device_of(config), 0
    if device.type == "cuda":
        total = torch.cuda.mem_get_info()[1]
        if bound:
            torch.cuda.set_per_process_memory_fraction(min(1.0, bound / total))
    peak: int | None = None
    try:
        peak = measured(config, tokens=tokens, longest=longest, device=device)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or says_out_of_memory(error)):
            raise
    print(json.dumps({"peak": peak, "bound": total}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
