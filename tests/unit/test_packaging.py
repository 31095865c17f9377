"""The packaging: one list of dependencies, its pins and conda twin, the set-up, and what must not be in the tree."""

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = ["setup.sh", "run_all.sh", "serve.sh", "run_tests.sh", ".ci/run"]
PYTHONS = ("3.11", "3.12", "3.13")
CONDA_NAMES = {"pytorch": "torch", "onnxruntime": "onnxruntime-gpu", "huggingface_hub": "huggingface-hub"}  # conda: PyPI, where they differ
NOT_ON_PYPI_LIST = {"python", "pip", "setuptools"}  # in environment.yml, since conda builds a whole environment
IMPORT_NAMES = {  # import: PyPI, where they differ
    "sklearn": "scikit-learn", "PIL": "pillow", "pynvml": "nvidia-ml-py", "yaml": "pyyaml", "tensorrt": "tensorrt-cu13",
    "prometheus_client": "prometheus-client", "websocket": "websocket-client", "starlette": "fastapi",
    "mlperf_loadgen": "mlcommons-loadgen",
}


def requirements(*extras: str) -> list:
    from packaging.requirements import Requirement

    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def locked(python: str) -> dict[str, str]:
    """Names and versions that the lock installs on Linux x86-64 with this Python."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
               "platform_system": "Linux", "platform_machine": "x86_64"}
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(machine):
            (spec,) = pin.specifier
            assert spec.operator == "==" and "*" not in spec.version, f"not an exact pin: {line}"
            assert canonicalize_name(pin.name) not in found, f"twice: {line}"
            found[canonicalize_name(pin.name)] = spec.version
    return found


def source_files() -> list[Path]:
    """Every file that is in git or would be: tracked, and untracked but not ignored."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_holds_every_dependency_within_its_bounds(python):
    pins = locked(python)
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": python}
    for need in requirements("dev", "serve", "video"):
        if need.marker is None or need.marker.evaluate(linux):
            assert need.name in pins, f"requirements.lock lacks {need.name}"
            assert need.specifier.contains(pins[need.name], prereleases=False), f"{need}: pinned at {pins[need.name]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_has_one_onnxruntime_and_what_builds_the_editable_install(python):
    pins = locked(python)
    assert [name for name in pins if name.startswith("onnxruntime")] == ["onnxruntime-gpu"]
    assert "setuptools" in pins and "hpml" not in pins


def test_exactly_one_onnxruntime_on_every_platform():
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")):
        here = {"sys_platform": platform, "platform_machine": machine}
        chosen = [r.name for r in requirements() if r.name.startswith("onnxruntime") and r.marker.evaluate(here)]
        assert chosen == ["onnxruntime-gpu" if (platform, machine) == ("linux", "x86_64") else "onnxruntime"]


def test_every_dependency_is_bounded_on_both_sides():
    for need in requirements("tensorrt"):
        operators = {spec.operator for spec in need.specifier}
        assert operators & {">=", "=="} and operators & {"<", "=="}, f"{need} has no lower or no upper bound"


def test_environment_yml_says_the_same_as_pyproject():
    import yaml
    from packaging.specifiers import SpecifierSet

    conda = {}
    for line in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]:
        name, _, bounds = line.partition(" ")
        conda[CONDA_NAMES.get(name, name)] = SpecifierSet(bounds)
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    conda = {name: bounds for name, bounds in conda.items() if name not in NOT_ON_PYPI_LIST}
    assert conda == {need.name: need.specifier for need in requirements("dev") if need.name != "onnxruntime"}


def test_every_import_of_the_library_is_declared():
    declared = {need.name for need in requirements(*PROJECT["optional-dependencies"])} | {"hpml"}
    for file in (ROOT / "hpml").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                known = name in sys.stdlib_module_names or IMPORT_NAMES.get(name, name).replace("_", "-") in declared
                assert known, f"{file.relative_to(ROOT)}:{node.lineno} imports {name}: not in pyproject.toml"


