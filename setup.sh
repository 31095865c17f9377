# Sourced by run_all.sh and run_tests.sh, which are bash with `set -euo pipefail`.
# hpml_setup FOLDER leaves $hpml_python, a Python that can import hpml, and puts its folder first on PATH.

# Measured in GiB: 3.3 of wheels, which pip keeps until the 6.7 of their contents are installed; pip's cache holds the wheels once more.
HPML_NEEDS_GB=11
HPML_NEEDS_WITH_CACHE_GB=15

hpml_say() { printf 'set-up: %s\n' "$*"; }
hpml_fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

hpml_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
hpml_version() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo unknown; }

hpml_use() {
    hpml_python="$1/bin/python"
    export PATH="$1/bin:$PATH"
    unset PYTHONHOME
}

# An activated environment is used as it is when it has hpml; our own one goes on to the stamp once a set-up has made that.
hpml_activated() {
    local root="$1" active
    for active in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        [ -n "$active" ] || continue
        if [ "$active" -ef "$root/.venv" ] && [ -e "$root/.venv/.hpml-installed" ]; then continue; fi
        # From another folder: the checkout itself would always be found.
        if (cd / && "$active/bin/python" -c 'import hpml') 2>/dev/null; then
            hpml_say "the activated environment $active has hpml and is used as it is (Python $(hpml_version "$active/bin/python"))"
            hpml_use "$active"
            return 0
        fi
    done
    return 1
}

hpml_make_venv() {
    local venv="$1" python="${PYTHON:-python3}"
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        hpml_supported "$venv/bin/python" ||
            hpml_fail "$venv has Python $(hpml_version "$venv/bin/python"), hpml needs 3.11, 3.12 or 3.13: remove that folder and start again"
        return 0
    fi
    command -v "$python" >/dev/null ||
        hpml_fail "no Python called '$python': install Python 3.11, 3.12 or 3.13, or name one: PYTHON=/path/to/python3.12"
    hpml_supported "$python" ||
        hpml_fail "'$python' is Python $(hpml_version "$python"), hpml needs 3.11, 3.12 or 3.13: name one with PYTHON=/path/to/python3.12"
    "$python" -m venv "$venv" ||
        hpml_fail "'$python -m venv' failed (Debian and Ubuntu have it in the package python3-venv)"
}

# What an install was made from: this file, at this place (an environment knows its own path and that of the checkout).
hpml_stamp() {
    "$1" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), sys.argv[2])' "$2" "$3"
}

hpml_check_disk() {
    local root="$1" venv="$2" pinned free_gb
    pinned="$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$root/requirements.lock")"
    # The large part is torch and its libraries; where they are already, little is added.
    if "$venv/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch") != sys.argv[1])' "$pinned" 2>/dev/null; then
        hpml_say "brings $venv up to date: seconds to a few minutes"
        return 0
    fi
    free_gb="$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }')"
    hpml_say "installs into $venv: about 3.5 GB to download, 7 GB on disk ($free_gb GB free), 2 to 15 minutes, once"
    [ "$free_gb" -ge "$HPML_NEEDS_GB" ] ||
        hpml_fail "only $free_gb GB free at $root, $HPML_NEEDS_GB GB needed: free some, or activate an environment that has hpml"
    if [ "$free_gb" -lt "$HPML_NEEDS_WITH_CACHE_GB" ]; then
        hpml_say "little space: pip keeps no copies for a later time"
        export PIP_NO_CACHE_DIR=1
    fi
}

hpml_install() {
    local root="$1" venv="$2" source="$3" info
    # pip counts a package whose unpacking was cut short as installed; without its dist-info it is installed again.
    for info in "$venv"/lib/python*/site-packages/*.dist-info; do
        [ ! -d "$info" ] || [ -e "$info/RECORD" ] || rm -rf "$info"
    done
    # pip unpacks 3 GB here first: on the disk that was checked, not on a small /tmp.
    mkdir -p "$venv/.tmp"
    local tmp="${TMPDIR:-$venv/.tmp}" pip=("$venv/bin/python" -m pip --disable-pip-version-check install)
    [ -t 1 ] || pip+=(--progress-bar off)
    if [ "$source" = requirements.lock ]; then
        (cd "$root" && TMPDIR="$tmp" "${pip[@]}" -r requirements.lock &&
            TMPDIR="$tmp" "${pip[@]}" --no-build-isolation --no-deps -e .)
    else
        (cd "$root" && TMPDIR="$tmp" "${pip[@]}" -e '.[dev,serve,video]')
    fi
}

hpml_setup() {
    local root="$1" venv="$1/.venv" source=requirements.lock stamp
    if hpml_activated "$root"; then return 0; fi
    hpml_make_venv "$venv"
    # The pins are those of one platform; elsewhere pip chooses within pyproject's bounds.
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || source=pyproject.toml
    stamp="$(hpml_stamp "$venv/bin/python" "$root/$source" "$root")"
    if [ "$stamp" != "$(cat "$venv/.hpml-installed" 2>/dev/null)" ]; then
        hpml_say "$(uname -s) $(uname -m), Python $(hpml_version "$venv/bin/python"), from $source"
        [ "$source" = requirements.lock ] || hpml_say "this platform is not tested"
        hpml_check_disk "$root" "$venv"
        rm -f "$venv/.hpml-installed"
        hpml_install "$root" "$venv" "$source" ||
            hpml_fail "pip could not install from $source (its message is above); the next start tries again"
        rm -rf "$venv/.tmp"
        printf '%s\n' "$stamp" >"$venv/.hpml-installed"
        hpml_say "done"
    fi
    hpml_use "$venv"
    export VIRTUAL_ENV="$venv"
}
