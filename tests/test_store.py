"""The cache of published files, against a server on this machine that behaves badly in every way we know."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mmref.cli import main
from mmref.errors import CheckpointError, ValueProblem
from mmref.models.variants import ACCURACY, VARIANTS
from mmref.weights import download as downloading
from mmref.weights import read_checkpoint, store
from mmref.weights.pth_writer import write_pth

NAME = "mobilemamba_t2"


class Server(ThreadingHTTPServer):
    """Serves `content` for any path; `ways` is what goes wrong, request by request, the last one for ever."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.ways, self.requests = content, '"v1"', ["good"], []
        self.pause = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        way = server.ways.pop(0) if len(server.ways) > 1 else server.ways[0]
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked, self.headers.get("If-Range")))
        content, total, start = server.content, len(server.content), 0
        if way in ("404", "403", "500", "416"):
            self.send_error(int(way))
            return
        if way == "html":
            content, asked = b"<!DOCTYPE html><html>Sign in</html>", None
        if way == "redirect":
            self.send_response(302)
            self.send_header("Location", self.headers["Host"] and server.address + "elsewhere")
            self.end_headers()
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and way != "ignores range" and self.headers.get("If-Range") == server.tag:
            start = int(match[1])
            if start >= total and way != "lies long":
                self.send_error(416)
                return
            total += 1000 * (way == "lies long")
            self.send_response(206)
            start += way == "wrong range"
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = content[start:]
        length = len(body) + {"lies long": 1000, "lies short": -100}.get(way, 0)
        if way != "no length":
            self.send_header("Content-Length", str(length))
        if server.tag and way != "no tag":
            self.send_header("ETag", server.tag)
        self.end_headers()
        if way.startswith("cut"):
            body = body[:int(way.split()[1])]
        try:
            for at in range(0, len(body), 4096):
                self.wfile.write(body[at:at + 4096])
                time.sleep(server.pause)
        except OSError:
            pass
        self.close_connection = True


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "file.pth"
    write_pth(path, {"w": np.arange(20_000, dtype=np.float32)})
    return path.read_bytes()


@pytest.fixture
def server(content, tmp_path, monkeypatch):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "MMREF_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MMREF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MMREF_WEIGHTS_URL", server.address)
    monkeypatch.setattr(downloading, "PAUSE", 0.001)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name not in (path.name, f"{path.name}.sha256",
                                                                         f"{path.name}.lock"))


def test_the_manifest():
    """Catches a figure or name that differs from the table of variants, and a missing file."""
    entries = store.manifest()
    published = {name for name, figures in ACCURACY.items() if "top1_dagger" in figures}  # nano is our own
    assert len(entries) == 12 and {e.variant for e in entries.values()} == published
    for name, entry in entries.items():
        dagger = name.endswith("s")
        figures = ACCURACY[entry.variant]
        assert entry.variant in VARIANTS and entry.licence == "MIT"
        assert (entry.top1, entry.top5) == (figures["top1" + "_dagger" * dagger], figures["top5" + "_dagger" * dagger])
        folder = "MobileMamba_" + entry.variant[-2:].upper() + "s" * dagger
        assert entry.url == f"https://huggingface.co/Lewandofski/MobileMamba/resolve/main/{folder}/{name}.pth"
    with pytest.raises(ValueProblem, match="mobilemamba_t2s.*got 'mobilemamba_nano'"):
        store.fetch("mobilemamba_nano")


def test_a_good_server(server, content):
    """Catches wrong bytes, a second download of what is there, and a record that sha256sum would not read."""
    path = store.fetch("MobileMamba_T2")
    assert path.read_bytes() == content and leftovers(path) == []
    assert server.requests == [("/MobileMamba_T2/mobilemamba_t2.pth", None, None)]
    digest = hashlib.sha256(content).hexdigest()
    assert path.with_name("mobilemamba_t2.pth.sha256").read_text() == f"{digest}  mobilemamba_t2.pth\n"
    assert store.fetch(NAME) == path and len(server.requests) == 1


@pytest.mark.parametrize("ways", [
    ["cut 50000", "good"], ["cut 0", "good"], ["cut 30000", "cut 1", "cut 5", "cut 20000", "good"],
    ["500", "500", "good"],
    ["cut 50000", "ignores range"], ["cut 50000", "wrong range", "good"], ["cut 50000", "416", "good"],
    ["redirect", "good"], ["lies long", "good"], ["no length"], ["no tag"], ["cut 5", "500"] * 4 + ["good"],
])
def test_a_bad_server_that_gets_better(server, content, ways):
    """Catches a resumed file with a hole or a doubled piece, and giving up too early."""
    server.ways = list(ways)
    path = store.fetch(NAME)
    assert path.read_bytes() == content and leftovers(path) == []


