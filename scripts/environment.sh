# Sourced by the other scripts: make_environment FOLDER EXTRAS [CONSTRAINTS] makes a virtual environment that holds the
# project, or leaves the one that is there alone when nothing it depends on has changed.

make_environment() {
    local folder=$1 extras=$2 constraints=${3:-} python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "$python is not Python 3.11 or later; install one, or name it: PYTHON=python3.12 bash $0" >&2
        return 2
    }
    local stamp
    stamp=$(cat pyproject.toml $constraints | sha256sum)
    [ "$(cat "$folder/.stamp-$extras" 2>/dev/null)" = "$stamp" ] && return 0
    # A torch that the interpreter already has stays the user's own: the environment sees it and installs no other.
    local site=""
    "$python" -c 'import torch' 2>/dev/null && site="--system-site-packages"
    echo "installing into $folder (once; a few minutes)" >&2
    "$python" -m venv $site "$folder" || {
        echo "could not make a virtual environment; on Debian: apt-get install python3-venv" >&2
        return 2
    }
    local pip="$folder/bin/pip install --quiet --disable-pip-version-check"
    if ! "$folder/bin/python" -c 'import torch' 2>/dev/null; then
        # One release that is known to work, and first, so that no other requirement chooses another. Whether its CPU
        # build or the one with CUDA comes is for pip's own settings to say (PIP_FIND_LINKS and its kin).
        $pip torch==2.13.0 || return 2
    fi
    $pip ${constraints:+-c "$constraints"} -e ".${extras:+[$extras]}" || return 2
    # What is there without extras is there with them too.
    echo "$stamp" | tee "$folder/.stamp-$extras" >"$folder/.stamp-"
}

# The sandbox of the reward code_tests; its tests are skipped where it is missing.
need_bubblewrap() {
    command -v bwrap >/dev/null && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap; } >/dev/null 2>&1 && return 0
    fi
    echo "bubblewrap is missing, so the sandbox is not tested; on Debian: apt-get install bubblewrap" >&2
}
