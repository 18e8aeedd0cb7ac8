"""The labelling page over HTTP: who gets in, what is refused, one answer each; kill -9 under load.
"""
import collections
import concurrent.futures
import html
import http.client
import http.cookiejar
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser import ROOT, Page
from data import records
from labels import exporting, items, web
from labels.store import Store
from test_page import Clock, settings, some

EVIL = ("<script>document.title='owned'</script><img src=x onerror=alert(1)>\"' onload='x\n"
        "\u202eabc\u2066\x07 مرحبا 👩‍🚀 {{ 7 * 7 }} {% raw %} &amp;")


def write_rows(path, rows):
    records.write(path, rows)
    return path


class Site:
    """The app without a server, with labelers a, b (training), x (held out) and the owner."""

    def __init__(self, folder, rows=(), local=True, **changes):
        self.clock = Clock()
        self.store = Store(folder / "labels.db", 100, self.clock)
        self.store.add_items(items.make_items(rows, settings(**changes))[0])
        self.tokens = {name: self.store.add_labeler(name, group) for name, group in (
            ("owner", "owner"), ("a", "train"), ("b", "train"), ("x", "heldout"))}
        tell = SimpleNamespace(line=lambda: "", export=lambda: exporting.write(
            self.store, folder / "records", 0.0))
        self.app = web.make_app(self.store, tell, local, self.clock)

    def client(self, name=None):
        client = self.app.test_client()
        if name:
            assert client.post("/enter", data={"code": self.tokens[name]}).status_code == 303
        return client


def csrf(client, path):
    """The CSRF token in a page, after redirects."""
    return re.search(r'name="csrf" value="([^"]+)"',
                     client.get(path, follow_redirects=True).text)[1]


def open_item(client):
    """(path of the labeler's page, its form with every output in its place)."""
    answer = client.get("/work")
    path = answer.headers["Location"]
    page = client.get(path).text
    names = sorted(set(re.findall(r'name="(rank-\d+)"', page)))
    return path, {"csrf": re.search(r'name="csrf" value="([^"]+)"', page)[1], "seconds": "2",
                  **{name: str(i + 1) for i, name in enumerate(names)}}


# ------------------------------------------------------------------------------- who gets in

PATHS = ("/", "/work", "/item/1/1", "/write/plain", "/guide", "/about", "/owner",
         "/owner/disagreements", "/owner/scores", "/owner/score/1")


@pytest.mark.parametrize("local", [True, False])  # False: another address than this machine's
def test_without_a_session_there_is_only_the_door(tmp_path, local):
    client = Site(tmp_path, some(2), local).client()
    for path in PATHS:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/enter"), path
    for path in ("/item/1/1", "/item/1/skip", "/again", "/owner/add", "/owner/export", "/leave",
                 "/owner/remove/2", "/owner/link/2", "/write/plain", "/about", "/owner/score/1"):
        assert client.post(path).status_code == 403, path


def test_labelers_see_neither_the_owners_pages_nor_each_others_items(tmp_path):
    site = Site(tmp_path, some(4))
    a, b = site.client("a"), site.client("b")
    path, form = open_item(a)
    other, theirs = open_item(b)
    assert path != other
    token = csrf(b, "/work")
    assert b.get(path).status_code == 404
    assert b.post(path, data={**form, "csrf": token}).status_code == 404
    assert b.post(path.rsplit("/", 1)[0] + "/skip", data={"csrf": token}).status_code == 404
    for where in ("/owner", "/owner/disagreements", "/owner/scores", "/owner/score/1"):
        assert b.get(where).status_code == 403
    for where in ("/owner/add", "/owner/export", "/owner/remove/2", "/owner/link/2",
                  "/owner/score/1"):
        assert b.post(where, data={"csrf": token}).status_code == 403
    assert site.client("owner").get("/owner").status_code == 200