def forbidden() -> dict[str, re.Pattern]:
    # Put together from pieces, so that this file does not contain what it looks for.
    word = {
        "torch quantization's old home": "torch.ao." + "quantization",
        "the old AMP namespace": "torch.cuda." + "amp",
        "remote code": "trust_remote_code" + "=True",
        "unpickling of arbitrary objects": "weights_only" + "=False",
    }
    patterns = {name: re.compile(re.escape(text).replace("=", r"\s*=\s*")) for name, text in word.items()}
    hosts = ("pypi" + ".org", "python" + "hosted.org", "download.pytorch" + ".org", "pypi.nvidia" + ".com",
             "conda.anaconda" + ".org")
    options = ("--index" + "-url", "--extra-index" + "-url", "--find" + "-links", "PIP_INDEX" + "_URL",
               "PIP_EXTRA_INDEX" + "_URL")
    patterns["a package index"] = re.compile("|".join(re.escape(text) for text in hosts + options))
    # At the start of a word: not the middle of a longer path, and not a part of an address.
    folders = "|".join(("wo" + "rk", "ro" + "ot", "ho" + r"me/\w+", "Us" + r"ers/\w+"))
    patterns["a path of one machine"] = re.compile(rf"(?<![\w.~$}}\-/\\])/(?:{folders})(?![\w\-])")
    return patterns


def test_nothing_forbidden_stands_in_the_tree():
    found = []
    patterns = forbidden()
    for file in source_files():
        data = file.read_bytes()
        if b"\0" in data or len(data) > 8 * 2**20:
            continue
        text = data.decode("utf-8", errors="replace")
        for name, pattern in patterns.items():
            found += [f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, hit.start()) + 1}: {name}: {hit.group()}"
                      for hit in pattern.finditer(text)]
        if file.suffix == ".ipynb":
            code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            found += [f"{file.relative_to(ROOT)}: a magic or shell line: {source[:60]!r}"
                      for source in code if re.search(r"^\s*[%!]", source, re.MULTILINE)]
    assert not found, "\n".join(found)


def test_the_search_for_forbidden_things_finds_them():
    patterns = forbidden()
    machine = patterns["a path of one machine"]
    for bad in ('"/ro' + 'ot/x"', "see /wo" + "rk/main", "/ho" + "me/ann/data", "cd /ro" + "ot\n"):
        assert machine.search(bad), bad
    addresses = "https://host.example/ho" + "me/ann", "src/ro" + "ot/x", "$PWD/wo" + "rk"
    for good in (*addresses, "and/wo" + "rk", "/wo" + "rkers"):
        assert not machine.search(good), good
    assert patterns["unpickling of arbitrary objects"].search("torch.load(f, weights_only" + " = False)")
    assert patterns["a package index"].search("pip install --index" + "-url x")


def test_import_hpml_needs_nothing_but_the_standard_library():
    # Without site-packages: a bare machine.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hpml; print(hpml.__name__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "hpml", done.stderr


def test_import_hpml_takes_no_heavy_library():
    heavy = ["torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "pandas", "matplotlib", "sklearn",
             "scipy", "IPython"]
    code = f"import sys, hpml; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_ruff_finds_nothing():
    if importlib.util.find_spec("ruff") is None:
        assert os.environ.get("CI", "").lower() != "true", "ruff is not installed"
        pytest.skip("ruff is not installed")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_parse(name):
    done = subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert name == "setup.sh" or os.access(ROOT / name, os.X_OK), f"{name} is not executable"


# --- the set-up, with a Python whose venv and pip only note that they were called ---

