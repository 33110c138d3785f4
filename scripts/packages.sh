# Debian packages: those of packaging/debian-packages that are missing, installed once.
# shellcheck shell=sh disable=SC2154

# packages_of SECTION...: the names in these sections, one a line.
packages_of() {
    awk -v wanted=" $* " '
        { sub(/#.*/, "") }
        /^\[/ { section = substr($1, 2, length($1) - 2); next }
        NF && index(wanted, " " section " ") { print $1 }
    ' "$here/packaging/debian-packages"
}

# missing_of SECTION...: those of them that are not installed.
missing_of() {
    packages_of "$@" | while read -r package; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=absent
        [ "$status" = installed ] || echo "$package"
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

# Asks for the password now, while a person can see the question, not in the middle of a log.
check_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; } && return 0
    fail "these Debian packages are missing and need root to install: $*
Ask an administrator to run:  apt-get install --no-install-recommends $*"
}

apt() { as_root apt-get -q -o DPkg::Lock::Timeout=600 "$@"; }

# The lists have a lock of their own that apt-get does not wait for.
apt_update() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if apt update "$@" >"$work/update.log" 2>&1; then
            cat "$work/update.log"
            return 0
        fi
        cat "$work/update.log"
        grep -q 'Could not get lock' "$work/update.log" || return 1
        sleep 6
    done
    return 1
}

# backports_source CODENAME: this host's own entry for CODENAME, with the suite changed. Whatever else
# the entry says (mirror, signing key, options) is kept, so no address of ours is needed.
backports_source() {
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -r "$file" ] || continue
        found=$(grep -v '^#' "$file" | awk -v suite="$1" '
            BEGIN { RS = ""; FS = "\n" }
            {
                text = ""; field = ""; suites = ""; types = ""; off = 0
                for (i = 1; i <= NF; i++) {
                    if ($i !~ /^[ \t]/) { field = tolower($i); sub(/:.*/, "", field) }
                    value = $i; sub(/^[^ \t:]*:/, "", value)
                    if (field == "suites") suites = suites " " value
                    else if (field == "types") types = types " " value
                    else if (field == "enabled") off = (tolower(value) ~ /no|false|0/)
                    else if (field != "components") text = text $i "\n"
                }
                gsub(/[ \t]+/, " ", suites); gsub(/[ \t]+/, " ", types)
                if (!off && index(suites " ", " " suite " ") && index(types " ", " deb ")) {
                    printf "Types: deb\nSuites: %s-backports\nComponents: main\n%s", suite, text
                    exit
                }
            }')
        [ -z "$found" ] || { printf 'sources\n%s\n' "$found"; return 0; }
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -r "$file" ] || continue
        found=$(sed -n -E "s/^(deb[[:space:]]+(\[[^]]*\][[:space:]]+)?[^[:space:]]+)[[:space:]]+$1[[:space:]].*/\1 $1-backports main/p" \
            "$file" | head -n 1)
        [ -z "$found" ] || { printf 'list\n%s\n' "$found"; return 0; }
    done
    return 1
}

# enable_backports CODENAME: true where apt offers backports afterwards. A mirror that lacks them
# must not leave a broken entry behind.
enable_backports() {
    if apt-get indextargets --format '$(RELEASE) $(CODENAME)' | grep -q -w -- "$1-backports"; then
        return 0
    fi
    source=$(backports_source "$1") || return 1
    target=/etc/apt/sources.list.d/holdfast-backports.$(printf '%s\n' "$source" | head -n 1)
    printf '%s\n' "$source" | tail -n +2 | as_root tee "$target" >/dev/null
    if apt_update -o Dir::Etc::SourceList="$target" -o Dir::Etc::SourceParts=/dev/null \
        -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any; then
        return 0
    fi
    as_root rm -f "$target"
    return 1
}

install_backports() {
    . /etc/os-release
    if [ "${ID:-} ${VERSION_ID:-}" = "debian 12" ]; then
        if logged "Enabling $VERSION_CODENAME-backports for a newer QEMU" enable_backports "$VERSION_CODENAME"; then
            # shellcheck disable=SC2086
            logged "Installing QEMU from backports" apt install -y --no-install-recommends \
                -t "$VERSION_CODENAME-backports" $1 && return 0
        fi
        say "Notice: no QEMU from backports; the QEMU 7.2 of Debian 12 serves, with fewer features."
    fi
    # shellcheck disable=SC2086
    logged "Installing QEMU" apt install -y --no-install-recommends $1
}

# set_up_packages SECTION...: nothing where all are there.
set_up_packages() {
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        fail "./run sets up Debian and Ubuntu only; on other systems install what packaging/debian-packages lists"
    missing=$(missing_of "$@" | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086
    check_root $missing
    mkdir -p "$work"
    logged "Reading the package lists" apt_update || fail "apt-get update failed"
    late=
    case " $* " in *" backports "*) late=$(missing_of backports | tr '\n' ' ') ;; esac
    early=
    for package in $missing; do
        case " $late" in *" $package "*) ;; *) early="$early $package" ;; esac
    done
    if [ -n "$early" ]; then
        # shellcheck disable=SC2086
        logged "Installing $(set -- $early && echo $#) Debian packages" \
            apt install -y --no-install-recommends $early || fail "the packages could not be installed:$early"
    fi
    [ -z "$late" ] || install_backports "$late" || fail "QEMU could not be installed"
}
