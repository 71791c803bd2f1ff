"""Features that lie elsewhere: read by ranges, never downloaded whole."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from avbench.evaluation.evaluator import evaluate
from avbench.features.store import FeatureStore
from avbench.types import AvbenchError
from tests.helpers.processes import forked


class Server(ThreadingHTTPServer):
    """Serves a folder and counts the bytes of each file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent, self.ranges = folder, Counter(), True
        self.down = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/store"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer()

    def answer(self, head: bool = False) -> None:
        name = self.path.rpartition("/")[2]
        path = self.server.folder / name
        missing = not (path.is_file() and self.path.startswith("/store/"))
        if self.server.down or missing:
            self.send_response(503 if self.server.down else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        asked = self.headers.get("Range") if self.server.ranges else None
        self.send_response(206 if asked else 200)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            last = min(int(last or len(content) - 1), len(content) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[int(first) : last + 1]
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head:
            self.server.sent[name] += len(content)
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def store(tiny, with_features):
    return with_features(tiny())


@pytest.fixture
def server(store):
    server = Server(store.folder)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def in_memory(store):
    memory = fsspec.filesystem("memory")
    for path in store.folder.iterdir():
        memory.pipe_file(f"/elsewhere/{path.name}", path.read_bytes())
    yield "memory://elsewhere"
    memory.rm("/elsewhere", recursive=True)


def test_the_same_rows_from_everywhere(store, server, in_memory):
    rows = np.array([7, 8, 100, 3, 9, 7])
    for place in (in_memory, server.url, f"{server.url}/", str(store.folder)):
        there = FeatureStore.open(place)
        np.testing.assert_array_equal(there.audio(rows), store.audio(rows))
        np.testing.assert_array_equal(there.visual(rows), store.visual(rows))
        assert there.features_hash == store.features_hash
        assert there.damaged() == []


def test_a_forked_process_opens_connections_of_its_own(store, server):
    there = FeatureStore.open(server.url)
    rows = np.array([7, 8, 100])
    np.testing.assert_array_equal(there.visual(rows), store.visual(rows))
    np.testing.assert_array_equal(forked(lambda: there.visual(rows)), store.visual(rows))
    assert forked(there.damaged) == []


def test_only_what_is_asked_for_is_fetched(store, server):
    there = FeatureStore.open(server.url)
    opening = server.sent["visual.npy"]
    clip = store.visual(np.array([0])).nbytes
    assert opening <= 4096
    there.visual(np.array([30, 31, 90]))
    assert server.sent["visual.npy"] - opening == 3 * clip


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["ram", "disk"])
def test_a_run_on_features_elsewhere_is_the_same(
    tiny, store, server, in_memory, tmp_path, residency
):
    found = []
    for number, place in enumerate((None, in_memory, server.url)):
        out = tmp_path / str(number)
        evaluate(
            tiny(),
            "ssil",
            seeds=[0],
            out=out,
            features=place,
            residency=residency,
            settings={"epochs": "1", "batch_size": "8"},
        )
        files = sorted(out.glob("seed-0/step-*.safetensors"))
        found.append([path.read_bytes() for path in files])
    assert found[0] == found[1] == found[2]


def test_visual_methods_run_on_features_elsewhere(tiny, store, in_memory, tmp_path):
    result = evaluate(
        tiny(),
        "finetune",
        seeds=[0],
        out=tmp_path / "run",
        features=in_memory,
        modality="visual",
        settings={"epochs": "1"},
    )
    assert result.config["features_hash"] == store.features_hash
    assert not fsspec.filesystem("memory").exists("/elsewhere/means.npy")


def test_the_preset_is_that_of_the_place(tiny, store, tmp_path):
    options = {"seeds": [0], "out": tmp_path / "run", "features": str(store.folder)}
    with pytest.raises(AvbenchError, match="of preset filterbank, not avcil: leave --preset out"):
        evaluate(tiny(), "finetune", preset="avcil", **options)


def test_what_is_wrong_with_a_place_is_one_line(store, server, tmp_path):
    with pytest.raises(AvbenchError, match="no features in .*nothing: give it"):
        FeatureStore.open(tmp_path / "nothing", remedy="give it")
    with pytest.raises(AvbenchError, match="no features in http.*/other"):
        FeatureStore.open(server.url.replace("/store", "/no/other"))
    with pytest.raises(AvbenchError, match="nosuch://x: cannot be opened .*: check the address"):
        FeatureStore.open("nosuch://x")
    there = FeatureStore.open(server.url)
    server.down = True
    with pytest.raises(AvbenchError, match=r"visual\.npy: cannot be read \(503"):
        there.visual(np.array([0, 5]))
    with pytest.raises(AvbenchError, match="store: cannot be read .*check the path or the connec"):
        FeatureStore.open(server.url)
    server.down, server.ranges = False, False
    with pytest.raises(AvbenchError, match="answers no range requests"):
        there.visual(np.array([0, 5]))


@pytest.mark.slow
def test_from_the_command_line(avbench, tiny, store, server, tmp_path):
    command = ["evaluate", "--method", "finetune", "--benchmark", "tiny.toml", "--seeds", "0"]
    command += ["--set", "epochs=1", "--json", "--residency", "disk"]
    record = json.loads(avbench(*command, "--features", server.url).stdout)
    assert record["config"]["features_hash"] == store.features_hash
    assert {cost["residency"] for run in record["runs"] for cost in run["cost"]} == {"disk"}
    result = avbench(*command, "--features", "http://127.0.0.1:9/store", "--force", expect=1)
    assert result.stderr.count("\n") == 1
    assert "cannot be read" in result.stderr