def test_a_form_needs_the_token_of_its_own_session(tmp_path):
    site = Site(tmp_path, some(2))
    a, b = site.client("a"), site.client("b")
    path, form = open_item(a)
    for wrong in ("", "x", csrf(b, "/work")):
        assert a.post(path, data={**form, "csrf": wrong}).status_code == 403
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"},
                    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert a.post(path, data=form, headers=headers).status_code == 403
        assert site.client().post("/enter", data={"code": site.tokens["a"]},
                                  headers=headers).status_code == 403
    assert not exporting.export(site.store)["rankings_train"]
    assert a.post(path, data=form, headers={"Origin": "http://localhost",
                                            "Sec-Fetch-Site": "same-origin"}).status_code == 303


def test_every_answer_has_the_headers_and_the_cookie_is_shut(tmp_path):
    site = Site(tmp_path, some(1))
    client = site.client()
    answers = [client.get("/enter"), client.get("/nothing"), client.get("/static/page.css"),
               client.post("/enter", data={"code": site.tokens["a"]}), client.get("/work"),
               client.get("/item/1/1"), client.get("/guide")]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    cookie = answers[3].headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert answers[5].headers["Cache-Control"] == "no-store"


def test_pages_hold_no_script_or_style_of_their_own_and_load_nothing_from_elsewhere():
    folder = ROOT / "labels" / "templates"
    for page in folder.glob("*.html"):
        text = page.read_text()
        own = r"<script(?![^>]*\bsrc=)|\bstyle=|\son\w+=|<style|\|\s*safe"
        assert not re.search(own, text), page
        assert "://" not in text, page
    for file in (ROOT / "labels" / "static").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"://|@import|\beval\(|innerHTML|document\.write", text), file


@pytest.mark.parametrize("host, local, code", [
    ("localhost:8321", True, 200), ("127.0.0.1", True, 200), ("[::1]:80", True, 200),
    ("127.0.0.1.evil.example", True, 403), ("evil.example:8321", True, 403),
    ("192.168.1.5:8321", True, 403), ("192.168.1.5:8321", False, 200)])
def test_on_this_machine_only_its_own_names_are_answered(tmp_path, host, local, code):
    client = Site(tmp_path, local=local).client()
    assert client.get("/enter", headers={"Host": host}).status_code == code


def test_wrong_codes_are_limited_and_the_right_one_waits_too(tmp_path):
    site = Site(tmp_path)
    client = site.client()
    codes = [client.post("/enter", data={"code": f"wrong {i}"}).status_code for i in range(12)]
    assert codes == [403] * 10 + [429] * 2
    assert client.post("/enter", data={"code": site.tokens["a"]}).status_code == 429
    elsewhere = {"REMOTE_ADDR": "10.1.1.1"}
    assert client.post("/enter", data={"code": site.tokens["a"]},
                       environ_base=elsewhere).status_code == 303
    site.clock.now = 61
    assert client.post("/enter", data={"code": site.tokens["a"]}).status_code == 303


def test_codes_are_compared_in_constant_time_and_with_everyone(tmp_path, monkeypatch):
    site = Site(tmp_path)
    seen = []
    monkeypatch.setattr("labels.store.hmac.compare_digest",
                        lambda a, b: seen.append((a, b)) or a == b)
    for code in (site.tokens["owner"], "wrong"):
        seen.clear()
        site.store.labeler_of(code)
        assert len(seen) == 4 and all(len(a) == len(b) == 32 for a, b in seen)


def test_a_new_link_ends_the_old_one_and_its_sessions(tmp_path):
    site = Site(tmp_path, some(1))
    a, owner = site.client("a"), site.client("owner")
    number = site.store.one("SELECT id FROM labeler WHERE name = 'a'")["id"]
    page = owner.post(f"/owner/link/{number}", data={"csrf": csrf(owner, "/owner")}).text
    token = re.search(r"/enter#([\w-]+)", page)[1]
    assert a.get("/work").headers["Location"] == "/enter"
    assert a.post("/enter", data={"code": site.tokens["a"]}).status_code == 403
    assert a.post("/enter", data={"code": token}).status_code == 303


