#!/usr/bin/env bash
# Sets up what is missing, then runs the study: ./run_all.sh [options of `hpml run`]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
cd "$root"
. ./setup.sh
hpml_setup "$root"
exec hpml run "$@"
