"""The whole chain by its one command: shards, a server, a thin link, two nodes, a kill, and the same training to its end."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_chain_holds(tmp_path, linked):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "chain.py"), "--folder", str(tmp_path)], capture_output=True,
                          text=True, timeout=400, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == 7 and "FAIL" not in done.stdout
    checkpoints = list((tmp_path / "results" / "runs" / "chain" / "models").glob("*.checkpoint*"))
    assert not checkpoints, "a training that is over leaves weights alone"