def test_one_click_removes_a_labelers_work_and_brings_it_back(tmp_path):
    site = Site(tmp_path, some(3))
    a, owner = site.client("a"), site.client("owner")
    path, form = open_item(a)
    a.post(path, data=form)
    path, form = open_item(a)
    number = site.store.one("SELECT id FROM labeler WHERE name = 'a'")["id"]
    page = owner.get("/owner").text
    button = re.search(rf'action="(/owner/remove/{number})".*?name="removed" value="(.)"', page)
    token = csrf(owner, "/owner")
    owner.post(button[1], data={"csrf": token, "removed": button[2]})
    assert not exporting.export(site.store)["rankings_train"]
    assert "nothing more to label for you" in a.get("/work").text
    assert a.post(path, data=form).status_code == 404
    page = owner.get("/owner").text
    button = re.search(rf'action="(/owner/remove/{number})".*?name="removed" value="(.)"', page)
    owner.post(button[1], data={"csrf": token, "removed": button[2]})
    assert len(exporting.export(site.store)["rankings_train"]) == 1
    assert a.post(path, data=form).status_code == 303  # the open page goes on
    assert len(exporting.export(site.store)["rankings_train"]) == 2


def test_each_labeler_goes_through_all_use_cases(tmp_path):
    site = Site(tmp_path)
    cases = ["cook <b>soup</b>", "write letters", "learn names"]
    site.store.set("use_cases", cases)
    seen = {}
    for name in "ab":
        client = site.client(name)
        token = csrf(client, "/write/user_based")
        for i in range(3):
            page = client.get("/write/user_based").text
            case = html.unescape(re.search(r'id="use_case".*?>(.*?)</textarea>', page)[1])
            seen.setdefault(name, []).append(case)
            client.post("/write/user_based", data={
                "csrf": token, "category": "chat", "use_case": case, "prompt": f"p {i}",
                "response": "r", "form": re.search(r'name="form" value="([^"]+)"', page)[1]})
    assert sorted(seen["a"]) == sorted(seen["b"]) == sorted(cases) and seen["a"] != seen["b"]
    out = exporting.export(site.store, 0.0)["demonstrations_train"]
    assert [r["use_case"] for r in out] == seen["a"] + seen["b"]


def test_the_owner_adds_labelers_and_sees_their_links_once(tmp_path):
    site = Site(tmp_path, some(1))
    owner = site.client("owner")
    token = csrf(owner, "/owner")
    page = owner.post("/owner/add", data={"csrf": token, "group": "train",
                                          "names": "Ana\r\n<b>Bo</b>\n\n"}).text
    links = re.findall(r"/enter#([\w-]+)", page)
    assert len(links) == 2 and "&lt;b&gt;Bo&lt;/b&gt;" in page and "<b>Bo" not in page
    assert site.store.labeler_of(links[0])["name"] == "Ana"
    assert links[0] not in owner.get("/owner").text
    for names, group in (("Ana", "train"), ("N\nN", "train"), ("", "train"), ("New", "owner"),
                         ("y" * 81, "train")):
        page = owner.post("/owner/add", data={"csrf": token, "group": group, "names": names}).text
        assert "/enter#" not in page and 'class="problem"' in page
    assert len(site.store.all("SELECT * FROM labeler")) == 6


def test_a_screening_from_the_first_question_to_the_owners_score(tmp_path):
    site = Site(tmp_path, [{"prompt": "How do I hurt him?", "screening": True}])
    a, owner = site.client("a"), site.client("owner")
    assert a.get("/work").headers["Location"] == "/about"
    token = csrf(a, "/about")
    assert a.post("/about", data={"csrf": token, "topics": "x" * 5001}).status_code == 422
    assert a.post("/about", data={"csrf": token, "topics": f"hens {EVIL}"}).status_code == 303
    path = a.get("/work").headers["Location"]  # it is asked once
    a.post(path, data={"csrf": token, "response": f"Talk to him. {EVIL}", "sensitive": "on"})
    assert site.client("x").get("/work").status_code == 200  # held out: no screening, no question
    page = owner.get("/owner").text
    assert "0 / 1" in page and "hens &lt;script&gt;" in page
    path = owner.get("/owner/scores").headers["Location"]
    page = owner.get(path, follow_redirects=True).text
    assert "How do I hurt him?" in page and "Talk to him. &lt;script&gt;" in page
    assert not re.search(r"\ba\b</", page)  # not who wrote it
    token = csrf(owner, path)
    for wrong in ("", "0", "8", "x"):
        answer = owner.post(path, data={"csrf": token, "likert": wrong})
        assert answer.status_code == 422 and "The score from 1 to 7" in answer.text
    assert owner.post(path, data={"csrf": token, "likert": "6"}).status_code == 303
    assert owner.get("/owner/scores").headers["Location"] == "/owner"
    page = owner.get("/owner").text
    assert "1 / 1" in page and "6.0" in page and "passes" in page
    assert owner.get("/owner/score/99").status_code == 404


