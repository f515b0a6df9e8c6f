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
    need_package bwrap bubblewrap "so the sandbox is not tested"
}

# The browser that the report and the dashboard are tested in; those tests are skipped where it is missing.
need_chromium() {
    need_package chromium chromium "so the report and the dashboard are not tested in a browser"
}

# need_package COMMAND PACKAGE CONSEQUENCE: install Debian's package where that can be done, or say what it costs.
need_package() {
    command -v "$1" >/dev/null && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2"; } >/dev/null 2>&1 && return 0
    fi
    echo "$2 is missing, $3; on Debian: apt-get install $2" >&2
}
