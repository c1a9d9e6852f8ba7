# Sourced by the other scripts: brings a fresh Debian or Ubuntu to where HiveFS runs. Says what it installs; does nothing
# when all is there. Needs no terminal and no systemd. Working directory: the checkout.
# shellcheck shell=bash

hivefs_fail() {
    echo "error: $*" >&2
    exit 1
}

# hivefs_packages run PACKAGE PROGRAM [PACKAGE PROGRAM]...: what HiveFS itself needs, and PACKAGE where PROGRAM is missing.
hivefs_packages() {
    local missing=() package program wanted=()
    command -v dpkg-query >/dev/null || {
        echo "note: this is not Debian or Ubuntu; install a C compiler, the headers of python3, fuse3 and gmp, and fuse3" >&2
        return 0
    }
    wanted=(python3 python3-venv python3-dev build-essential pkg-config libfuse3-dev fuse3 libgmp-dev)
    # vector instructions for erasure coding: Debian and Ubuntu have it for these; elsewhere zfec does it, more slowly
    case $(dpkg --print-architecture) in amd64 | arm64) wanted+=(libisal2) ;; esac
    for package in "${wanted[@]}"; do
        hivefs_installed "$package" || missing+=("$package")
    done
    shift
    while [ $# -gt 0 ]; do
        package=$1 program=$2
        command -v "$program" >/dev/null || missing+=("$package")
        shift 2
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    local install=(apt-get install -y --no-install-recommends "${missing[@]}") root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            hivefs_fail "system packages are missing and there is no sudo; as root run: apt-get update && ${install[*]}"
        root=(sudo)
        if ! { [ -t 0 ] && [ -t 2 ]; }; then
            sudo -n true 2>/dev/null ||
                hivefs_fail "system packages are missing and sudo cannot ask here; run: sudo apt-get update && sudo ${install[*]}"
            root=(sudo -n)
        fi
    fi
    echo "Installing system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null ||
        hivefs_fail "apt-get update failed (see above)"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" </dev/null ||
        hivefs_fail "system packages could not be installed (see above); run: ${root[*]} ${install[*]}"
}

hivefs_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# hivefs_environment EXTRA: .venv in the checkout with the pinned packages and HiveFS itself; EXTRA is "" or "test".
hivefs_environment() {
    local extra=$1 python=${PYTHON:-python3} wanted stamp=.venv/hivefs-installed
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null ||
        hivefs_fail "Python 3.11, 3.12 or 3.13 is needed and '$python' is $("$python" --version 2>&1 || echo missing); set PYTHON=/path/to/python3"
    wanted=$({
        sha256sum constraints.txt setup.cfg pyproject.toml
        "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
        pwd -P
    } | sha256sum | cut -d' ' -f1)
    if [ -r "$stamp" ] && grep -qx "$wanted ${extra:-.*}" "$stamp" && .venv/bin/python -c '' 2>/dev/null; then
        return 0
    fi
    [ -w . ] || hivefs_fail "$(pwd -P) cannot be written, and the environment .venv belongs there; copy the checkout to where you may write"
    echo "Installing Python packages (pinned in constraints.txt) into $(pwd -P)/.venv; this takes some minutes the first time"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        [ "$(.venv/bin/python -c 'import sys; print(sys.version, sys.base_prefix)')" != \
            "$("$python" -c 'import sys; print(sys.version, sys.base_prefix)')" ]; then
        rm -rf .venv
        "$python" -m venv .venv || hivefs_fail "no virtual environment could be made; is the package python3-venv installed?"
    fi
    rm -f "$stamp"
    # pip keeps a cache below HOME; without a writable one it works, but says so at every step
    local options=(--quiet --disable-pip-version-check --no-input)
    if ! { mkdir -p "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}" && [ -w "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}" ]; } 2>/dev/null; then
        echo "note: ${HOME:-HOME} cannot be written, so nothing is cached for the next time"
        options+=(--no-cache-dir)
    fi
    .venv/bin/python -m pip install "${options[@]}" "$(grep '^pip==' constraints.txt)" || hivefs_fail "pip could not be updated (see above)"
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install "${options[@]}" -c constraints.txt --build-constraint constraints.txt \
        -e ".${extra:+[$extra]}" || hivefs_fail "the Python packages could not be installed (see above)"
    # trio-typing (a dependency of libp2p) installs type stubs of a trio of 2019, which hide trio's own types from mypy
    rm -rf .venv/lib/python3.*/site-packages/trio-stubs
    echo "$wanted $extra" >"$stamp"
}
