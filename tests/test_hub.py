"""Models and datasets of the hub, through huggingface_hub: against a server of our own on this
machine that speaks as much of the hub as a download needs, and without any server."""
import contextlib
import ctypes
import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data import hub, public
from data.formats import hh_rlhf
from runtime import pretrained

today = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: "
                            "pip install -r requirements-dev.txt")
pytestmark = pytest.mark.skipif(int(today.__version__.split(".")[0]) < 1,
                                reason="transformers 4 wants an older huggingface_hub")

ROOT = Path(hub.__file__).parents[1]
WEIGHTS = bytes(range(256)) * 40_000  # 10 MB
CONFIG = json.dumps({"model_type": "gpt2", "vocab_size": 50257, "n_positions": 8, "n_layer": 1,
                     "n_head": 1, "n_embd": 8}).encode()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOBODY = "http://127.0.0.1:1"  # a port where nobody listens
GPT2 = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


class Server(http.server.BaseHTTPRequestHandler):
    """/[datasets/]ORG/NAME/resolve/REVISION/FILE: HEAD tells size, ETag and commit; GET sends the
    file or its end, and breaks off where it is told to. /plain/FILE is a page of another kind."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        s = self.server
        if self.path.startswith("/api/"):  # no file: the library's own questions
            return self.answer(404, {})
        s.requests.append((self.command, self.path, self.headers["Range"]))
        s.tokens.add(self.headers["Authorization"])
        repo, _, rest = self.path[1:].partition("/resolve/")
        file = rest.partition("/")[2] or repo
        content = s.repos.get(repo, {}).get(file) if rest else s.plain.get(file)
        if s.busy:
            return self.answer(503, {})
        if repo in s.errors or content is None:
            code, error = s.errors.get(repo, (404, "EntryNotFound" if repo in s.repos
                                              else "RepoNotFound"))
            return self.answer(code, {"X-Error-Code": error, "X-Repo-Commit": COMMIT})
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        rest = content[start:]
        self.answer(206 if start else 200, {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT,
            "Content-Length": len(rest), **s.also,
            **({"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
               if start else {})})
        if self.command == "GET":
            self.wfile.write(rest[: s.breaks.pop(0)] if s.breaks else rest)

    def answer(self, code, headers):
        self.send_response(code)
        for name, value in {"Content-Length": 0, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


def forget():
    """Forget the library, which reads its variables once: when it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@contextlib.contextmanager
