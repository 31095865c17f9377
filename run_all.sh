#!/usr/bin/env bash
# Sets up what is missing, then runs the study: ./run_all.sh [options of `hpml run`]
# or opens the course in JupyterLab: ./run_all.sh --lab [options of `hpml lab`]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
cd "$root"
. ./setup.sh
hpml_setup "$root"
if [ "${1:-}" = --lab ]; then
    shift
    exec hpml lab "$@"
fi
exec hpml run "$@"