# ------------------------------------------------------------------------------- what it refuses

def test_model_output_and_prompts_are_data_everywhere(tmp_path):
    rows = [{"prompt": EVIL, "completions": [{"text": EVIL + c, "model": "<m>"} for c in "ab"]}]
    site = Site(tmp_path, rows, task="rate_rank", twice=1.0)
    for name, order in (("a", 1), ("b", -1)):
        client = site.client(name)
        path = client.get("/work").headers["Location"]
        base = path.rsplit("/", 1)[0]
        pages = [client.get(path).text]
        token = csrf(client, path)
        client.post(path, data={"csrf": token})
        for page in (2, 3):
            pages.append(client.get(f"{base}/{page}").text)
            client.post(f"{base}/{page}", data={"csrf": token, "likert": "4", "note": EVIL})
        pages.append(client.get(f"{base}/4").text)
        ids = [row["id"] for row in site.store.all("SELECT id FROM output ORDER BY id")][::order]
        client.post(f"{base}/4", data={"csrf": token, "note": EVIL,
                                       **{f"rank-{n}": str(i + 1) for i, n in enumerate(ids)}})
    pages.append(site.client("owner").get("/owner/disagreements").text)
    for page in pages:
        assert "<script>d" not in page and "onerror=alert" not in page.replace(
            "&lt;img src=x onerror=alert", "") and "\u202e" not in page and "<m>" not in page
        assert "&lt;script&gt;document" in page and "{{ 7 * 7 }}" in page
    out = exporting.export(site.store)["rankings_train"]
    assert [r["prompt"] for r in out] == [EVIL] * 2 and out[0]["note"] == EVIL
    assert {c["text"] for c in out[0]["completions"]} == {EVIL + "a", EVIL + "b"}


def test_very_long_texts_are_shown_whole(tmp_path):
    long = "x" * 100_000
    site = Site(tmp_path, [{"prompt": long, "completions": [{"text": long}, {"text": "y"}]}])
    page = site.client("a").get("/work", follow_redirects=True).text
    assert page.count(long) == 2


def test_sizes_are_limited(tmp_path):
    site = Site(tmp_path, some(1))
    client = site.client("a")
    path, form = open_item(client)
    assert client.post(path, data={**form, "note": "x" * (web.LARGEST + 1)}).status_code == 413
    answer = client.post(path, data={**form, "note": "x" * 5001})
    assert answer.status_code == 422 and "longer than 5,000" in answer.text
    many = {**form, **{f"x{i}": "1" for i in range(600)}}
    assert client.post(path, data=many, content_type="multipart/form-data").status_code == 413
    assert client.post(path, data={**form, "note": "x" * 5000}).status_code == 303


@pytest.mark.parametrize("change", [
    {"rank": "0"}, {"rank": "4"}, {"rank": ""}, {"rank": "1; DROP TABLE item"}, {"rank": None}])
def test_a_wrong_ranking_is_told_and_not_kept(tmp_path, change):
    site = Site(tmp_path, some(1))
    client = site.client("a")
    path, form = open_item(client)
    last = max(name for name in form if name.startswith("rank-"))
    wrong = {k: v for k, v in {**form, last: change["rank"]}.items() if v is not None}
    answer = client.post(path, data=wrong)
    assert answer.status_code == 422 and "The rank of output" in answer.text
    assert not exporting.export(site.store)["rankings_train"]


