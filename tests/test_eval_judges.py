"""evals/judges.py: each kind of slot, and a server that fails, is slow, or lies."""
import contextlib
import http.server
import json
import sys
import threading
import time
import types

import pytest

from evals import judges
from evals.judges import Server, judge

ROWS = [{"prompt": "p", "response": "good"}, {"prompt": "p", "response": "bad"}]
KEY = "secret-word"
CUT = b'{"sc'  # an answer that ends too early
SLOW = b"slow"  # one that takes 0.4 s


def half(rows):
    return [0.5 for _ in rows]


def too_few(rows):
    return [0.5]


def too_much(rows):
    return [1.5 for _ in rows]


@pytest.fixture
def server(monkeypatch):
    """A server that gives 0.9 to "good" and 0.1 to others, or first what `plan` says."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((json.loads(body), self.headers.get("Authorization")))
            code = plan.pop(0) if plan else 200
            self.send_response(code if isinstance(code, int) else 200)
            if code == SLOW:
                time.sleep(0.4)
            if code == 302:
                self.send_header("Location", f"http://127.0.0.1:{web.server_port}/elsewhere")
            if code == CUT:
                self.send_header("Content-Length", "99")
            self.end_headers()
            good = json.loads(body)["response"] == "good"
            with contextlib.suppress(OSError):  # who asked has gone
                self.wfile.write(code if isinstance(code, bytes) else
                                 json.dumps({"score": 0.9 if good else 0.1}).encode())

        def do_GET(self):  # where a redirection leads
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"score": 0.5}')

        def log_message(self, *args):
            pass

    seen, plan = [], []
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(judges, "TRIES", 3)
    web = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/score?key={KEY}", seen, plan
    web.shutdown()
    web.server_close()


def test_a_servers_answers_are_kept(server, tmp_path, capsys):
    address, seen, plan = server
    own = Server(address, tmp_path, pause=0)
    plan += [500, CUT]  # tried again
    assert own(ROWS) == [0.9, 0.1]
    assert [body for body, _ in seen] == [ROWS[0]] * 3 + [ROWS[1]]
    assert {key for _, key in seen} == {f"Bearer {KEY}"}
    seen.clear()
    assert Server(address, tmp_path)(ROWS[::-1]) == [0.1, 0.9] and not seen  # from the disk
    assert Server(f"{address}&v=2", tmp_path)(ROWS) == [0.9, 0.1] and len(seen) == 2
    kept = "".join(p.read_text() + str(p) for p in tmp_path.rglob("*.json"))
    printed = "".join(capsys.readouterr())
    assert KEY not in kept and KEY not in printed


@pytest.mark.parametrize("codes, tries, complaint", [
    ([500, 429, 500], 3, "HTTP 500"), ([403], 1, "HTTP 403"), ([b"no json"], 1, "is not JSON"),
    ([302], 1, "HTTP 302"), ([CUT] * 3, 3, "IncompleteRead"),
    ([b'{"score": 7}'], 1, "expected a number from 0 to 1"),
    ([b'{"score": NaN}'], 1, "expected a number from 0 to 1"),
    ([b"{}"], 1, "expected a number from 0 to 1")])
def test_a_server_that_fails_is_told(server, tmp_path, codes, tries, complaint):
    address, seen, plan = server
    plan += codes
    with pytest.raises(SystemExit) as error:
        Server(address, tmp_path, pause=0)(ROWS)
    assert complaint in str(error.value) and KEY not in str(error.value) and len(seen) == tries
    assert not list(tmp_path.rglob("*.json"))
    assert Server(address, tmp_path, pause=0)(ROWS) == [0.9, 0.1]  # the same command again


@pytest.mark.parametrize("value", [
    f"http://host/a b?key={KEY}", f"http://host:{KEY}/a", f"https://me:{KEY}@host/a",
    f"https://me:{KEY[:3]}/{KEY}@host", f"HTTP://höst/?key={KEY}", f"https://?key={KEY}"])
def test_a_bad_address_is_told_without_its_key(value, tmp_path):
    """Python's own error would show all of it."""
    with pytest.raises(SystemExit, match="--truth (is no address|has a name or a password)") as e:
        judge("truth", value, tmp_path)
    assert KEY not in str(e.value)


