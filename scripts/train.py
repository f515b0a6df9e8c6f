"""`grpo train` as a file, for launchers that start scripts."""

import sys

from grpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