def test_resuming_saves_bytes(server, content):
    """Catches a download that starts at zero each time."""
    server.ways = ["cut 50000", "good"]
    store.fetch(NAME)
    assert server.requests[1][1:] == ("bytes=50000-", '"v1"')


@pytest.mark.parametrize("ways, message", [
    (["404"], "answered 404"), (["403"], "answered 403"), (["500"], "answered 500.*repeatedly"),
    (["html"], "HTML page"), (["lies short"], "zip"), (["lies long"], "ended after 8"), (["cut 0"], "ended after 0"),
    (["416"], "answered 416"),
])
def test_a_bad_server_that_stays_bad(server, ways, message):
    """Catches endless attempts, and anything but a checkpoint entering the cache."""
    server.ways = list(ways)
    with pytest.raises(CheckpointError, match=message):
        store.fetch(NAME)
    path, _ = store.cached(NAME)
    assert not path.exists() and len(server.requests) < 15
    server.ways = ["good"]
    assert store.fetch(NAME).read_bytes() == server.content


def test_another_file_by_the_second_attempt(server, content, tmp_path):
    """Catches the first half of one file joined with the second half of another."""
    server.ways = ["cut 50000", "404"]
    with pytest.raises(CheckpointError, match="404"):
        store.fetch(NAME)
    write_pth(tmp_path / "new.pth", {"w": np.arange(20_000, dtype=np.float32)[::-1]})
    server.content, server.tag, server.ways = (tmp_path / "new.pth").read_bytes(), '"v2"', ["good"]
    assert store.fetch(NAME).read_bytes() == server.content


def test_the_recorded_sha256_is_enforced(server, content, tmp_path):
    """Catches a published file that changed, or a cached one, being used in silence; the old one stays."""
    path = store.fetch(NAME)
    write_pth(tmp_path / "new.pth", {"w": np.ones(5, np.float32)})
    server.content, server.tag = (tmp_path / "new.pth").read_bytes(), '"v2"'
    with pytest.raises(CheckpointError, match="sha256 must be"):
        store.fetch(NAME, force=True)
    assert path.read_bytes() == content and leftovers(path) == []
    path.write_bytes(server.content)
    with pytest.raises(CheckpointError, match="sha256 must be .* delete mobilemamba_t2.pth.sha256"):
        store.fetch(NAME)
    path.with_name(f"{path.name}.sha256").write_text("nonsense")
    with pytest.raises(CheckpointError, match="must begin with a sha256"):
        store.fetch(NAME)


def test_pretrained_path(server, content, monkeypatch):
    """Catches a conversion done at every start, a network needed for what is there, and a changed file taken."""
    path = store.pretrained_path(NAME)
    found = read_checkpoint(path)
    assert found.format == "safetensors" and found.metadata["source"].startswith("https://huggingface.co/")
    assert found.metadata["source_sha256"] == hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("MMREF_OFFLINE", "1")
    before = path.stat().st_mtime_ns
    assert store.pretrained_path(NAME) == path and path.stat().st_mtime_ns == before
    path.unlink()
    assert store.pretrained_path(NAME) == path  # converted anew from the published file
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="sha256 must be"):
        store.pretrained_path(NAME)


def test_offline(server, monkeypatch, capsys):
    """Catches an error that does not say which file to get, from where and what to do with it, and any traffic."""
    monkeypatch.setenv("MMREF_OFFLINE", "1")
    assert main(["classify", "--sample", "cat", "--model", "mobilemamba_t2s"]) == 2
    error = capsys.readouterr().err
    _, converted = store.cached("mobilemamba_t2s")
    for part in ("MobileMamba_T2s/mobilemamba_t2s.pth", "https://huggingface.co/Lewandofski/MobileMamba",
                 f"mmref convert mobilemamba_t2s.pth {converted}"):
        assert part in error
    assert error.count("\n") == 1 and server.requests == []
    monkeypatch.delenv("MMREF_OFFLINE")
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="cannot be reached.*By hand"):
        store.fetch("mobilemamba_t2s")
    monkeypatch.setenv("MMREF_WEIGHTS_URL", "file:///etc")
    with pytest.raises(CheckpointError, match="must be an address"):
        store.fetch("mobilemamba_t2s")


