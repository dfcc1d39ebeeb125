# Sourced by the commands of bin/: `prepare run|dev` leaves a working .venv in $root, and $python names its interpreter.
# If .venv is up to date this starts one process, `cmp` (two for `dev`); the rest is left to bootstrap.py.
# shellcheck shell=sh

python=$root/.venv/bin/python
locked=$root/.venv/.locked

# A copy of the lock is stored last, so its presence shows that the install was finished, and its age that no package
# has been installed or removed since.
holds() {
    [ -x "$python" ] && cmp -s "$1" "$locked/${1##*/}" || return 1
    for site in "$root"/.venv/lib/python3*/site-packages; do
        if [ "$site" -nt "$locked/${1##*/}" ]; then return 1; fi
    done
}

is_ready() {
    holds "$root/requirements.lock" || return 1
    if [ "$1" = dev ]; then holds "$root/tests/requirements-dev.lock" || return 1; fi
}

# Runs each candidate, because a version manager's shim may exist and fail. Needs `ensurepip`, which some
# distributions package apart from Python.
find_base() {
    too_bare=
    for base in python3.13 python3.12 python3.11 python3 python3.14 python; do
        "$base" -Ic 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1 || continue
        if "$base" -Ic 'import ensurepip, fcntl, venv' </dev/null >/dev/null 2>&1; then return 0; fi
        too_bare=$base
    done
    if [ -n "$too_bare" ]; then
        echo "mcp-gateway: $too_bare lacks its venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2
    else
        echo "mcp-gateway: needs Python 3.11 or newer on PATH, and found none" >&2
    fi
    return 1
}

# Nothing here may read stdin or write stdout: in stdio mode both belong to the protocol.
prepare() {
    if is_ready "$1"; then return 0; fi
    find_base || exit 1
    "$base" -I "$root/bin/bootstrap.py" "$1" </dev/null >&2 || exit 1
}
