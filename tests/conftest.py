"""The environment of all tests: offline, no telemetry, no screen, and folders of its own, not the checkout's."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Set while pytest loads, so before any test imports hpml, and inherited by every process that a test starts.
SCRATCH = Path(tempfile.mkdtemp(prefix="hpml-tests-"))
for folder in ("results", "cache", "data"):
    (SCRATCH / folder).mkdir()
    os.environ[f"HPML_{folder.upper()}"] = str(SCRATCH / folder)
os.environ |= {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
}


def pytest_unconfigure(config):
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def need():
    """`need("chromium", "google-chrome")` is the path of the first of these programs that is installed.

    Where none is: the test is skipped, but fails under CI=true, so that a broken CI machine cannot pass by skipping.
    """
    def find(*names: str) -> str:
        for name in names:
            if path := shutil.which(name):
                return path
        reason = f"not installed: {' or '.join(names)} (tests/debian.txt)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return find


@pytest.fixture
def smoke_session(tmp_path, monkeypatch):
    """Cases at the smoke tier, in a run "here" below the test's own folder. No round is busy: a test beside this one would repeat it."""
    import hpml
    from hpml import rounds

    monkeypatch.setenv("HPML_RESULTS", str(tmp_path / "results"))
    real = rounds.launch.side_by_side
    monkeypatch.setattr(rounds.launch, "side_by_side",
                        lambda *asked, **more: [{**fields, "disturbance": {**fields.get("disturbance", {}), "busy": False}}
                                                for fields in real(*asked, **more)])
    monkeypatch.setitem(rounds.COMPILE_LIMIT_S, "smoke", 900)  # a slow or busy machine passes too
    hpml.use(tier="smoke", run_id="here")
    yield
    hpml.use(tier="smoke")


@pytest.fixture
def linked(need):
    """Skip, or fail under CI=true, where there can be no shaped link."""
    from hpml import link

    need("nginx", "/usr/sbin/nginx")
    need("aria2c")
    if reason := link.unavailable():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(reason)
        pytest.skip(reason)
