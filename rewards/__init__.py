"""Verifiable rewards: judge a completion of a problem. Knows no tensor and no model; useful with any trainer.

from rewards import Pool, RewardSpec

spec = RewardSpec("list_machine")                       # a built-in, or your own:
mine = RewardSpec(file="my_reward.py", function="brief", options={"limit": 200})
with Pool(workers=4, timeout_seconds=2.0) as pool:      # processes that can be killed
    reward = pool.submit(spec, "l34311r11343", {"prompt": ">lr?>13431"}).result()
    reward.value, reward.status, reward.parts, reward.detail
    pool.score_all([(mine, "a completion", {"answer": "5"})])  # in order; a crash is an error, never a zero
"""

from rewards.build import REWARD_NAMES, build, build_spec, files_of, longest_seconds
from rewards.length import soft_overlong_penalty
from rewards.pool import Pool
from rewards.score import BrokenLine, read_jsonl_rows, score_rows
from rewards.spec import RewardSpec
from rewards.trl_functions import as_trl, from_trl
from rewards.types import Reward, Status, Verifier
from rewards.user import load_function

__all__ = [
    "REWARD_NAMES",
    "BrokenLine",
    "Pool",
    "Reward",
    "RewardSpec",
    "Status",
    "Verifier",
    "as_trl",
    "build",
    "build_spec",
    "files_of",
    "from_trl",
    "load_function",
    "longest_seconds",
    "read_jsonl_rows",
    "score_rows",
    "soft_overlong_penalty",
]
