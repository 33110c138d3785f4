# What keeps the project right: tests, lint, benchmarks, build.
# shellcheck shell=sh disable=SC2154

# All files of tests side by side, a worker for each CPU; paths that are named one after another.
run_tests() {
    cd "$here" || exit 1
    # Hundreds of processes of ours start: none of them should compile our source again.
    unset PYTHONDONTWRITEBYTECODE
    export PYTHONPYCACHEPREFIX="$work/pycache"
    chosen='not slow'
    if [ "${1:-}" = --all ]; then
        shift
        chosen=
    fi
    workers=auto
    for argument in "$@"; do
        [ ! -e "${argument%%::*}" ] || workers=0
    done
    exec "$venv/bin/python" -m pytest -m "$chosen" -n "$workers" --maxprocesses 4 "$@"
}

check() {
    say "-- $*"
    "$@" || failed="$failed
  $*"
}

run_lint() {
    cd "$here" || exit 1
    failed=
    check "$venv/bin/ruff" check .
    check "$venv/bin/ruff" format --check .
    check "$venv/bin/mypy"
    check "$venv/bin/lint-imports"
    for script in run scripts/*.sh; do check sh -n "$script"; done
    [ -z "$failed" ] || fail "these found something:$failed"
    say "Lint found nothing."
}

run_bench() {
    cd "$here" || exit 1
    name=${1:-}
    if [ -n "$name" ] && [ -f "bench/$name.py" ]; then
        shift
        choose_folders
        exec "$venv/bin/python" -m "bench.$name" "$@"
    fi
    [ -z "$name" ] || say "There is no benchmark '$name'. There are:"
    for file in bench/[!_]*.py; do
        [ -f "$file" ] || continue
        printf '  %-12s %s\n' "$(basename "$file" .py)" "$(sed -n '1s/^"""//p' "$file" | sed 's/"""$//')"
    done
    [ -z "$name" ]
}

run_build() {
    cd "$here" || exit 1
    rm -rf build dist
    logged "Building the wheel and the source archive" "$venv/bin/python" -m build --no-isolation || exit 1
    "$venv/bin/python" scripts/check_wheel.py dist/*.whl
    ls -l dist >&2
}