def test_an_error_page_says_nothing_of_the_machine(tmp_path, monkeypatch):
    site = Site(tmp_path, some(1))
    client = site.client("a")
    monkeypatch.setattr(site.store, "next_for", lambda me: 1 / 0)
    pages = [client.get("/work"), client.get("/item/9/9"), client.get("/%00/../etc/passwd"),
             client.get("/static/../web.py"), client.get("/item/99999999999999999999/1"),
             client.post("/work"), client.get("/guide?priority=%ff")]
    assert [p.status_code for p in pages] == [500, 404, 404, 404, 404, 403, 404]
    for page in pages:
        for word in ("Traceback", "ZeroDivision", str(tmp_path), str(ROOT), ".py", "flask",
                     "Werkzeug"):
            assert word not in page.text


# ------------------------------------------------------------------------------- one answer each

def test_double_click_back_button_and_two_tabs_give_one_answer(tmp_path):
    site = Site(tmp_path, some(3))
    client = site.client("a")
    path, form = open_item(client)
    assert open_item(client)[0] == path  # the other tab
    json_ = {"Accept": "application/json"}
    assert client.post(path, data=form, headers=json_).json == {"next": "/work"}
    turned = {**form, **{k: str(4 - int(v)) for k, v in form.items() if k.startswith("rank-")}}
    assert client.post(path, data=turned, headers=json_).json == {"next": "/work"}
    page = client.get("/work", follow_redirects=True).text
    assert "The first one counts" in page
    assert client.get(path).status_code == 303  # the back button leads to the next item
    out, = exporting.export(site.store)["rankings_train"]
    ids = [row["id"] for row in site.store.all("SELECT id FROM output WHERE item = 1 ORDER BY id")]
    assert out["ranks"] == [int(form[f"rank-{n}"]) for n in ids]


def test_a_clock_that_jumps_changes_no_answer(tmp_path):
    site = Site(tmp_path, some(4))
    client = site.client("a")
    for jump in (0, 1e9, -2e9, 5e9):
        path, form = open_item(client)
        site.clock.now += jump
        assert client.post(path, data={**form, "seconds": "2.5"}).status_code == 303
    seconds = [r["seconds"] for r in exporting.export(site.store)["rankings_train"]]
    assert len(seconds) == 4 and all(0 <= s <= 2.5 for s in seconds)


def test_all_pages_of_rating_and_ranking_one_after_the_other(tmp_path):
    site = Site(tmp_path, some(1), task="rate_rank")
    client = site.client("a")
    path = client.get("/work").headers["Location"]
    base, page = path.rsplit("/", 1)
    assert page == "1" and "Page 1 / 5" in client.get(path).text
    token = csrf(client, path)
    assert "hallucination" not in client.get(f"{base}/2").text
    client.post(f"{base}/1", data={"csrf": token, "closed_domain": "on"})
    assert "hallucination" in client.get(f"{base}/2").text
    ranks = {f"rank-{row['id']}": "1" for row in site.store.all("SELECT id FROM output")}
    answer = client.post(f"{base}/5", data={"csrf": token, **ranks})
    assert answer.status_code == 422 and "3 of the outputs are not rated" in answer.text
    for n in (2, 3, 4):
        assert client.get("/work").headers["Location"] == f"{base}/{n}"
        assert client.post(f"{base}/{n}", data={"csrf": token}).status_code == 422
        client.post(f"{base}/{n}", data={"csrf": token, "likert": str(n), "hallucination": "on"})
    client.post(f"{base}/3", data={"csrf": token, "likert": "7"})  # changed her mind
    assert client.post(f"{base}/5", data={"csrf": token, **ranks}).status_code == 303
    out, = exporting.export(site.store)["rankings_train"]
    assert sorted(out["likert"]) == [2, 4, 7] and out["ranks"] == [1, 1, 1]
    assert sum(f["hallucination"] for f in out["flags"]) == 2