def test_by_hand(server, content, tmp_path, monkeypatch):
    """Catches the advice of the offline error not working: convert into the cache, and the model is there."""
    monkeypatch.setenv("MMREF_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="By hand") as caught:
        store.pretrained_path(NAME)
    (tmp_path / "mobilemamba_t2.pth").write_bytes(content)
    command = re.search("`mmref (.*)`", str(caught.value))[1].split()
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert store.pretrained_path(NAME).exists()


def test_https_is_not_left(monkeypatch):
    """Catches a redirect from https to plain http being followed."""
    import urllib.request
    request = urllib.request.Request("https://huggingface.co/x")
    handler = downloading._Redirects()
    with pytest.raises(CheckpointError, match="not https"):
        handler.redirect_request(request, None, 302, "", {}, "http://127.0.0.1/x")
    assert handler.redirect_request(request, None, 302, "", {}, "https://127.0.0.1/x").full_url == "https://127.0.0.1/x"


def test_a_file_too_large(server, monkeypatch):
    """Catches a disk filled by a server that never stops."""
    for way in ("good", "no length"):
        server.ways = [way]
        monkeypatch.setattr(downloading, "MAX_FILE", 10_000)
        with pytest.raises(CheckpointError, match="at most 10000|more than 10000"):
            store.fetch(NAME)


FETCH = "from mmref.weights import store; print('ready', flush=True); store.fetch('mobilemamba_t2', progress=False)"


def test_two_at_once(server, content):
    """Catches two processes that write one part: one download, both with the file."""
    server.pause = 0.01
    processes = [subprocess.Popen([sys.executable, "-c", FETCH], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert store.cached(NAME)[0].read_bytes() == content and len(server.requests) == 1


def test_kill_9(server, content):
    """Catches a part taken for the file, a lock that outlives its process, and a resumption that loses bytes."""
    path, server.pause = store.cached(NAME)[0], 0.02
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        part = path.with_name(f"{path.name}.part")
        size = part.stat().st_size if part.exists() else 0
        while process.poll() is None and not (part.exists() and part.stat().st_size > size):
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert not path.exists()
    server.pause = 0
    assert store.fetch(NAME).read_bytes() == content
    assert any(asked for _, asked, _ in server.requests)  # at least one of them went on


KILLED = """
import os, signal, sys
from mmref.weights import store
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
stage = sys.argv[1]
if stage == 'checking': store.read_checkpoint = die
if stage == 'hashing': store.sha256 = die
if stage == 'recording': store.record_sha256 = die
if stage == 'recorded': real = store.record_sha256; store.record_sha256 = lambda *a: (real(*a), die())
if stage == 'placed': store.discard = die
if stage == 'converting': store.convert = die
if stage == 'converted': real = store.convert; store.convert = lambda *a, **k: (real(*a, **k), die())
store.pretrained_path('mobilemamba_t2')
"""


@pytest.mark.parametrize("stage", ["checking", "hashing", "recording", "recorded", "placed", "converting", "converted"])
def test_kill_9_after_the_download(server, content, stage):
    """Catches a moment between download and use after which the cache is wrong or stuck."""
    path, converted = store.cached(NAME)
    path.parent.mkdir(parents=True)
    converted.with_name(f"{converted.name}.sha256").write_text("0" * 64 + "  of an earlier conversion\n")
    done = subprocess.run([sys.executable, "-c", KILLED, stage], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    weights = read_checkpoint(store.pretrained_path(NAME)).tensors["w"]
    assert (weights == np.arange(20_000)).all() and path.read_bytes() == content


def test_a_full_disk(server, content):
    """Catches a truncated file in the cache when the disk is full, and an error of many lines."""
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); "
            "from mmref.cli import main; sys.exit(main(['weights', 'fetch', 'mobilemamba_t2']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "t2.pth.part: File too large" in done.stderr
    assert not store.cached(NAME)[0].exists()
    assert store.fetch(NAME).read_bytes() == content


def test_the_command(server, content, capsys, tmp_path):
    """Catches a command that fetches nothing, verifies everything, or cannot be read by a program."""
    assert main(["weights", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 12 and all(row["here"] == [] for row in rows)
    assert main(["weights", "fetch", NAME]) == 0
    path = store.cached(NAME)[0]
    assert capsys.readouterr().out.startswith(f"{path}  sha256 {hashlib.sha256(content).hexdigest()}")
    assert main(["weights", "list"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[2:14]].count("yes") == 1
    assert main(["weights", "path", NAME]) == 0 and capsys.readouterr().out == f"{path}\n"
    assert main(["weights", "path"]) == 0 and capsys.readouterr().out == f"{path.parent}\n"
    assert main(["weights", "verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["sha256_checked"] is True
    assert main(["weights", "verify", str(path), "--sha256", "0" * 64]) == 2
    assert "sha256 must be 000" in capsys.readouterr().err
    from mmref.models.create import pretrained_weights
    assert main(["weights", "verify", str(pretrained_weights("mobilemamba_nano"))]) == 0
    assert "fits    mobilemamba_nano\n" in capsys.readouterr().out
    (tmp_path / "bad.pth").write_bytes(content[:-9])
    assert main(["weights", "verify", str(tmp_path / "bad.pth")]) == 2 and "bad.pth" in capsys.readouterr().err
