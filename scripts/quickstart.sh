#!/usr/bin/env bash
# From a fresh clone to a trained policy and a report: environment, the whole recipe on CPU, a table.
#   bash scripts/quickstart.sh            go on with the run where it is, or begin it
#   bash scripts/quickstart.sh --fresh    begin it again
set -euo pipefail
cd "$(dirname "$0")/.."
start=--resume
case "${1:-}" in
    "") ;;
    --fresh) start=--fresh ;;
    *) echo "usage: bash scripts/quickstart.sh [--fresh]" >&2; exit 2 ;;
esac
source scripts/environment.sh
make_environment .venv ""
exec .venv/bin/grpo recipe configs/quickstart.yaml "$start"
