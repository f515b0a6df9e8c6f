"""One side of a case in a process of its own, which `play` started."""

import importlib
from pathlib import Path

import torch
from cases import CASES
from turns import Pipe, Turns


def work(side: str, name: str, *, folder: Path, threads: int, warmup_steps: int, turns: int, steps: int) -> None:
    """Do `warmup_steps`, then `steps` at each of `turns` turns."""
    pipe, case = Pipe(), CASES[name]
    torch.set_num_threads(threads)
    if side == "machine":
        importlib.import_module("machine").report(case, pipe)
        return
    clock = Turns(pipe, case, warmup_steps=warmup_steps, steps_per_turn=steps)
    run = importlib.import_module(f"run_{side}").run
    run(case, clock, folder=folder, threads=threads, num_steps=warmup_steps + turns * steps)
