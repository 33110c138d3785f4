# The daemon of this checkout: where it keeps its state, how it starts in the background and stops.
# shellcheck shell=sh disable=SC2154

# One choice for the daemon and for every client that ./run starts.
choose_folders() {
    if [ "$(id -u)" -eq 0 ]; then
        : "${HOLDFAST_STATE:=/var/lib/holdfast}" "${HOLDFAST_RUNTIME:=/run/holdfast}"
    else
        : "${HOLDFAST_STATE:=${XDG_DATA_HOME:-$HOME/.local/share}/holdfast}"
        : "${HOLDFAST_RUNTIME:=${XDG_RUNTIME_DIR:+$XDG_RUNTIME_DIR/holdfast}}"
        : "${HOLDFAST_RUNTIME:=$HOLDFAST_STATE/run}"
    fi
    export HOLDFAST_STATE HOLDFAST_RUNTIME
}

answers() { "$venv/bin/python" "$here/scripts/answers.py" "${HOLDFAST_SOCKET:-$HOLDFAST_RUNTIME/holdfast.sock}" "$@"; }

daemon_up() {
    choose_folders
    if answers; then
        say "The daemon runs already, with its state in $HOLDFAST_STATE."
        return 0
    fi
    mkdir -p "$HOLDFAST_STATE"
    mkdir -p "$HOLDFAST_RUNTIME"
    # Somebody else may have made it before us, where it is in a folder that others may write to.
    [ -O "$HOLDFAST_RUNTIME" ] && [ ! -L "$HOLDFAST_RUNTIME" ] ||
        fail "$HOLDFAST_RUNTIME belongs to somebody else; choose another folder by HOLDFAST_RUNTIME"
    daemon_log=$HOLDFAST_STATE/daemon.log
    (umask 077 && : >>"$daemon_log")
    setsid "$venv/bin/holdfast" serve >>"$daemon_log" 2>&1 </dev/null &
    if ! answers --process $! --seconds 120; then
        say "The daemon did not come up; the end of $daemon_log:"
        tail -n 20 "$daemon_log" >&2
        exit 1
    fi
    say "The daemon runs: state in $HOLDFAST_STATE, log in $daemon_log."
}

daemon_down() {
    choose_folders
    case ${1:-} in
        --vms)
            if answers; then "$venv/bin/python" "$here/scripts/stop_vms.py"; fi
            ;;
        '') ;;
        *) fail "down takes --vms or nothing, not '$1'" ;;
    esac
    lock=$HOLDFAST_STATE/lock
    if [ ! -e "$lock" ] || flock -n "$lock" true; then
        say "The daemon does not run."
        return 0
    fi
    pid=$(tr -dc 0-9 <"$lock")
    kill "$pid" || fail "process $pid holds $lock and cannot be stopped"
    # The daemon holds this lock until its very end.
    flock -w 30 "$lock" true || fail "the daemon (process $pid) did not end within 30 s"
    if [ "${1:-}" = --vms ]; then
        say "The daemon is stopped."
    else
        say "The daemon is stopped. VMs run on, and ./run up finds them again; ./run down --vms stops them too."
    fi
}
