# Messages of ./run: short lines to stderr, the detail into a log file.
# shellcheck shell=sh

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "run: $*"
    exit 1
}

# logged TEXT COMMAND...: show TEXT while COMMAND writes to the log; its last lines on failure.
logged() {
    text=$1
    shift
    mkdir -p "$work"
    printf '%s ... ' "$text" >&2
    printf '\n== %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"$log"
    began=$(date +%s)
    length=$(wc -l <"$log")
    if "$@" >>"$log" 2>&1 </dev/null; then
        say "$(($(date +%s) - began)) s"
        return 0
    fi
    say "failed; the end of $log:"
    tail -n "+$((length + 1))" "$log" | tail -n 15 >&2
    return 1
}
