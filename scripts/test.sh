#!/usr/bin/env bash
# Lint, types and tests, in an environment that this script makes.
#   bash scripts/test.sh             everything
#   bash scripts/test.sh --quick     all but the tests marked slow: what one runs while developing
#   bash scripts/test.sh --oldest    the quick tests on the oldest supported releases (tests/oldest.txt)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
case "${1:-}" in
    "" | --quick) environment=.venv constraints="" ;;
    --oldest) environment=.venv-oldest constraints=tests/oldest.txt ;;
    *) echo "usage: bash scripts/test.sh [--quick | --oldest]" >&2; exit 2 ;;
esac
make_environment "$environment" test "$constraints"
need_bubblewrap
need_chromium
bin=$environment/bin
export WANDB_MODE=offline HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -z "$constraints" ]; then
    "$bin/ruff" check .
    "$bin/ruff" format --check .
    "$bin/mypy"
    # By itself: its modules have the names of another comparison's.
    "$bin/mypy" scripts/compare_personas
fi
# Two processes, a file at a time each: every test sets its own number of torch threads.
pytest=("$bin/python" -m pytest --numprocesses 2 --dist loadfile)
if [ -z "${1:-}" ]; then
    exec "${pytest[@]}"
fi
exec "${pytest[@]}" -m "not slow"
