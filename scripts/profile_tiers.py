"""`grpo profile` as a file, for launchers that start scripts.

Not named profile.py: that would hide the standard library's module of this name from every launch file."""

import sys

from grpo.cli import main

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))
