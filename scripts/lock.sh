#!/bin/sh
# Resolve the locked packages anew: requirements.lock (to run) and requirements-dev.lock (to develop).
# Arguments go to pip-compile, for example --upgrade or --upgrade-package NAME. The lock files hold
# names, versions and hashes only: no address, so they serve with any index or mirror.
set -eu
cd "$(dirname "$0")/.."

compile() {
    output=$1
    shift
    .venv/bin/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
        --no-emit-trusted-host --no-header --strip-extras --allow-unsafe \
        --build-deps-for editable --output-file "$output" "$@" pyproject.toml
    if grep -nE '://|^-|@ ' "$output"; then
        echo "lock.sh: $output holds an address or an option" >&2
        exit 1
    fi
}

compile requirements.lock "$@"
compile requirements-dev.lock --extra dev --constraint requirements.lock "$@"
