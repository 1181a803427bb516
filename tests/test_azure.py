"""`az://` against Azurite, Microsoft's own emulator, where npm can install it.

`gs://` has no such test: gcp-storage-emulator 2026.7.19 answers without an ETag, which the client
requires, so that only the reader's tests on `s3://` speak for it.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from pipeline.errors import SourceChanged, StoreUnusable
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.store.folder import Folder
from pipeline.transport import object_client, objects
from pipeline.transport.access import ObjectKey
from tests.suites import trajectory, write_suite
from tests.test_objects import dots

pytestmark = [
    pytest.mark.slow,
    # Azurite is published for npm alone, which nothing else here needs: `make test-all` says so
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]

ACCOUNT = "devstoreaccount1"
# The key that every Azurite has, printed in its documentation: no secret.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("azurite")
    subprocess.run(["npm", "install", "--silent", "azurite@3"], cwd=folder, check=True, timeout=300)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [folder / "node_modules/.bin/azurite-blob", "--silent", "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--blobPort", str(port)]
    server = subprocess.Popen(command, cwd=folder)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


@pytest.fixture
def container(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", endpoint)
    object_client.client.cache_clear()
    name = f"suites{time.time_ns()}"
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{k}:{v}\n" for k, v in sorted(headers.items()))
    signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers |= {"Content-Length": "0", "Content-Type": ""}
    url = f"{endpoint}/{ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="PUT")).close()
    return f"az://{name}"


def test_a_container_gives_what_a_directory_gives(container: str, tmp_path: Path) -> None:
    rows = trajectory("walk", 4, 40_000, 0.1)
    suite = write_suite(tmp_path / "run-1", {"layers.0.w.weight": rows, "b": rows[:, :3]})
    store = from_url(f"{container}/team/run-1")
    for path in suite.rglob("*.safetensors"):
        obstore.put(store, str(path.relative_to(suite)), path.read_bytes())
    found = dots(f"{container}/team/run-1", tmp_path / "container")
    assert found == dots(str(suite), tmp_path / "local")
    plan, source = make_plan(Request(f"{container}/team/run-1"))
    access = source.access(plan.files[0])
    assert isinstance(access, ObjectKey)
    obstore.put(store, "step0/model.safetensors", b"x" * plan.files[0].size)
    with pytest.raises(SourceChanged, match="changed since it was planned"):
        objects.read(access, 0, memoryview(bytearray(100)))


def test_a_container_holds_a_store(container: str, tmp_path: Path) -> None:
    rows = trajectory("walk", 4, 40_000, 0.1)
    suite = write_suite(tmp_path / "run-1", {"layers.0.w.weight": rows, "b": rows[:, :3]})
    assert dots(str(suite), f"{container}/store") == dots(str(suite), tmp_path / "local")
    folder = Folder(f"{container}/store")
    assert folder.list("_tiles") == []
    assert folder.create("a", b"1") and not folder.create("a", b"2")
    folder.replace("a", b"3")
    assert folder.read("a") == b"3"
    folder.delete(["a", "b"])
    assert folder.read("a") is None
    with pytest.raises(StoreUnusable, match="no such bucket"):
        Folder(f"{container}2/store").create("a", b"")
