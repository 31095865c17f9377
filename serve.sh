#!/usr/bin/env bash
# Sets up what is missing, then serves a workload with a page: ./serve.sh [options of `hpml serve`]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
cd "$root"
. ./setup.sh
hpml_setup "$root"
exec hpml serve "$@"
