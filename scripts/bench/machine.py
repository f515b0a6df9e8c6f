"""What the machine can do at most, measured beside the sides and in turns with them: matrix products and copies."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from cases import Case
from turns import Pipe

LARGE = 1024  # rows and columns of the largest product
TOKENS = 2048  # rows of a product of the model's size
COPIED_BYTES = 2**28  # beyond any cache
NUM_TRIES = 5  # of which the best counts


@dataclass(frozen=True, slots=True)
class Limits:
    """The best of a few tries each. A flop is one multiplication or one addition; a copied byte is read and written."""

    float32_flops_per_second: float
    bfloat16_flops_per_second: float
    float32_model_flops_per_second: float  # of a product of the model's size
    copied_bytes_per_second: float


def measured(case: Case) -> Limits:
    """The limits at this moment, with as many threads as torch is set to."""
    shape, device = case.shape, torch.device(case.device)
    large = (LARGE, LARGE, LARGE) if case.device == "cpu" else (8 * LARGE, 8 * LARGE, 8 * LARGE)
    return Limits(
        float32_flops_per_second=_flops_per_second(*large, dtype=torch.float32, device=device),
        bfloat16_flops_per_second=_flops_per_second(*large, dtype=torch.bfloat16, device=device),
        float32_model_flops_per_second=_flops_per_second(
            TOKENS, shape.hidden_size, shape.intermediate_size, dtype=torch.float32, device=device
        ),
        copied_bytes_per_second=_copied_bytes_per_second(device),
    )


def report(case: Case, pipe: Pipe) -> None:
    """Measure at each turn."""
    measured(case)
    pipe.send({"ready": True})
    while True:
        pipe.wait()
        pipe.send(asdict(measured(case)))


def _flops_per_second(rows: int, inner: int, columns: int, *, dtype: torch.dtype, device: torch.device) -> float:
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / _best_seconds(lambda: torch.mm(left, right, out=out), device)


def _copied_bytes_per_second(device: torch.device) -> float:
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    # One thread's CPU time leaves out what other programs took of the core meanwhile.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    found = []
    for _ in range(NUM_TRIES):
        _wait_for(device)
        began = clock()
        work()
        _wait_for(device)
        found.append(clock() - began)
    return min(found)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
