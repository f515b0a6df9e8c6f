"""How often the rewards are right, on public data beside an anchor's own verdicts, as a Markdown table.

    python scripts/reward_accuracy                # every table
    python scripts/reward_accuracy maths calls    # some of them

Programs and calls need the public rows (MBPP, HumanEval, BFCL) in shared/data beside the repository, or where
GRPO_SHARED_DATA says; programs also need bubblewrap. docs/rewards.md says which cases these are."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

# The rewards of this checkout, where the project is not installed; this folder itself is in the path already.
sys.path.append(str(Path(__file__).resolve().parents[2]))

TABLES = ("maths", "instructions", "calls", "programs")


def main(arguments: Sequence[str]) -> int:
    """Print a line for each set of cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[[], *TABLES], help="which; all where none is named")
    print("| cases | number | right | anchor | right |\n|---|---|---|---|---|")
    for name in parser.parse_args(arguments).tables or TABLES:
        try:
            scores = importlib.import_module(name).measure()
        except OSError as error:
            parser.exit(2, f"reward_accuracy: {name}: {error}; the rows are looked for in GRPO_SHARED_DATA\n")
        for score in scores:
            anchor_right = "" if score.anchor_right is None else _share(score.anchor_right, score.cases)
            right = _share(score.right, score.cases)
            print(f"| {score.name} | {score.cases:,} | {right} | {score.anchor} | {anchor_right} |", flush=True)
    return 0


def _share(right: int, cases: int) -> str:
    return f"{100 * right / cases:.1f} % ({right:,})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
