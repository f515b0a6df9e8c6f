"""Folders as runs leave them, made here in no time: plausible numbers, decisions, evaluations and hostile text."""

import json
import math
import random
from pathlib import Path

import yaml

from grpo.manifest import MANIFEST_FILE, write_manifest
from tests.tier_manifest import profiled

HOSTILE = (
    '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><!-- <script> ]]> '
    "{{ 7 * 7 }} & ' \" \u2028 \ud800 \u202e <a href='http://evil.example/'>x</a>"
)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metric_row(step: int, num_steps: int, rng: random.Random) -> dict:
    """One plausible line of metrics.jsonl: learning that flattens, a second stage that is harder."""
    done = step / num_steps
    second = step > num_steps * 0.6
    reward = 0.62 / (1 + math.exp(-6 * (done - 0.3))) - 0.12 * second + rng.gauss(0, 0.04)
    row = {
        "step": step,
        "reward/mean": max(reward, 0.0),
        "reward/std": 0.4 + rng.gauss(0, 0.02),
        "reward/format/mean": min(1.0, 0.7 + 0.4 * done),
        "reward/errors": int(rng.random() < 0.03),
        "reward/pass_rate": max(reward, 0.0),
        "group/zero_std_fraction": 0.3 + rng.gauss(0, 0.05),
        "group/solved_all": 0.1 + 0.2 * done,
        "group/solved_none": max(0.0, 0.2 - 0.15 * done),
        "group/dropped_fraction": 0.3 + rng.gauss(0, 0.05),
        "policy/entropy": 0.9 * math.exp(-2 * done) + 0.2 + rng.gauss(0, 0.02),
        "policy/clip_fraction_low": abs(rng.gauss(0.002, 0.001)),
        "policy/clip_fraction_high": abs(rng.gauss(0.004, 0.002)),
        "policy/sampler_kl": abs(rng.gauss(2e-7, 1e-7)),
        "policy/sampler_logprob_gap_max": abs(rng.gauss(4e-6, 1e-6)),
        "completion/length_mean": 180 + 240 * done + rng.gauss(0, 12),
        "completion/length_max": 1024 if rng.random() < 0.3 else rng.randint(700, 1000),
        "completion/truncated_fraction": abs(rng.gauss(0.03, 0.01)),
        "sampling/temperature": 1.0 if done < 0.4 else 1.2,
        "sampling/tokens": 100_000,
        "curriculum/stage": int(second),
        "optim/lr": 1e-5 * min(1.0, step / 10),
        "optim/grad_norm": abs(rng.gauss(0.4, 0.1)) + (5.0 if step == 57 else 0.0),
        "optim/skipped_updates": 0,
        "time/sampling": 20 + rng.gauss(0, 1),
        "time/reward": 0.6 + rng.gauss(0, 0.05),
        "time/train": 12 + rng.gauss(0, 1),
        "time/sync": 0.4,
        "time/step": 33 + rng.gauss(0, 1.5),
        "throughput/sampled_tokens_per_second": 5000.0,
        "throughput/trained_tokens_per_second": 8000 + rng.gauss(0, 200),
    }
    shares = {"trivial": 0.12 + 0.3 * done, "moderate": 0.48 - 0.1 * done, "extreme": 0.28 - 0.12 * done}
    row |= {f"curriculum/tier_{tier}": round(1000 * share) for tier, share in shares.items()}
    row["curriculum/tier_unsolved"] = 1000 - sum(row[f"curriculum/tier_{tier}"] for tier in shares)
    if step % 20 == 0:
        row |= {"eval/heldout/pass@1": 0.27 + 0.33 * done, "eval/heldout/avg@8": 0.26 + 0.33 * done}
    return row


def rollout_row(step: int, index: int, rng: random.Random) -> dict:
    correct = rng.random() < 0.5
    first, second = rng.randint(2, 99), rng.randint(2, 99)
    status = rng.choices(["scored", "timeout", "error", "abstained"], [94, 3, 2, 1])[0]
    answer = first * second
    found = answer if correct else answer + rng.randint(1, 9)
    return {
        "step": step,
        "problem_id": f"{index // 8 * 7919 % 65536:04x}-{step:04d}",
        "attempt": index % 8,
        "stage": int(step > 72),
        "tier": rng.choice(["trivial", "moderate", "extreme", "unsolved"]),
        "prompt": f"A crate holds {first} boxes of {second} apples. How many apples are there in all?",
        "completion": f"Each box holds {second} apples and there are {first} boxes.\n{first} × {second} = {found}\n"
        f"The answer is \\boxed{{{found}}}.",
        "answer": str(answer),
        "reward": float(correct) if status == "scored" else None,
        "status": status,
        "parts": {"correct": float(correct), "format": 1.0},
        "detail": "" if status == "scored" else f"{status} after 2.0 s",
        "advantage": rng.gauss(0, 1),
        "stop_reason": "eos",
        "temperature": 1.0,
        "num_tokens": rng.randint(40, 400),
        "token_ids": [1, 2, 3],
        "logprobs": [-0.1, -2.0, -0.3],
    }