def library(home, **variables):
    """The library with an empty home and nobody to ask, unless variables say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        kept = {k: v for k, v in sys.modules.items() if k.split(".")[0] == "huggingface_hub"}
        for name in [k for k in os.environ if k.startswith("HF_")] + ["XDG_CACHE_HOME"]:
            patch.delenv(name, raising=False)
        for name, value in {"HF_HOME": str(home), "HF_ENDPOINT": NOBODY, "no_proxy": "127.0.0.1",
                            **variables}.items():
            patch.setenv(name, value)
        forget()
        yield patch
        forget()
    sys.modules.update(kept)


@pytest.fixture
def offline(tmp_path):
    with library(tmp_path) as patch:
        yield patch


@pytest.fixture
def server(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.repos = {"openai-community/gpt2": dict(GPT2)}
    server.requests, server.tokens, server.breaks, server.also = [], set(), [], {}
    server.errors, server.busy, server.plain = {}, False, {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with contextlib.closing(server.socket), library(tmp_path, HF_ENDPOINT=server.url) as patch:
        patch.setattr(time, "sleep", lambda seconds: None)  # between the library's attempts
        yield server
        server.shutdown()
        thread.join()


def asked(server, method="GET"):
    """[(file, range)] of the requests of one method."""
    return [(path.rpartition("/")[2], part) for m, path, part in server.requests if m == method]


def home_of(tmp_path, repo, files, kind="models", commit=COMMIT):
    """A cache as the library leaves it, made by hand."""
    folder = tmp_path / "hub" / f"{kind}--{repo.replace('/', '--')}"
    for name, content in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def stopped(name):
    """The one line with which the download of a model stops."""
    with pytest.raises(SystemExit) as stop:
        pretrained.download(name)
    assert "\n" not in stop.value.code
    return stop.value.code


# --------------------------------------------------------------------------------------- models

@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_model_is_downloaded_once(server, tmp_path, name):
    """Into the cache of all users of the library."""
    folder = pretrained.download(name)
    assert folder == tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / COMMIT
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == GPT2
    assert asked(server) == [("config.json", None), ("model.safetensors", None)]
    assert server.requests[-1][1].endswith(f"/{COMMIT}/model.safetensors"), "of one commit"
    count = len(server.requests)
    assert pretrained.download(name) == folder and len(server.requests) == count
    assert server.tokens == {None}


def test_the_token_is_sent(server):
    with library(os.environ["HF_HOME"], HF_ENDPOINT=server.url, HF_TOKEN="hf_secret"):
        pretrained.download("gpt2")
    assert server.tokens == {"Bearer hf_secret"}


def test_a_broken_connection_goes_on_where_it_broke(server):
    """What is lost is the last block, of 10 MiB."""
    content = server.repos["openai-community/gpt2"]["model.safetensors"] = WEIGHTS * 3
    server.breaks = [len(CONFIG), 11 * 2**20, 12 * 2**20]
    folder = pretrained.download("gpt2")
    assert (folder / "model.safetensors").read_bytes() == content
    assert [part for _, part in asked(server)] == [
        None, None, f"bytes={10 * 2**20}-", f"bytes={20 * 2**20}-"]


def test_a_connection_that_stays_broken_leaves_no_half_file(server, tmp_path):
    server.breaks = [len(CONFIG), 3_000_000] + [0] * 20
    assert "gpt2 is no folder here" in stopped("gpt2")
    assert not list(tmp_path.rglob("model.safetensors")) and len(asked(server)) < 20
    server.breaks = []
    folder = pretrained.download("gpt2")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_of_another_size_than_the_hubs_is_refused(server, tmp_path):
    server.also = {"X-Linked-Size": len(CONFIG) + 1}
    assert f"should be of size {len(CONFIG) + 1}" in stopped("gpt2")
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("name, files", [
    ("gpt2-xl", ["config.json", "model.safetensors"]),
    ("someone/theirs", ["config.json", "model.safetensors", "tokenizer.json"])])
def test_without_a_network_one_line_says_what_to_put_where(offline, tmp_path, name, files):
    """At once: the library would try for 20 seconds."""
    offline.setattr(time, "sleep", None)
    repo = name if "/" in name else f"openai-community/{name}"
    line = stopped(name)
    for piece in (f"error: {name} is no folder here", "Connection refused",
                  f"hf download {repo} {' '.join(files)}", f"{NOBODY}/{repo}",
                  str(tmp_path / "hub" / f"models--{repo.replace('/', '--')}")):
        assert piece in line


def test_offline_mode_is_respected(server):
    """Nobody is asked, though there is a server."""
    with library(os.environ["HF_HOME"], HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1"):
        assert "HF_HUB_OFFLINE` environment variable)" in stopped("gpt2")
    assert server.requests == []


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {}])
@pytest.mark.parametrize("commit", [COMMIT, "copied"])
def test_what_is_in_the_cache_needs_no_network(tmp_path, variables, commit):
    folder = home_of(tmp_path, "openai-community/gpt2", GPT2, commit=commit)
    with library(tmp_path, **variables):
        assert pretrained.download("gpt2") == folder


def bound_by_permissions():
    """Let the permissions of files bind this process's program, even if root runs it."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def in_readonly(tmp_path, code):
    """Run code in a process that may write nothing into tmp_path; (exit code, output, errors)."""
    folders = [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        run = lambda code: subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=bound_by_permissions)
        if run(f"open({str(tmp_path / 'x')!r}, 'w')").returncode == 0:
            pytest.skip("this process may write into read-only folders, and cannot give that up")
        done = run(code)
        return done.returncode, done.stdout, done.stderr
    finally:
        for path in folders:
            path.chmod(0o755)


LOAD = "from runtime import pretrained; print(pretrained.download('gpt2'))"


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_complete_cache_may_be_read_only(tmp_path):
    """As one that a whole machine shares; locks cannot be written beside its files."""
    folder = home_of(tmp_path, "openai-community/gpt2", GPT2)
    with library(tmp_path):
        code, output, errors = in_readonly(tmp_path, LOAD)
    assert (code, output) == (0, f"{folder}\n"), errors


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_read_only_cache_without_the_model_is_one_line(server, tmp_path):
    code, _, errors = in_readonly(tmp_path, LOAD)
    assert code == 1 and len(errors.splitlines()) == 1
    assert "Permission denied" in errors and "HF_HOME names another cache" in errors


def test_a_library_that_is_too_old_is_one_line(offline):
    """huggingface_hub 0.x stands beside transformers 4."""
    offline.delattr(hub.library("gpt2"), "RemoteEntryNotFoundError")
    assert "needs a newer huggingface_hub: pip install huggingface_hub==" in stopped("gpt2")