def test_only_rating_needs_every_output_too(tmp_path):
    site = Site(tmp_path, some(1, k=2), task="rate")
    client = site.client("a")
    base = client.get("/work").headers["Location"].rsplit("/", 1)[0]
    token = csrf(client, f"{base}/1")
    client.post(f"{base}/1", data={"csrf": token})
    client.post(f"{base}/3", data={"csrf": token, "likert": "3"})  # the last page first
    assert client.get("/work").headers["Location"] == f"{base}/2"
    client.post(f"{base}/2", data={"csrf": token, "likert": "5"})
    client.post(f"{base}/3", data={"csrf": token, "likert": "3"})
    out, = exporting.export(site.store)["ratings"]
    assert sorted(out["likert"]) == [3, 5] and "ranks" not in out


def test_prompts_to_demonstrate_and_to_write(tmp_path):
    site = Site(tmp_path, [{"prompt": "Say hi."}])
    client = site.client("a")
    path = client.get("/work").headers["Location"]
    token = csrf(client, path)
    assert client.post(path, data={"csrf": token, "response": " "}).status_code == 422
    client.post(path, data={"csrf": token, "response": "Hi.\r\nThere.", "sensitive": "on"})
    for kind, fields in (("plain", {"prompt": "p1", "response": "r"}), ("user_based", {
            "prompt": "p2", "response": "r", "use_case": "u"}), ("few_shot", {
                "instruction": "i", "query-1": "q", "response-1": "s", "query-2": "q2",
                "response-2": "s2"})):
        page = client.get(f"/write/{kind}").text
        form = {"csrf": token, "category": "chat", "seconds": "1", **fields,
                "form": re.search(r'name="form" value="([^"]+)"', page)[1]}
        for _ in range(2):
            assert client.post(f"/write/{kind}", data=form).status_code == 303
    out = exporting.export(site.store, 0.0)
    demos = [(r["prompt"], r["response"], r["kind"]) for r in out["demonstrations_train"]]
    assert demos[:3] == [("Say hi.", "Hi.\nThere.", "given"), ("p1", "r", "plain"),
                         ("p2", "r", "user_based")] and len(demos) == 5
    assert out["demonstrations_train"][0]["marks"]["sensitive"] is True
    assert len(out["prompts_train"]) == 4


def test_skip_and_change_the_last_answer(tmp_path):
    site = Site(tmp_path, some(2))
    client = site.client("a")
    path, form = open_item(client)
    client.post(path.rsplit("/", 1)[0] + "/skip", data={"csrf": form["csrf"]})
    second, form = open_item(client)
    assert second != path
    client.post(second, data=form)
    assert "All done" in client.get("/work").text
    back = client.post("/again", data={"csrf": form["csrf"]}).headers["Location"]
    assert back == second and client.get(back).text.count(" checked") == 3
    assert site.client("b").get("/work").status_code == 303  # the skipped one is still wanted


# ------------------------------------------------------------------------- a server of its own

class Labeler:
    """A scripted labeler with a session over HTTP, who keeps what was acknowledged."""

    def __init__(self, page, token):
        self.page, self.token, self.acknowledged, self.times = page, token, {}, []
        self.jar = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(self.jar)

    def ask(self, path, form=None):
        started = time.perf_counter()
        body = urllib.parse.urlencode(form).encode() if form else None
        with self.opener.open(self.page.address + path, body, timeout=20) as answer:
            text = answer.read().decode()
            kind = ("POST " if form else "GET ") + re.sub(r"\d+", "N", path)
            self.times.append((kind, time.perf_counter() - started))
            return answer.url, text

    def enter(self):
        self.ask("/enter", {"code": self.token})

    def step(self, rng):
        """Label one item. Returns False if there is none. What the server has acknowledged is
        kept in self.acknowledged: {number of the assignment: ranks}."""
        url, text = self.ask("/work")
        if "/item/" not in url:
            return False
        number, names = url.split("/")[-2], sorted(set(re.findall(r'name="(rank-\d+)"', text)))
        ranks = {name: str(rng.randint(1, len(names))) for name in names}
        form = {"csrf": re.search(r'name="csrf" value="([^"]+)"', text)[1], "seconds": "1", **ranks}
        url, text = self.ask(f"/item/{number}/1", form)
        if "The first one counts" not in text:  # that a try before the kill had arrived
            self.acknowledged[int(number)] = {int(k[5:]): int(v) for k, v in ranks.items()}
        return True


