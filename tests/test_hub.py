"""Downloads of models and datasets, tried against a server of our own on this machine."""
import contextlib
import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data import hub

CONTENT = bytes(range(256)) * 40_000  # 10 MB


class Server(http.server.BaseHTTPRequestHandler):
    """The hub and its store: the hub redirects to the store, which sends a file or a part of it."""

    def do_GET(self):
        s = self.server
        s.requests.append((self.path, self.headers["Range"]))
        if "/resolve/" in self.path and self.path.endswith("model.safetensors"):
            self.send_response(302)
            for name, value in (("X-Linked-Size", s.size), ("X-Linked-Etag", f'"{s.tag}"'),
                                ("Location", "/store"), ("Content-Length", 0)):
                self.send_header(name, str(value))
            return self.end_headers()
        content = s.content if self.path == "/store" else s.files.get(
            self.path, b'{"model_type": "gpt2"}')
        start = int(self.headers["Range"][6:-1]) if s.ranges else 0
        if s.ranges and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if s.ranges else 200)
        if s.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if (self.path == "/store" or self.path in s.files) and s.breaks:
            rest = rest[: s.breaks.pop(0)]  # and the connection ends
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.content, server.requests, server.breaks, server.ranges = CONTENT, [], [], True
    server.files = {}  # path -> bytes, of datasets
    server.size, server.tag = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NANOINSTRUCTGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with contextlib.closing(server.socket):
        yield server
        server.shutdown()
        thread.join()


def store_requests(server):
    return [asked for path, asked in server.requests if path == "/store"]


def whole(folder):
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")} == set(hub.FILES)


def test_a_model_is_downloaded_once(server):
    folder = hub.folder("gpt2-medium")
    assert server.requests[0][0] == "/openai-community/gpt2-medium/resolve/main/config.json"
    assert whole(folder) and (folder / "model.safetensors").read_bytes() == CONTENT
    asked = len(server.requests)
    assert hub.folder("gpt2-medium") == folder and len(server.requests) == asked


def test_a_broken_connection_goes_on_where_it_broke(server):
    server.breaks = [1000, 2_000_000]
    folder = hub.folder("gpt2")
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert store_requests(server) == ["bytes=0-", "bytes=1000-", "bytes=2001000-"]


def test_an_interrupted_download_goes_on_at_the_next_run(server):
    """The second attempt brings nothing: one clear line, and what has come is kept."""
    server.breaks = [3_000_000, 0]
    with pytest.raises(SystemExit, match="gpt2 could not be downloaded .*broke.*try again"):
        hub.folder("gpt2")
    folder = hub.Path(hub.os.environ["NANOINSTRUCTGPT_CACHE"], "gpt2")
    assert not (folder / "model.safetensors").exists()
    assert (folder / "model.safetensors.part").read_bytes() == CONTENT[:3_000_000]
    hub.folder("gpt2")
    assert whole(folder) and (folder / "model.safetensors").read_bytes() == CONTENT
    assert store_requests(server)[-1] == "bytes=3000000-"


def test_a_server_without_ranges_begins_again(server):
    server.ranges, server.breaks = False, [3_000_000]
    folder = hub.folder("gpt2")
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_download_that_ended_before_its_check_is_only_checked(server, tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "model.safetensors.part").write_bytes(CONTENT)
    folder = hub.folder("gpt2")
    assert whole(folder) and store_requests(server) == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("wrong", ["hash", "size", "size, no hash", "beginning",
                                   "length of the beginning"])
def test_what_is_not_the_hubs_file_is_deleted(server, tmp_path, wrong):
    """Another content, another size, or the beginning of something else to go on from."""
    (tmp_path / "gpt2").mkdir()
    part = tmp_path / "gpt2" / "model.safetensors.part"
    if wrong == "hash":
        server.content = CONTENT[:-1] + b"x"
    elif wrong.startswith("size"):
        server.content = CONTENT + b"x"
        server.tag = "0" * 40 if wrong == "size, no hash" else server.tag
    elif wrong == "beginning":
        part.write_bytes(b"something else")
    else:
        part.write_bytes(CONTENT + b"and more")
    with pytest.raises(SystemExit, match="model.safetensors has another size or sha256"):
        hub.folder("gpt2")
    assert [p.name for p in part.parent.glob("model*") if p.suffix != ".lock"] == []
    server.content = CONTENT
    assert (hub.folder("gpt2") / "model.safetensors").read_bytes() == CONTENT