def test_an_error_of_the_server_is_told(server):
    server.busy = True
    assert "503" in stopped("gpt2")


def test_several_processes_download_once(server):
    """As torchrun's ranks do; here threads, whose locks are as separate as those of processes."""
    hub.library("a model")  # is imported by one of them
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(pretrained.download("gpt2")))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1
    assert [file for file, _ in asked(server)].count("model.safetensors") == 1


def test_several_processes_download_a_url_once(server):
    """Threads again. The first one is slow: the others come while it writes."""
    server.plain, paths, real = {"plain/a.zip": b"a" * 5000}, [], time.sleep
    lib, begun = hub.library("a file"), threading.Event()

    def slowly(url, file, get=lib.http_get):
        begun.set()
        file.write(b"half")
        real(0.3)
        file.seek(0)
        get(url, file)

    lib.http_get = slowly
    get = lambda: paths.append(hub.fetch_url(f"{server.url}/plain/a.zip", "task"))
    threads = [threading.Thread(target=get) for _ in range(3)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3 and {path.read_bytes() for path in paths} == {b"a" * 5000}
    assert asked(server) == [("a.zip", None)]


# ------------------------------------------------------------------------- other repositories

OTHER = "someone/theirs"
INDEX = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors",
                                   "c": "model-1-of-2.safetensors"}}).encode()


@pytest.mark.parametrize("files, taken", [
    ({"model.safetensors": b"w", "vocab.json": b"{}", "pytorch_model.bin": b"p", "README.md": b""},
     {"model.safetensors", "vocab.json"}),
    ({"pytorch_model.bin": b"p", "tokenizer.json": b"{}", "tf_model.h5": b"t"},
     {"pytorch_model.bin", "tokenizer.json"}),
    ({"model.safetensors.index.json": INDEX, "model-1-of-2.safetensors": b"1",
      "model-2-of-2.safetensors": b"2"},
     {"model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"}),
    ({"model.safetensors": b"w", "tokenizer.tiktoken": b"t", "tokenizer.json": b"{}"},
     {"model.safetensors", "tokenizer.json"}),
    ({"model.safetensors": b"w", "vocab.json": b"{}", "merges.txt": b"", "README.md": b"r",
      "tokenizer_config.json": b"{}", "added_tokens.json": b"{}"},
     {"model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json",
      "added_tokens.json"}),
])
def test_any_repository_of_this_architecture_can_be_named(server, tmp_path, files, taken):
    """Its weights in the best of their forms, its vocabulary, and nothing else; once."""
    server.repos[OTHER] = {"config.json": CONFIG, **files}
    folder = pretrained.download(OTHER)
    assert {p.name for p in folder.iterdir()} == {"config.json"} | taken
    with library(tmp_path):  # what the repository does not have is known, too
        assert pretrained.download(OTHER) == folder


@pytest.mark.parametrize("repo, message", [
    ({}, "no config.json in"),
    ({"config.json": b'{"model_type": "llama"}'}, "model_type = 'llama': only 'gpt2'"),
    ({"config.json": CONFIG, "tf_model.h5": b""}, "has none of model.safetensors, "),
    (None, "no such repository"),
    ((403, "GatedRepo"), "its owner must let you in"),
    ((401, "RepoNotFound"), "HF_TOKEN must say who"),
])
def test_a_repository_that_cannot_be_used_is_one_line(server, repo, message):
    if isinstance(repo, tuple):
        server.errors[OTHER] = repo
    elif repo is not None:
        server.repos[OTHER] = {**repo, **({"model.safetensors": WEIGHTS} if "llama" in str(repo)
                                          else {})}
    line = stopped(OTHER)
    assert message in line and line.startswith("error: ")
    assert "model.safetensors" not in [file for file, _ in asked(server)]


