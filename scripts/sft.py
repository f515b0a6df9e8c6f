"""`grpo sft` as a file, for launchers that start scripts."""

import sys

from grpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