def kept(page):
    """({assignment: ranks} in the file, those that are answered twice)."""
    store = Store(page.out / "labels.db")
    rows = store.all("SELECT assignment, ranks FROM ranking JOIN assignment s ON "
                     "s.id = ranking.assignment WHERE s.state = 'done'")
    items_of = collections.Counter(row[0] for row in store.all(
        "SELECT labeler || ' ' || item FROM assignment"))
    return ({row["assignment"]: {int(k): v for k, v in json.loads(row["ranks"]).items()}
             for row in rows}, [k for k, n in items_of.items() if n > 1], len(rows))


def killed_under_load(tmp_path, kills, labelers=6):
    rows = write_rows(tmp_path / "rows.jsonl", some(25 * (kills + 5), 4))
    rng = random.Random(0)
    with Page(tmp_path, f"--completions={rows}", "--prompts=0", "--twice=0.2") as page:
        store = Store(page.out / "labels.db")
        people = [Labeler(page, store.add_labeler(f"p{i}", "train")) for i in range(labelers)]
        for person in people:
            person.enter()
        for _ in range(kills):
            stop = threading.Event()

            def work(person, own):
                while not stop.is_set():
                    try:
                        person.step(own)
                    except (OSError, http.client.HTTPException):
                        time.sleep(0.01)  # the connection is lost: ask again

            threads = [threading.Thread(target=work, args=(p, random.Random(rng.random())))
                       for p in people]
            for thread in threads:
                thread.start()
            answered = lambda: sum(len(p.acknowledged) for p in people)
            enough, end = answered() + rng.randint(3, 20), time.monotonic() + 60
            while answered() < enough and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))  # at any moment of an answer
            page.kill()
            stop.set()
            for thread in threads:
                thread.join()
            found, twice, _ = kept(page)
            acknowledged = {k: v for p in people for k, v in p.acknowledged.items()}
            lost = {k: v for k, v in acknowledged.items() if found.get(k) != v}
            assert not lost and not twice
            page.start()
        assert len(acknowledged) >= 3 * kills, "there was no load"
        assert len(found) <= len(acknowledged) + kills * labelers  # what was kept but not told


def test_kill_9_loses_no_acknowledged_answer(tmp_path):
    killed_under_load(tmp_path, 2)


@pytest.mark.long
def test_kill_9_a_hundred_times(tmp_path):
    killed_under_load(tmp_path, 100)


def cpu_seconds(process):
    """What a running process has used so far, from Linux's /proc; NaN elsewhere."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def thirty_at_once(folder, models, seconds_between=(1, 3), items_=300):
    """Thirty people label everything while samples are drawn from the checkpoints of the folder
    `models` and the owner watches. Returns ({kind of page: sorted seconds}, the server's CPU
    seconds a page)."""
    rows = write_rows(folder / "rows.jsonl", some(items_, 5))
    with Page(folder, f"--completions={rows}", "--prompts=0") as page:
        store = Store(page.out / "labels.db")
        people = [Labeler(page, store.add_labeler(f"p{i}", "train")) for i in range(30)]
        owner, done = Labeler(page, page.link.partition("#")[2]), threading.Event()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        sampler = subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-m", "labels.sample", "--k_min=20000",
             "--k_max=20000", f"--out={folder}/samples.jsonl"], cwd=models, env=environment,
            stdout=subprocess.DEVNULL)

        def work(person):
            own = random.Random(person.token)
            time.sleep(own.uniform(0, 2))
            person.enter()
            while person.step(own):
                time.sleep(own.uniform(*seconds_between))

        def watch():
            owner.enter()
            while not done.wait(1):
                owner.ask("/owner")
                owner.ask("/owner/disagreements")

        started = cpu_seconds(page.process)
        watching = threading.Thread(target=watch)
        watching.start()
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            list(pool.map(work, people))
        done.set()
        watching.join()
        assert sampler.poll() is None, "the sampler was done too soon"
        sampler.kill()
        sampler.wait()
        used = cpu_seconds(page.process) - started
    kinds = {}
    for kind, seconds in sorted(time_ for p in [*people, owner] for time_ in p.times):
        kinds.setdefault(kind, []).append(seconds)
    return kinds, used / sum(map(len, kinds.values()))


@pytest.mark.long
@pytest.mark.alone
def test_thirty_labelers_at_once_are_not_kept_waiting(tmp_path, request):
    """On two cores, while samples are being made: 95 % of the slowest page's requests, 200 ms."""
    kinds, cpu = thirty_at_once(tmp_path, request.getfixturevalue("demo").folder)
    slow = {kind: times[int(0.95 * len(times))] for kind, times in kinds.items()}
    print({kind: f"{1e3 * s:.0f} ms" for kind, s in slow.items()}, f"CPU {1e3 * cpu:.1f} ms a page")
    assert len(kinds["GET /work"]) > 300 and len(kinds["POST /item/N/N"]) >= 300
    assert max(slow.values()) < 0.2, slow


