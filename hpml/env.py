"""Where things are, what machine this is, and what is available on it (and why not)."""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

# Telemetry of the libraries we call is switched off before any of them is imported; openvino's is in arithmetic.import_openvino.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "tensorrt-cu13", "openvino", "nncf",
            "transformers", "timm", "webdataset", "fastapi", "uvicorn", "mlcommons-loadgen", "papermill")
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "i8mm")


class HpmlError(Exception):
    """A user's mistake or a fault of the machine, said in one clear line."""


class Unavailable(HpmlError):
    """Something is not on this machine; the message is the true reason."""


class BudgetSpent(HpmlError):
    """The time of a run was up before a comparison had its first round; `--resume` goes on from there."""


def root() -> Path:
    """The folder that holds the course: the checkout, or the working folder of an installed copy."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def data_dir() -> Path:
    """Where data sets are looked for: $HPML_DATA, else `data/`."""
    return Path(os.environ.get("HPML_DATA") or root() / "data").expanduser().resolve()


def cache_dir() -> Path:
    """Where decoded copies of data sets are kept: $HPML_CACHE, else `data/cache/`."""
    return Path(os.environ.get("HPML_CACHE") or root() / "data" / "cache").expanduser().resolve()


def results_dir() -> Path:
    """Where runs are written: $HPML_RESULTS, else `results/`."""
    return Path(os.environ.get("HPML_RESULTS") or root() / "results").expanduser().resolve()


def reference_dir() -> Path:
    """Committed records of blessed runs. They belong to the checkout, wherever new results go ($HPML_REFERENCE for other ones)."""
    return Path(os.environ.get("HPML_REFERENCE") or root() / "results" / "reference").expanduser().resolve()


def run_dir(run_id: str) -> Path:
    """The folder of one run. Raises HpmlError for a name that is not a plain folder name."""
    if not run_id or run_id.startswith(".") or not all(c.isalnum() or c in "._-" for c in run_id):
        raise HpmlError(f"run id {run_id!r}: use letters, digits, '.', '_' and '-' only")
    return results_dir() / "runs" / run_id


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def missing(package: str) -> str | None:
    """Why `package` cannot be imported, or None. Nothing is imported to find out."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


@functools.cache
def versions() -> dict:
    """Installed versions of what a figure depends on; absent packages are left out."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git() -> dict:
    """Commit of the checkout and whether files that git tracks were changed; nulls outside a checkout."""
    def call(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root()), *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = call("status", "--porcelain", "--untracked-files=no")
    return {"commit": call("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def _cpuinfo() -> dict:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"model name": platform.processor() or platform.machine(), "flags": ""}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cgroup_limit(name: str) -> float | None:
    """The cgroup's cap: cores for cpu.max, MiB for memory.max; None where there is none."""
    try:
        words = Path("/sys/fs/cgroup", name).read_text().split()
    except OSError:
        return None
    if not words or words[0] == "max":
        return None
    return int(words[0]) / int(words[1]) if name == "cpu.max" else int(words[0]) / 2**20


def gpus() -> list[dict]:
    """NVIDIA devices by NVML, so that CUDA is never initialised here: name, memory_mib, driver. Empty without a driver."""
    if missing("pynvml"):
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for i in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError_NoPermission):  # a device that was given to another job
                handle = pynvml.nvmlDeviceGetHandleByIndex(i)
                if not _is_visible(i, pynvml.nvmlDeviceGetUUID(handle)):
                    continue
                found.append({"name": pynvml.nvmlDeviceGetName(handle), "driver": driver, "memory_mib": None})
                with contextlib.suppress(pynvml.NVMLError_NotSupported):
                    found[-1]["memory_mib"] = pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20
        return found
    finally:
        pynvml.nvmlShutdown()


def _is_visible(index: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves this device to us: a list of numbers, or of beginnings of UUIDs."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return True
    names = [name.strip() for name in listed.split(",")]
    return str(index) in names or any(name.startswith("GPU-") and uuid.startswith(name) for name in names)


def no_gpu() -> str | None:
    """Why CUDA cannot be used here, or None."""
    if not gpus():
        return "no NVIDIA GPU or no driver" + (", or CUDA_VISIBLE_DEVICES hides it" if "CUDA_VISIBLE_DEVICES" in os.environ else "")
    if reason := missing("torch"):
        return reason
    return "torch is built for the CPU alone" if "+cpu" in importlib.metadata.version("torch") else None


def cores() -> int:
    """CPU cores that this process may use: its affinity, capped by the cgroup."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cap = _cgroup_limit("cpu.max")
    return max(1, min(available, int(cap))) if cap else available


@functools.cache
def machine() -> dict:
    """The fingerprint that a figure belongs to. `id` is equal only on machines whose figures may be compared."""
    import psutil

    cpu = _cpuinfo()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    devices = gpus()
    ram_gib = round(psutil.virtual_memory().total / 2**30)
    facts = {
        "cpu": cpu.get("model name", platform.machine()), "family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "arch": platform.machine(), "cores": cores(), "isa": [flag for flag in ISA_FLAGS if flag in flags], "ram_gib": ram_gib,
        "gpu": devices[0]["name"] if devices else None, "gpus": len(devices),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:6]
    part = facts["gpu"] or facts["cpu"]
    words = "".join(c if c.isalnum() else " " for c in part.lower().replace("(r)", "").replace("(tm)", "")).split()
    return {
        "id": "-".join([*words[:4], f"{facts['cores']}c", digest]), **facts,
        "gpu_driver": devices[0]["driver"] if devices else None, "gpu_memory_mib": devices[0]["memory_mib"] if devices else None,
        "cgroup_cores": _cgroup_limit("cpu.max"), "cgroup_memory_mib": _cgroup_limit("memory.max"),
        "shm_mib": shutil.disk_usage("/dev/shm").total // 2**20 if Path("/dev/shm").is_dir() else None,
        "os": f"{platform.system()} {platform.release()}",
    }


def warnings() -> list[str]:
    """What makes figures of this machine doubtful right now, one line each: battery, other load, small shared memory."""
    import psutil

    found = []
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery and not battery.power_plugged:
        found.append("on battery: clocks drop; plug in before measuring")
    busy = psutil.cpu_percent(interval=0.5)
    if busy > 15:
        found.append(f"busy: other processes use {busy:.0f} % of the CPU; figures would be wrong, not only slow")
    shm_mib = machine()["shm_mib"]
    if shm_mib is not None and shm_mib < 256:
        found.append(f"/dev/shm holds {shm_mib} MiB: loader workers need more (start a container with --shm-size=1g)")
    return found