FAKE_PYTHON = """#!/bin/sh
here="$(dirname "$0")"
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip")
    case "$*" in *--version*) exit 0 ;; esac
    printf '%s\\n' "$* cache=${PIP_NO_CACHE_DIR:-kept}" >>"$FAKE_LOG"
    [ -z "$FAKE_PIP_FAILS" ] || exit 1
    printf '#!/bin/sh\\nprintf "%%s\\\\n" "hpml:" "$@"\\n' >"$here/hpml" && chmod +x "$here/hpml" ;;
*)
    if [ -n "$FAKE_VERSION" ]; then
        case "$2" in *version_info*) exit 1 ;; *python_version*) echo "$FAKE_VERSION"; exit 0 ;; esac
    fi
    exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Checkout:
    """The set-up files in a folder with spaces, a Python that installs nothing, and a disk of a chosen size."""

    def __init__(self, folder: Path):
        self.root = folder / "a path with spaces" / "hpml"
        self.tools = folder / "tools of a user"
        self.log = folder / "pip calls"
        self.root.mkdir(parents=True)
        self.tools.mkdir()
        for name in ("setup.sh", "run_all.sh", "requirements.lock", "pyproject.toml"):
            shutil.copy2(ROOT / name, self.root)
        self.program("python3", FAKE_PYTHON)
        self.free_gb(100)
        self.lock = self.root / "requirements.lock"
        # A version of torch that is nowhere installed: the set-up is then that of a new machine.
        self.lock.write_text(re.sub(r"^torch==.*$", "torch==0.0.1", self.lock.read_text(), flags=re.MULTILINE))

    def program(self, name: str, text: str):
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def free_gb(self, gb: int):
        self.program("df", f"#!/bin/sh\necho Filesystem Blocks Used Available\necho disk 1 1 {gb * 2**20} 1% mount\n")
        self.program("uname", '#!/bin/sh\ncase "$1" in -s) echo Linux ;; *) echo x86_64 ;; esac\n')

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        ours = {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON", "PYTHONPATH", "PIP_NO_CACHE_DIR"}
        env = {key: value for key, value in os.environ.items() if key not in ours}
        env |= {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}", "REAL_PYTHON": sys.executable,
                "FAKE_LOG": str(self.log), "FAKE_PIP_FAILS": "", "FAKE_VERSION": ""}
        return subprocess.run(["bash", str(self.root / "run_all.sh"), *words], env=env | more, cwd=self.tools,
                              capture_output=True, text=True, timeout=300)

    def pip_calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_first_start_installs_the_lock_then_runs_with_the_arguments_as_given(checkout):
    done = checkout.run("--tier", "smoke", "two words")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-5:] == ["hpml:", "run", "--tier", "smoke", "two words"]
    lock_call, own_call = checkout.pip_calls()
    assert "-r requirements.lock" in lock_call and "--no-deps -e ." in own_call
    for word in ("Linux x86_64", "3.5 GB", "7 GB", "100 GB free", "minutes"):
        assert word in done.stdout


def test_second_start_installs_nothing_until_the_lock_changes(checkout):
    checkout.run()
    done = checkout.run()
    assert done.returncode == 0 and checkout.pip_calls() == [] and "set-up" not in done.stdout
    checkout.lock.write_text(checkout.lock.read_text() + "# changed\n")
    assert checkout.run().returncode == 0 and len(checkout.pip_calls()) == 2
    stamp = (checkout.root / ".venv/.hpml-installed").read_text()
    assert stamp.split()[0] == hashlib.sha256(checkout.lock.read_bytes()).hexdigest()


def test_moved_checkout_is_set_up_again(checkout):
    # An environment holds its own path and the checkout's.
    checkout.run()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run().returncode == 0 and len(checkout.pip_calls()) == 2


def test_failed_install_leaves_no_stamp_and_is_repeated(checkout):
    done = checkout.run(FAKE_PIP_FAILS="1")
    assert done.returncode == 1 and "tries again" in done.stderr
    assert not (checkout.root / ".venv/.hpml-installed").exists()
    assert checkout.run().returncode == 0 and len(checkout.pip_calls()) == 2


def test_package_whose_unpacking_was_cut_short_is_not_taken_for_installed(checkout):
    checkout.run(FAKE_PIP_FAILS="1")
    packages = checkout.root / ".venv/lib/python3.12/site-packages"
    for name in ("whole-1.dist-info", "cut-1.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").touch()
    (packages / "whole-1.dist-info/RECORD").touch()
    checkout.run()
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_full_disk_is_refused_before_anything_is_downloaded(checkout):
    checkout.free_gb(3)
    done = checkout.run()
    assert done.returncode == 1 and checkout.pip_calls() == []
    assert "only 3 GB free" in done.stderr and "11 GB needed" in done.stderr and len(done.stderr.splitlines()) == 1


def test_little_space_is_used_without_pips_cache(checkout):
    for free_gb, cache in ((100, "kept"), (12, "1")):
        checkout.free_gb(free_gb)
        checkout.lock.write_text(checkout.lock.read_text() + "#\n")
        assert checkout.run().returncode == 0
        assert all(f"cache={cache}" in call for call in checkout.pip_calls())


def test_wrong_or_absent_python_is_one_clear_line(checkout):
    done = checkout.run(FAKE_VERSION="3.14.2")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "3.14.2" in done.stderr and "3.11, 3.12 or 3.13" in done.stderr and "PYTHON=" in done.stderr
    done = checkout.run(PYTHON="no-such-python")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "no-such-python" in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_activated_environment_that_has_hpml_is_used_as_it_is(checkout, tmp_path):
    env = tmp_path / "an env"
    (env / "bin").mkdir(parents=True)
    (env / "hpml.py").touch()
    for name, line in {"python": 'exec "$REAL_PYTHON" "$@"', "hpml": 'echo "theirs $*"'}.items():
        (env / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (env / "bin" / name).chmod(0o755)
    done = checkout.run("--list", CONDA_PREFIX=str(env), PYTHONPATH=str(env))
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "theirs run --list"
    assert checkout.pip_calls() == [] and not (checkout.root / ".venv").exists()
