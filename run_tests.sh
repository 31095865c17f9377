#!/usr/bin/env bash
# Sets up what is missing, then runs the tests: ./run_tests.sh [unit] [notebooks] [nbval] [integration] [options of pytest]
# No part named: all four, in this order. Nothing is fetched from the network, and nothing is written into the checkout.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
cd "$root"
. ./setup.sh
hpml_setup "$root"
"$hpml_python" -c 'import pytest, nbval' 2>/dev/null ||
    hpml_fail "the environment of $hpml_python lacks the test tools: pip install -e '.[dev]'"

parts=()
while [ $# -gt 0 ]; do
    case "$1" in
        unit | notebooks | nbval | integration) parts+=("$1") && shift ;;
        *) break ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(unit notebooks nbval integration)

scratch="$(mktemp -d "${TMPDIR:-/tmp}/hpml-tests.XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
export MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1
# Several files at a time, as cores and memory allow; threads that wait leave their core to the others. No test asks for a time.
processes="${HPML_TEST_PROCESSES:-$("$hpml_python" -c '
import psutil

from hpml import env
print(max(1, min(env.cores(), 4, psutil.virtual_memory().total // (7 * 2**30))))')}"
export OMP_WAIT_POLICY=PASSIVE

failed=()
for part in "${parts[@]}"; do
    printf '\n== %s ==\n' "$part"
    test=("$hpml_python" -m pytest --junitxml "$scratch/$part.xml")
    if [ "$processes" -gt 1 ]; then test+=(-n "$processes" --dist loadfile); fi
    rc=0
    if [ "$part" = nbval ]; then
        # The stored outputs were made with the embedded data: what lies under data/ must not change them.
        mkdir -p "$scratch/data" "$scratch/cache" "$scratch/results"
        HPML_DATA="$scratch/data" HPML_CACHE="$scratch/cache" HPML_RESULTS="$scratch/results" \
            "${test[@]}" --nbval-lax --nbval-current-env --nbval-cell-timeout 600 \
            --nbval-sanitize-with tests/notebooks/sanitize.cfg notebooks "$@" || rc=$?
    else
        "${test[@]}" "tests/$part" "$@" || rc=$?
    fi
    # 5: nothing was selected, which is no fault where a selection was asked for.
    if [ "$rc" -eq 5 ] && [ $# -gt 0 ]; then rc=0; fi
    [ "$rc" -eq 0 ] || failed+=("$part")
done

counts="$("$hpml_python" - "$scratch" <<'PY'
import sys
from pathlib import Path
from xml.etree import ElementTree

suites = [suite for file in Path(sys.argv[1]).glob("*.xml") for suite in ElementTree.parse(file).iter("testsuite")]
total, skipped, bad = (sum(int(suite.get(key, 0)) for suite in suites for key in keys)
                       for keys in (("tests",), ("skipped",), ("failures", "errors")))
print(total - skipped - bad, "passed,", bad, "failed,", skipped, "skipped")
PY
)"
case "$counts" in "0 passed, 0 failed, 0 skipped") failed=("${parts[@]}") ;; esac
printf '\n'
if [ ${#failed[@]} -gt 0 ]; then
    printf 'TESTS FAILED in %s: %s (%s)\n' "${failed[*]}" "$counts" "${parts[*]}"
    exit 1
fi
printf 'TESTS PASSED: %s (%s)\n' "$counts" "${parts[*]}"