def test_which_names_are_repositories(tmp_path, monkeypatch):
    """Names of our own checkpoints are never looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert pretrained.repository("gpt2-large") == "openai-community/gpt2-large"
    assert pretrained.repository("openai-community/gpt2") == "openai-community/gpt2"
    assert pretrained.repository(Path("distilbert/distilgpt2")) == "distilbert/distilgpt2"
    for page in ("https://huggingface.co/{}", "http://hf.co/{}",
                 "https://huggingface.co/{}/tree/main"):
        page = Path(page.format("openai-community/gpt2"))
        assert pretrained.repository(page) == "openai-community/gpt2"
    for name in ("https://example.org/a/b", "https://huggingface.co/gpt3", "out/sft", "runs/mine",
                 "a/b/c", "/a/b", "../b", "./b", "~/b", "gpt3", "a b/c", "a/.."):
        assert pretrained.repository(name) is None, name


# ------------------------------------------------------------------------------------- datasets

HH = [f"{part}-base/train.jsonl.gz" for part in ("helpful", "harmless")]


def chats(name):
    """A packed file of 400 pairs as hh-rlhf has them."""
    start = "\n\nHuman: {} {}?\n\nAssistant:"
    return gzip.compress("".join(json.dumps({
        side: start.format(name, i) + f" {side} {i}" for side in ("chosen", "rejected")}) + "\n"
        for i in range(400)).encode())


@pytest.fixture
def prepare(server, tmp_path):
    """python -m data.public --name=hh-rlhf, in a process of its own: its (code, output, errors)."""
    server.repos["datasets/Anthropic/hh-rlhf"] = {name: chats(name) for name in HH}

    def run():
        done = subprocess.run([sys.executable, "-m", "data.public", "--name=hh-rlhf",
                               f"--out={tmp_path}/out"], cwd=ROOT, capture_output=True, text=True,
                              timeout=100)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_dataset_is_prepared_from_the_hub(server, prepare, tmp_path):
    """Downloaded once, however often it is prepared; a connection that breaks is taken up."""
    server.breaks = [1000]
    for _ in range(2):
        code, output, errors = prepare()
        assert code == 0, errors
        assert "800 rows read" in output and len(list((tmp_path / "out").iterdir())) == 9
    assert [file for file, _ in asked(server)] == ["train.jsonl.gz"] * 3
    assert server.requests[-1][1].endswith(f"/{COMMIT}/{HH[1]}"), "of one commit"
    folder = tmp_path / "hub" / "datasets--Anthropic--hh-rlhf" / "snapshots" / COMMIT
    assert {name: (folder / name).read_bytes() for name in HH} == server.repos[
        "datasets/Anthropic/hh-rlhf"]


def test_a_dataset_without_a_network_is_one_line(prepare, tmp_path, monkeypatch):
    """That says what to get and how to give it; nothing is written."""
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    code, _, errors = prepare()
    assert code == 1 and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()
    for piece in ("hh-rlhf could not be downloaded", "--file=", ", ".join(HH),
                  f"{NOBODY}/datasets/Anthropic/hh-rlhf"):
        assert piece in errors


def test_a_dataset_that_came_damaged_is_one_line(server, prepare, tmp_path):
    files = server.repos["datasets/Anthropic/hh-rlhf"]
    files[HH[0]] = files[HH[0]][:-50]
    code, _, errors = prepare()
    assert code == 1 and len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert f"{HH[0]}:" in errors and "damaged .gz" in errors


def test_a_dataset_whose_file_is_gone_is_one_line(server):
    server.repos["datasets/Anthropic/hh-rlhf"] = {HH[0]: b"x"}
    with pytest.raises(SystemExit, match=f"could not be downloaded .there is no {HH[1]}"):
        public.download("hh-rlhf")


def test_files_that_are_not_on_the_hub_come_from_their_urls(server, tmp_path, monkeypatch):
    """Whole or not there, once, and never with the token of the hub."""
    monkeypatch.setitem(public.DATASETS, "plain", (
        "rankings", hh_rlhf, f"{server.url}/plain", ["a.jsonl.gz", "b.jsonl.gz"]))
    server.plain = {"plain/a.jsonl.gz": b"a" * 5000, "plain/b.jsonl.gz": b"b" * 5000}
    with library(tmp_path, HF_TOKEN="hf_secret"):
        server.breaks = [5000] + [0] * 20
        with pytest.raises(SystemExit, match=f"get a.jsonl.gz, b.jsonl.gz of {server.url}/plain"):
            public.download("plain")
        assert [p.name for p in tmp_path.rglob("*.gz")] == ["a.jsonl.gz"]
        server.breaks = [100]
        paths = public.download("plain")
        assert [p.read_bytes() for p in paths] == [b"a" * 5000, b"b" * 5000]
        assert all(tmp_path / "assets" in p.parents for p in paths)
        count = len(server.requests)
        assert public.download("plain") == paths and len(server.requests) == count
    assert server.tokens == {None}


def test_datasets_name_their_files():
    """Which only our list knows: of a repository, or of a URL where names must differ."""
    for name, (_, _, where, files) in public.DATASETS.items():
        assert len({file.rpartition("/")[2] if "://" in where else file for file in files}
                   ) == len(files)
        if files:
            assert where.startswith("https://") or len(where.split("/")) == 2, name
        line = public.listed(name)
        assert where in line and (not files or files[0] in line) and "{" not in "".join(files)
