# The project's Python environment: .venv, with exactly the packages that the lock files name.
# shellcheck shell=sh disable=SC2154

python=/usr/bin/python3

# What the environment was made from; another value means that it must be brought up to date.
python_stamp() {
    {
        echo "$1 $here"
        "$python" -V
        cat "$here/pyproject.toml" "$here/requirements.lock"
        [ "$1" = runtime ] || cat "$here/requirements-dev.lock"
    } | sha256sum | cut -d ' ' -f 1
}

python_ready() { [ "$(cat "$venv/stamp-$1" 2>/dev/null)" = "$(python_stamp "$1")" ]; }

fill_venv() {
    lock=$here/requirements.lock
    [ "$1" = runtime ] || lock=$here/requirements-dev.lock
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes --no-deps \
        --only-binary :all: -r "$lock" &&
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps \
            --no-build-isolation --no-index -e "$here"
}

make_python() {
    python_ready "$1" && return 0
    # An install that was cut off may have left half a package that looks whole.
    if [ -e "$venv/unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv"
        logged "Making the Python environment" "$python" -m venv "$venv" || fail "python3 -m venv failed"
    fi
    : >"$venv/unfinished"
    logged "Installing the locked Python packages" fill_venv "$1" || fail "pip failed"
    python_stamp "$1" >"$venv/stamp-$1"
    rm "$venv/unfinished"
}

# set_up_python runtime|dev. dev holds all of runtime, from the same versions.
set_up_python() {
    python_ready "$1" && return 0
    [ "$1" = dev ] || ! python_ready dev || return 0
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        { [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &&
            set_up_packages runtime; } ||
        fail "$python 3.11 or later is needed: Debian 12, Ubuntu 24.04 or newer"
    mkdir -p "$work"
    # One at a time; the lock's descriptor closes with the subshell, so no daemon inherits it.
    (
        flock 9
        make_python "$1"
    ) 9>"$work/python.lock"
}
