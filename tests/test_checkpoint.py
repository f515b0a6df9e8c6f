"""A checkpoint is there as a whole or not at all, holds what training changes, and comes back bit for bit."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from grpo import checkpoint
from grpo.config import OptimConfig
from grpo.errors import CheckpointError, DiskError
from grpo.model import base_of
from grpo.optim import Optimizer
from grpo.policy import Policy
from tests.conftest import ARCHITECTURES, SIZES, tiny_policy

CPU = torch.device("cpu")


def save(path: Path, *, value: float) -> None:
    """A small checkpoint whose every part says `value`."""
    optimizer = {"moments": torch.full((3,), value)}
    checkpoint.save(path, weights={"w": torch.full((5,), value)}, optimizer=optimizer, state={"value": value})


def value_of(path: Path) -> float:
    """What every part of the checkpoint says."""
    weights, optimizer, state = checkpoint.load(path, device=CPU)
    assert optimizer is not None
    values = {float(weights["w"][0]), float(optimizer["moments"][0]), state["value"]}
    assert len(values) == 1
    return values.pop()


def updated(policy: Policy, optimizer: Optimizer, *, seed: int, times: int = 1) -> None:
    """`times` updates on gradients drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        update(policy, optimizer, generator=generator, rate=1e-3)


def update(policy: Policy, optimizer: Optimizer, *, generator: torch.Generator, rate: float) -> None:
    """One update on a gradient drawn from `generator`: that of a loss which is linear in every trained weight."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    slopes = [torch.randn(parameter.shape, generator=generator).to(parameter.dtype) for parameter in trained]
    optimizer.backward(sum((w * slope).sum() for w, slope in zip(trained, slopes, strict=True)))
    optimizer.update(rate=rate)


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# --- whole or not at all ----------------------------------------------------------------------------------------------


def killed_at_call(number: int, names: dict[str, object], work: Callable[[], None]) -> bool:
    """Do `work` in a child that kills itself at its `number`-th call of the named functions of `os`; True if it did."""
    child = os.fork()
    if child == 0:
        left = [number]

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        for name, original in names.items():
            setattr(os, name, counted(original))  # type: ignore[arg-type]
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_file_operation_leaves_the_one_before_or_the_whole_of_this_one(tmp_path):
    names = {name: getattr(os, name) for name in ("mkdir", "fsync", "rename", "open", "unlink", "rmdir")}
    save(tmp_path / "step_000002", value=2.0)
    kills, number = 0, 0
    found = set()
    while True:
        number += 1
        if not killed_at_call(number, names, lambda: save(tmp_path / "step_000004", value=4.0)):
            break
        kills += 1
        newest, faults = checkpoint.newest_whole(tmp_path)
        assert newest is not None
        assert faults == []
        found.add(value_of(newest))
        assert value_of(newest) == float(newest.name[-1])
        if newest.name == "step_000004":
            checkpoint.prune(tmp_path, last_step=2, keep_last=1, best=None)
    assert kills > 8
    assert found == {2.0, 4.0}
    assert value_of(tmp_path / "step_000004") == 4.0


def test_a_kill_while_one_is_replaced_leaves_it_or_the_other_whole(tmp_path):
    names = {name: getattr(os, name) for name in ("rename", "unlink", "rmdir")}
    save(tmp_path / "step_000002", value=2.0)
    number = 0
    while True:
        save(tmp_path / "step_000004", value=3.0)
        number += 1
        if not killed_at_call(number, names, lambda: save(tmp_path / "step_000004", value=4.0)):
            break
        checkpoint.recover(tmp_path)
        newest, faults = checkpoint.newest_whole(tmp_path)
        assert newest is not None
        assert faults == []
        assert value_of(newest) in (3.0, 4.0)
    assert number > 3


def test_a_failed_write_changes_nothing_and_leaves_no_temporary_folder(tmp_path, monkeypatch):
    save(tmp_path / "step_000004", value=4.0)

    def refuses(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(DiskError, match="step_000004: No space left on device"):
        save(tmp_path / "step_000004", value=5.0)
    assert value_of(tmp_path / "step_000004") == 4.0
    assert [path.name for path in tmp_path.iterdir()] == ["step_000004"]


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "append", "remove"])
def test_any_altered_file_is_named(tmp_path, name, damage):
    save(tmp_path / "step_000004", value=4.0)
    file = tmp_path / "step_000004" / name
    data = file.read_bytes()
    middle = len(data) // 2
    if damage == "remove":
        file.unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"flip": flipped, "cut": data[:middle], "append": data + b"\0"}[damage])
    with pytest.raises(CheckpointError, match=f"step_000004.*{name}"):
        checkpoint.load(tmp_path / "step_000004", device=CPU)


@pytest.mark.parametrize("text", ["", '{\n "optimizer.pt": "', "{}", "[]", "\xff"])
def test_a_torn_or_emptied_manifest_is_named(tmp_path, text):
    save(tmp_path / "step_000004", value=4.0)
    (tmp_path / "step_000004" / "manifest.json").write_text(text, encoding="latin-1")
    newest, faults = checkpoint.newest_whole(tmp_path)
    assert newest is None
    assert len(faults) == 1
    assert "manifest.json" in faults[0]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path, device=CPU)


# --- which are kept ---------------------------------------------------------------------------------------------------


def test_prune_keeps_the_last_ones_and_the_best(tmp_path):
    for name in ("step_000002", "step_000004", "step_000006", "best_000002", "best_000004", "cold_start"):
        save(tmp_path / name, value=1.0)
    (tmp_path / ".step_000008.tmp").mkdir()
    checkpoint.prune(tmp_path, last_step=6, keep_last=2, best=tmp_path / "best_000002")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step_000004", "step_000006", "best_000002", "cold_start"}


def test_a_torn_checkpoint_of_a_later_step_never_pushes_out_the_newest(tmp_path):
    for step in (4, 5, 8):
        save(checkpoint.step_path(tmp_path, step), value=step)
    (tmp_path / "step_000008" / "state.json").unlink()
    checkpoint.prune(tmp_path, last_step=5, keep_last=1, best=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (999_999, 1_000_000, 20):
        save(checkpoint.step_path(tmp_path, step), value=step)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [20, 999_999, 1_000_000]


# --- what is held -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_and_moments_come_back_bit_for_bit(tmp_path, name):
    trained = tiny_policy(name)
    optimizer = Optimizer(trained.model, OptimConfig())
    updated(trained, optimizer, seed=1, times=2)
    checkpoint.save(
        tmp_path / "step_000001",
        weights=checkpoint.weights_of(trained.model),
        optimizer=optimizer.state_dict(),
        state={},
    )
    restarted = tiny_policy(name, seed=9)
    again = Optimizer(restarted.model, OptimConfig())
    loaded, moments, _ = checkpoint.load(tmp_path / "step_000001", device=CPU)
    assert moments is not None
    checkpoint.load_weights(restarted.model, loaded)
    again.load_state_dict(moments)
    assert_equal(weights(restarted), weights(trained))
    updated(trained, optimizer, seed=2, times=2)
    updated(restarted, again, seed=2, times=2)
    assert_equal(weights(restarted), weights(trained))


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
def test_tied_weights_are_held_once_and_stay_tied(tmp_path, name):
    architecture = ARCHITECTURES[name] | SIZES | {"tie_word_embeddings": True}
    trained, restarted = (tiny_policy(name, seed=seed, architecture=architecture) for seed in (1, 2))
    held = checkpoint.weights_of(trained.model)
    assert sum("embed_tokens" in key or "lm_head" in key for key in held) == 1
    checkpoint.save(tmp_path / "step_000001", weights=held, optimizer=None, state={})
    checkpoint.load_weights(restarted.model, load_file(tmp_path / "step_000001" / "policy.safetensors"))
    assert_equal(weights(restarted), weights(trained))
    base = base_of(restarted.model)
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight


def test_a_lora_checkpoint_holds_the_adapters_alone(tmp_path):
    trained, restarted = (tiny_policy("qwen3", lora={"rank": 4}) for _ in range(2))
    updated(trained, Optimizer(trained.model, OptimConfig()), seed=1)
    held = checkpoint.weights_of(trained.model)
    assert held
    assert all("lora_" in name for name in held)
    assert not torch.equal(
        weights(trained)["model." + next(iter(held))], weights(restarted)["model." + next(iter(held))]
    )
    checkpoint.save(tmp_path / "step_000001", weights=held, optimizer=None, state={})
    checkpoint.load_weights(restarted.model, checkpoint.load(tmp_path / "step_000001", device=CPU)[0])
    assert_equal(weights(restarted), weights(trained))


def test_bfloat16_weights_come_back_with_the_float32_copies_that_train_them(tmp_path):
    trained = tiny_policy("llama", dtype="bfloat16")
    before = weights(trained)
    optimizer = Optimizer(trained.model, OptimConfig(learning_rate=1e-6))
    for seed in range(3):
        update(trained, optimizer, generator=torch.Generator().manual_seed(seed), rate=1e-6)
    checkpoint.save(
        tmp_path / "step_000003",
        weights=checkpoint.weights_of(trained.model),
        optimizer=optimizer.state_dict(),
        state={},
    )
    restarted = tiny_policy("llama", seed=5, dtype="bfloat16")
    again = Optimizer(restarted.model, OptimConfig(learning_rate=1e-6))
    loaded, moments, _ = checkpoint.load(tmp_path / "step_000003", device=CPU)
    assert moments is not None
    checkpoint.load_weights(restarted.model, loaded)
    again.load_state_dict(moments)
    assert_equal(weights(restarted), weights(trained))
    for seed in range(3, 3000, 10):
        update(trained, optimizer, generator=torch.Generator().manual_seed(seed), rate=1e-6)
        update(restarted, again, generator=torch.Generator().manual_seed(seed), rate=1e-6)
    assert_equal(weights(restarted), weights(trained))
    # Steps of 1e-6 that a bfloat16 weight cannot take add up in its float32 copy.
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights(trained).items())


def test_a_checkpoint_of_another_model_is_refused_by_the_weight_that_differs():
    held = checkpoint.weights_of(tiny_policy("qwen3").model)
    with pytest.raises(CheckpointError, match=r"of another model: .* differs \(\d+ in all\)"):
        checkpoint.load_weights(tiny_policy("llama").model, held)
    wider = tiny_policy("qwen3", architecture=ARCHITECTURES["qwen3"] | SIZES | {"intermediate_size": 72})
    with pytest.raises(CheckpointError, match="mlp"):
        checkpoint.load_weights(wider.model, held)


# --- written beside the loop ------------------------------------------------------------------------------------------


def test_a_writer_goes_on_at_once_and_has_written_everything_at_its_end():
    gate, done = threading.Event(), []
    with checkpoint.Writer() as writer:
        writer.write(lambda: done.append(gate.wait(10)))
        assert done == []  # the loop goes on while the job waits
        gate.set()
        writer.write(lambda: done.append("second"))
        assert done[0] is True  # one after another
    assert done == [True, "second"]


@pytest.mark.parametrize("ask", [checkpoint.Writer.wait, lambda writer: writer.write(lambda: None)])
def test_what_a_job_raises_is_raised_in_the_loop_once(ask):
    def fails() -> None:
        raise DiskError("full")

    with checkpoint.Writer() as writer:
        writer.write(fails)
        with pytest.raises(DiskError, match="full"):
            ask(writer)
        writer.check()


def test_an_error_of_the_loop_is_not_hidden_by_one_of_a_job():
    def fails() -> None:
        raise DiskError("full")

    def loop() -> None:
        with checkpoint.Writer() as writer:
            writer.write(fails)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def test_a_checkpoint_that_is_written_again_is_never_missing(tmp_path, monkeypatch):
    """Killed before the second one has its name, the first one is there under another: nothing is deleted before."""
    path = tmp_path / "step_000001"
    checkpoint.save(path, weights={"w": torch.zeros(1)}, optimizer=None, state={"first": True})
    whole = []
    original = Path.rename

    def noted(self: Path, target: Path) -> Path:
        found = original(self, target)
        whole.append([p.name for p in sorted(tmp_path.iterdir()) if checkpoint.is_whole(p)])
        return found

    monkeypatch.setattr(Path, "rename", noted)
    checkpoint.save(path, weights={"w": torch.ones(1)}, optimizer=None, state={"first": False})
    assert whole == [[".step_000001.old.tmp", ".step_000001.tmp"], [".step_000001.old.tmp", "step_000001"]]
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert checkpoint.load(path, device=CPU)[2] == {"first": False}
