"""Dockerfile and compose file, without a Docker engine: parsed, held against the package, and their start command run as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(word, the rest) of each instruction; lines that end in a backslash go on."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(word: str) -> list[str]:
    return [rest for first, rest in instructions() if first == word]


def test_stages_user_and_health():
    found = instructions()
    assert {word for word, _ in found} <= KNOWN
    stages = of("FROM")
    assert len(stages) == 2 and all("-slim" in stage for stage in stages) and stages[0].endswith("AS build")
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM"):]
    words = [word for word, _ in last]
    assert dict(last)["USER"] == "hpml" and words.index("USER") < words.index("ENTRYPOINT")
    assert not any("pip" in rest or "apt-get" in rest for word, rest in last if word == "RUN"), "the last stage installs nothing"
    health = re.search(r"CMD (\[.*\])", of("HEALTHCHECK")[0])[1]
    compile(json.loads(health)[2], "health", "exec")
    assert "/healthz" in health
    environment = dict(pair.split("=", 1) for pair in shlex.split(of("ENV")[-1]))
    assert {name: value for name, value in environment.items() if name.startswith("HPML_")} == {
        name: f"/srv/hpml/{folder}" for name, folder in (("HPML_RESULTS", "results"), ("HPML_CACHE", "cache"), ("HPML_DATA", "data"),
                                                     ("HPML_WEIGHTS", "weights"))}, "what is written lies in the volume"


def test_what_is_copied_exists_and_what_is_installed_is_declared():
    sources = [source for rest in of("COPY") if "--from" not in rest for source in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources.remove("wheel[s]")  # may be absent
    assert sources and all((ROOT / source).exists() and f"!{source}" in ignored for source in sources)
    extras = re.search(r"'\.\[(\w+)\]'", " ".join(of("RUN")))[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert extras in project["project"]["optional-dependencies"]
    assert project["project"]["scripts"]["hpml"] == "hpml.cli:main"
    assert "serve/assets/*" in project["tool"]["setuptools"]["package-data"]["hpml"], "the page travels with the package"


@pytest.mark.parametrize("name", ["two-cores", "eight-cores", "cuda"])
def test_services_are_limited_and_closed(name):
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][name]
    assert service["mem_limit"] == "8g" and service["cpus"] == {"two-cores": 2}.get(name, 8)
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") and port.endswith(":8000") for port in service["ports"])
    assert service["volumes"] == ["data:/srv/hpml"] and service["tmpfs"] == ["/tmp"]
    variant = service["build"]["args"]["VARIANT"] if isinstance(service["build"], dict) else "cpu"
    assert variant == ("cuda" if name == "cuda" else "cpu")


@pytest.mark.parametrize("name", ["two-cores", "eight-cores", "cuda"])
def test_the_start_command_is_one_that_the_program_takes(name):
    """ENTRYPOINT and command, with --help behind them: every option is parsed first."""
    words = [*json.loads(of("ENTRYPOINT")[0]), *yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][name]["command"]]
    assert words[:2] == ["hpml", "serve"]
    done = subprocess.run([sys.executable, "-c", "from hpml.cli import main; main()", *words[1:], "--help"], capture_output=True, text=True,
                          env=os.environ)
    assert done.returncode == 0 and "Serve a workload over HTTP" in done.stdout, done.stderr