def test_the_log_and_the_terminal_hold_no_token(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", some(2))
    with Page(tmp_path, f"--completions={rows}") as page:
        token = page.link.partition("#")[2]
        assert (page.out / "owner-link.txt").stat().st_mode & 0o077 == 0
        owner = Labeler(page, token)
        owner.enter()
        with pytest.raises(urllib.error.HTTPError):
            Labeler(page, "wrong-token").enter()
        with pytest.raises(urllib.error.HTTPError):
            owner.ask("/nothing")
        assert "Overview" in owner.ask("/owner")[1]
        raw = urllib.request.urlopen(page.address + "/enter").headers
        assert "Server" not in raw or not re.search(r"\d", raw["Server"])
        log = page.log.read_text()
        assert len(token) >= 32 and token not in log and "wrong-token" not in log
        assert page.address.startswith("http://127.0.0.1:")


def test_outputs_come_from_checkpoints_and_are_sampled_once(demo):
    flags = ("--models=out/sft,out/init", "--prompts=4", "--candidates=6", "--k_min=2", "--k_max=4",
             "--max_new_tokens=8", "--prompts_file=out/toy/prompts_train.jsonl", "--twice=0")
    made = []
    with Page(demo.folder, *flags) as page:
        while "new prompts to label" not in page.log.read_text():  # the page is there already
            assert page.process.poll() is None
            time.sleep(0.05)
        for _ in range(2):
            store = Store(page.out / "labels.db")
            rows = [json.loads(row["record"]) for row in store.all("SELECT record FROM item")]
            made.append([(r["prompt"], r["completions"]) for r in rows])
            page.kill()
            page.start()
    assert 1 <= len(made[0]) <= 4 and made[1] == made[0]
    models = {c["model"] for _, completions in made[0] for c in completions}
    assert models == {"out/sft", "out/init"}
    assert all(2 <= len({c["text"] for c in own}) <= 4 for _, own in made[0])


def test_the_command_line_exports_and_refuses(tmp_path):
    run = lambda *flags: subprocess.run(
        [sys.executable, "-m", "labels.page", *flags], cwd=tmp_path, text=True, timeout=60,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    done = run("--export")
    assert done.returncode == 1 and done.stderr.startswith("error: no file out/labels/labels.db")
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "p", "completions": []}])
    done = run(f"--completions={bad}")
    assert "bad.jsonl:1: field 'completions'" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "cases.txt").write_bytes(b"caf\xe9\n")
    done = run("--use_cases=cases.txt")
    assert done.returncode == 1 and done.stderr == "error: cases.txt: not UTF-8 at byte 3\n"
    (tmp_path / "cases.txt").write_text(" \n\n")
    for flags, says in ((["--use_cases=cases.txt"], "cases.txt is empty: "),  # both began a page
                        ([], "there is nothing to label: ")):
        done = run(*flags, "--port=0")
        assert done.returncode == 1 and done.stderr.startswith(f"error: {says}"), done.stderr