def test_without_a_network_it_says_what_to_put_where(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # a port where nobody listens
    with pytest.raises(SystemExit) as stop:
        hub.folder("gpt2-xl")
    for piece in ("gpt2-xl could not be downloaded", "config.json and model.safetensors",
                  "http://127.0.0.1:1/openai-community/gpt2-xl", str(tmp_path / "gpt2-xl")):
        assert piece in stop.value.code
    assert "\n" not in stop.value.code


def test_what_was_put_there_by_hand_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("NANOINSTRUCTGPT_CACHE", str(tmp_path))
    (tmp_path / "gpt2").mkdir()
    for name in hub.FILES:
        (tmp_path / "gpt2" / name).write_text("{}")
    assert hub.folder("gpt2") == tmp_path / "gpt2"


def test_an_error_of_the_server_is_told(server, monkeypatch):
    monkeypatch.setattr(Server, "do_GET", lambda self: self.send_error(503, "Busy"))
    with pytest.raises(SystemExit, match=r"could not be downloaded \(.*Busy"):
        hub.folder("gpt2")


def test_several_processes_download_once(server):
    """As torchrun's ranks do; here threads, whose locks are as separate as those of processes."""
    threads = [threading.Thread(target=hub.folder, args=("gpt2",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store_requests(server)) == 1


# ------------------------------------------------------------------------------------- datasets

HH = "/datasets/Anthropic/hh-rlhf/resolve/main/{}-base/train.jsonl.gz"


def chats(name):
    """A packed file of 400 pairs as hh-rlhf has them."""
    start = "\n\nHuman: {} {}?\n\nAssistant:"
    return gzip.compress("".join(json.dumps({
        side: start.format(name, i) + f" {side} {i}" for side in ("chosen", "rejected")}) + "\n"
        for i in range(400)).encode())


@pytest.fixture
def prepare(server, tmp_path):
    """python -m data.public --name=hh-rlhf, in a process of its own: its (code, output, errors)."""
    server.files = {HH.format(name): chats(name) for name in ("helpful", "harmless")}

    def run():
        done = subprocess.run([sys.executable, "-m", "data.public", "--name=hh-rlhf",
                               f"--out={tmp_path}/out"], cwd=Path(hub.__file__).parent,
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_dataset_is_prepared_from_its_public_url(server, prepare, tmp_path):
    """Downloaded once, however often it is prepared; a connection that breaks is taken up."""
    server.breaks = [1000, 500]
    for _ in range(2):
        code, output, errors = prepare()
        assert code == 0, errors
        assert "800 rows read" in output and len(list((tmp_path / "out").iterdir())) == 9
    helpful, harmless = server.files
    assert server.requests == [(helpful, "bytes=0-"), (helpful, "bytes=1000-"),
                               (helpful, "bytes=1500-"), (harmless, "bytes=0-")]
    kept = tmp_path / "datasets" / "hh-rlhf" / "helpful-base-train.jsonl.gz"
    assert kept.read_bytes() == server.files[helpful]


def test_a_dataset_without_a_network_is_one_line(server, prepare, tmp_path, monkeypatch):
    """That says what to put where; nothing is written. What has come stays for the next time."""
    server.breaks = [1000, 0]
    code, _, errors = prepare()
    assert code == 1 and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()
    for piece in ("hh-rlhf could not be downloaded", "goes on from where it stopped", "--file",
                  hub.HUB + HH.format("helpful"), f"{tmp_path}/datasets/hh-rlhf",
                  "harmless-base-train.jsonl.gz"):
        assert piece in errors
    assert prepare()[0] == 0 and server.requests[2][1] == "bytes=1000-"


def test_a_dataset_that_came_damaged_is_one_line(server, prepare, tmp_path):
    server.files[HH.format("helpful")] = server.files[HH.format("helpful")][:-50]
    code, _, errors = prepare()
    assert code == 1 and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "helpful-base-train.jsonl.gz:" in errors and "damaged .gz" in errors


def test_urls_are_whole_and_files_do_not_share_a_name():
    from data import public
    for _, _, urls in public.DATASETS.values():
        if not isinstance(urls, str):
            assert all(url.startswith("https://") and "{" not in url for url in urls)
            assert len({"-".join(url.split("/")[-2:]) for url in urls}) == len(urls)