def test_a_key_that_no_header_can_have(monkeypatch, server, tmp_path):
    """A line end at its end is none; others are told at once, without the key."""
    address, seen, _ = server
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    assert judge("truth", address, tmp_path)(ROWS[:1]) == [0.9]
    assert seen[0][1] == f"Bearer {KEY}"
    for bad in (f"{KEY}\nX: y", f"{KEY}é"):
        monkeypatch.setenv("JUDGE_KEY", bad)
        with pytest.raises(SystemExit, match="JUDGE_KEY has characters") as error:
            judge("truth", address, tmp_path)
        assert KEY not in str(error.value)


def test_a_slow_server_is_asked_again(server, tmp_path, monkeypatch):
    address, seen, plan = server
    monkeypatch.setattr(judges, "TIMEOUT", 0.25)
    plan += [SLOW]
    assert Server(address, tmp_path, pause=0)(ROWS[:1]) == [0.9] and len(seen) >= 2
    monkeypatch.setattr(judges, "TRIES", 1)
    plan += [SLOW]
    with pytest.raises(SystemExit, match="does not answer .TimeoutError"):
        Server(address, tmp_path, pause=0)(ROWS[1:])


def test_a_name_holds_no_key():
    assert judges.named("https://me:secret@host/a?key=secret") == "https://host/a"
    assert judges.named("profanity") == "profanity" and judges.named("a:b") == "a:b"


def test_no_server_is_told(tmp_path):
    with pytest.raises(SystemExit, match="http://127.0.0.1:9/x does not answer"):
        Server("http://127.0.0.1:9/x?key=k", tmp_path, pause=0)(ROWS)


def test_a_file_of_scores(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps({**row, "score": i}) + "\n" for i, row in enumerate(ROWS)))
    own = judge("truth", str(path), tmp_path)
    assert own(ROWS[::-1]) == [1.0, 0.0]
    with pytest.raises(SystemExit, match="no score of 1 of 2 texts"):
        own([ROWS[0], {"prompt": "p", "response": "other"}])
    path.write_text('{"prompt": "p", "response": "r"}')
    with pytest.raises(SystemExit, match="scores.jsonl:1: expected"):
        judge("truth", str(path), tmp_path)
    with pytest.raises(SystemExit, match="no file"):
        judge("truth", str(tmp_path / "none.jsonl"), tmp_path)


def test_a_function(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_eval_judges", sys.modules[__name__])
    assert judge("info", "test_eval_judges:half", tmp_path)(ROWS) == [0.5, 0.5]
    assert judge("info", "", tmp_path) is None
    for name, complaint in (("too_few", "1 scores for 2 texts"), ("too_much", "0 to 1")):
        with pytest.raises(SystemExit, match=complaint):
            judge("info", f"test_eval_judges:{name}", tmp_path)(ROWS)
    for value in ("test_eval_judges:none", "nobody:x", "word"):
        with pytest.raises(SystemExit, match=f"--info={value}"):
            judge("info", value, tmp_path)


def test_detoxify_where_it_is_installed(tmp_path, monkeypatch):
    """A module of its name with its interface stands in; 64 texts at a time."""
    class Detoxify:
        def __init__(self, name):
            assert name == "original"

        def predict(self, texts):
            sizes.append(len(texts))
            return {"toxicity": [len(t) / 1000 for t in texts], "insult": [1.0] * len(texts)}

    sizes = []
    monkeypatch.setitem(sys.modules, "detoxify", types.SimpleNamespace(Detoxify=Detoxify))
    own = judge("toxicity", "detoxify", tmp_path)
    texts = ["x" * n for n in range(70)]
    assert own([{"prompt": "", "response": t} for t in texts]) == [n / 1000 for n in range(70)]
    assert sizes == [64, 6]
    monkeypatch.setattr(Detoxify, "__init__", lambda self, name: open(tmp_path / "weights"))
    with pytest.raises(SystemExit, match="could not be had .FileNotFoundError.: start it once"):
        judge("toxicity", "detoxify", tmp_path)
    monkeypatch.setitem(sys.modules, "detoxify", None)  # not installed
    with pytest.raises(SystemExit, match="--toxicity=detoxify: .*pip install detoxify"):
        judge("toxicity", "detoxify", tmp_path)


def test_the_default_scorer_tells_rude_from_kind(tmp_path):
    pytest.importorskip("profanity_check")
    rude, kind = judge("toxicity", "profanity", tmp_path)(
        [{"prompt": "", "response": "you stupid idiot"}, {"prompt": "", "response": "thank you"}])
    assert 0 <= kind < 0.3 < rude <= 1