def temperature_event(step: int, rng: random.Random) -> dict:
    candidates = [
        {
            "temperature": temperature,
            "mean": 0.52 - drop,
            "difference": -drop,
            "standard_error": 0.004 + rng.random() / 500,
            "admissible": drop < 0.01,
        }
        for temperature, drop in ((1.0, 0.0), (1.1, 0.002), (1.2, 0.006), (1.3, 0.031))
    ]
    reason = "reward flat over 20 steps; the hottest within 1 % of the best"
    return {
        "step": step,
        "event": "temperature",
        "decision": {"readings": candidates, "chosen": 1.2, "current": 1.0, "reason": reason},
    }


def evaluation(name: str, step: int, value: float, *, gained: float | None = None) -> dict:
    def metric(centre: float) -> dict:
        return {"value": centre, "low": centre - 0.04, "high": centre + 0.04}

    by_group = {str(n): {"metrics": {"pass@1": metric(value + 0.3 - 0.1 * n)}, "num_problems": 80} for n in range(2, 6)}
    by_tier = {"moderate": {"pass@1": metric(value + 0.1), "num_problems": 200}}
    heldout = {
        "num_problems": 256,
        "num_rollouts": 8,
        "metrics": {"pass@1": metric(value), "pass@8": metric(value + 0.25), "avg@8": metric(value)},
        "by_group": by_group,
        "by_tier": by_tier,
        "lost": {"error": 2, "timeout": 1, "abstained": 0},
    }
    if gained is not None:
        of_parts = {"by_tier": {"moderate": {"metrics": {"pass@1": metric(gained)}, "num_problems": 200}}}
        counts = {"wins": 90, "losses": 31, "ties": 135}
        heldout["against"] = {"name": "start", "metrics": {"pass@1": metric(gained)}, **counts, **of_parts}
    return {"name": name, "step": step, "temperature": 1.0, "sets": {"heldout": heldout}}


def make_run(folder: Path, *, seed: int, num_steps: int = 120, rollouts_per_file: int = 64) -> Path:
    """A run's folder as the recipe leaves it: learning, two stages, decisions, evaluations and some hostile text."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    config = {
        "run": {"name": "two-stage maths", "seed": 7},
        "model": {"path": "Qwen/Qwen3-0.6B", "dtype": "bfloat16"},
        "rollout": {"group_size": 8, "problems_per_step": 32, "stop": ["</answer>"], "sampler": {"top_p": 1.0}},
        "train": {"steps": num_steps},
        "optim": {"lr": 1e-5, "warmup_steps": 10, "betas": [0.9, 0.99]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_jsonl(folder / "metrics.jsonl", [metric_row(step, num_steps, rng) for step in range(1, num_steps + 1)])
    events = [
        {"step": 0, "event": "gate", "pass@1": 0.271, "sft_steps": 180},
        {"step": 1, "event": "stage", "stage": 0, "name": "moderate"},
        temperature_event(24, rng),
        temperature_event(48, rng),
        {"step": 72, "event": "stage", "stage": 1, "name": "extreme", "reason": "plateau"},
        {"step": 100, "event": "best", "metric": "eval/heldout/pass@1", "value": 0.604},
        {"step": 110, "event": "checkpoint", "path": "checkpoints/step_000110"},
    ]
    write_jsonl(folder / "events.jsonl", events)
    for step in range(10, num_steps + 1, 10):
        rows = [rollout_row(step, index, rng) for index in range(rollouts_per_file)]
        rows[0] |= {"completion": HOSTILE, "prompt": HOSTILE, "detail": HOSTILE, "problem_id": HOSTILE, "tier": HOSTILE}
        write_jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", rows)
    (folder / "profile").mkdir()
    write_manifest(
        folder / "profile" / MANIFEST_FILE, profiled({"trivial": 120, "moderate": 480, "extreme": 281, "unsolved": 119})
    )
    (folder / "vocabulary.json").write_text(json.dumps(["<pad>", "Each", " box", " holds", HOSTILE]))
    (folder / "evals").mkdir()
    (folder / "evals" / "start.json").write_text(json.dumps(evaluation("start", 0, 0.271)))
    (folder / "evals" / "last.json").write_text(json.dumps(evaluation("last", num_steps, 0.593, gained=0.322)))
    phases = ("sft", "profile", "train", "eval")
    (folder / "phases.json").write_text(json.dumps(dict.fromkeys(phases, True)))
    return folder
