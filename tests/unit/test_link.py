"""The thin link: a rate that holds, one connection's part of it, and nothing left afterwards."""

import subprocess
import urllib.request

import pytest

from hpml import launch, link, nginx, transfer
from hpml.env import Unavailable
from hpml.knobs import validate


def interfaces() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def asked(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"{url}/hello", timeout=1).read().decode()
    except OSError as error:
        return str(error)


def test_window_arithmetic():
    assert pytest.approx(10.49, abs=0.01) == link.CONNECTION_MBIT_S
    assert 4 < link.RATE_MBIT_S / link.CONNECTION_MBIT_S < 8, "four connections do not fill the link, eight do"
    rate = transfer.limit_rate(1_000_000, 2)
    assert -(-1_000_000 // rate) - 1 == 2, "as nginx counts"


def test_a_transfer_is_a_record(linked, tmp_path):
    before = interfaces()
    job = {"case": {"workload": "resnet152", "phase": "transfer", "key": "k", "tier": "smoke"}, "knobs": validate("transfer", {}),
           "protocol": {"seed": 0, "round": 0}}
    fields = launch.run(job, log=tmp_path / "log", timeout_s=300)
    assert fields["status"] == "ok", fields["reason"]
    io, actual = fields["io"], fields["actual"]
    assert actual["verified"] and actual["connections"] == 8 and io["bytes"] == 8 * round(link.CONNECTION_MBIT_S * 1e6 / 8)
    assert io["mbit_s"] == pytest.approx(8 * io["bytes"] / io["seconds"] / 1e6)
    assert link.CONNECTION_MBIT_S / 50 < io["link_share"] < 1, "more than one connection may use, and not more than the link has"
    assert interfaces() == before


def test_two_ends_reach_each_other_and_nobody_else(linked, tmp_path):
    (tmp_path / "hello").write_text("across")
    with link.shaped() as line:
        with nginx.serve(tmp_path, address=line.there_address, port=8080, through=line.there) as url:
            with link.entered(line.here):
                assert asked(url) == "across"
            assert asked(url) != "across"
        if line.no_netem:
            assert "netem" in line.no_netem
            with pytest.raises(Unavailable, match="no netem"), link.shaped(delay_ms=5):
                pass


def test_without_root_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(link.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(link.shutil, "which", lambda tool: tool)
    with pytest.raises(Unavailable, match="needs root"), link.shaped():
        pass
    monkeypatch.setattr(link.shutil, "which", lambda tool: None)
    assert "iproute2" in link.unavailable()
