"""The same over TLS: by an authority of the test's own, which SSL_CERT_FILE names, and not without."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.hub import Authority, Fault, Hub
from tests.trained import STEPS

NAME = "org/secured"


def analysed(endpoint: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.analyze", NAME, "--store", str(folder / "store")]
    return subprocess.run(
        [*command, "--executor", "local", "--json"],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_over_tls(trained: dict[str, Path], tmp_path: Path) -> None:
    """Listings in pages, addresses, ranges, and connections that break."""
    hub, authority = Hub(page_size=2), Authority(tmp_path)
    for step in STEPS:
        hub.repository(NAME).commit_folder(trained["neox-f16"] / f"step{step}", f"step{step}")
    for action in ("truncate", "reset"):
        hub.faults.add(Fault(action, after_bytes=100, probability=0.1))
    with hub.serve(authority) as endpoint:
        assert endpoint.startswith("https://") and hub.cdn_url.startswith("https://")
        done = analysed(endpoint, tmp_path, SSL_CERT_FILE=str(authority.ca))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    assert hub.count("tree") > len(STEPS) and hub.count("cdn") > 0
    assert {fault.action for fault, _ in hub.faults.applied} == {"truncate", "reset"}


def test_a_stranger_is_not_trusted(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ours, hub = Authority(tmp_path), Hub()
    with hub.serve(ours) as endpoint:
        for authority, expected in ((ours, 404), (Authority(other), None)):
            trust = ssl.create_default_context(cafile=authority.ca)
            there = http.client.HTTPSConnection(urlsplit(endpoint).netloc, context=trust)
            with contextlib.closing(there):
                if expected is None:
                    with pytest.raises(ssl.SSLCertVerificationError):
                        there.request("GET", "/")
                else:
                    there.request("GET", "/")
                    assert there.getresponse().status == expected
