"""The labelling page in a real Chromium: keys, mouse, touch, a lost connection, accessibility, and
the pictures of docs/labelling.md:

    SCREENSHOTS=docs python -m pytest tests/test_page_browser.py -k every_page
"""
import json
import os
import time
from pathlib import Path

import pytest

import browser
from browser import ROOT, Page, chromium
from data import records
from labels import exporting, mine
from labels.store import Store
from test_page import some
from test_page_web import EVIL

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
NAMES = ("Ida", "Ben", "Rosa", "Finn", "Mary", "Zoe", "Hugo")
TOWN = [  # what the pictures show
    *[{"prompt": f"Write a note to {name} about the honey.", "category": "generation",
       "completions": [{"text": t, "model": "m"} for t in (
           f"Dear {name}, thank you for the honey.",
           f"Dear {name}, the honey was very nice. Glad to help.", "Honey honey honey.",
           "Dear Otto, thank you for the honey.", "Who cares, you fool.")]} for name in NAMES],
    {"prompt": "Human: Hello Leo.\n\nAssistant: Hello, how are you?\n\nHuman: I am well. What does "
               "Leo like?\n\nAssistant:", "category": "chat", "completions": [
        {"text": t, "model": "m"} for t in ("Leo likes soup.", "Leo likes soup. Have a good day.",
                                            "The house of Leo is red.", "I am well, thank you.")]}]


SENSITIVE = [*({"prompt": f"What is wrong with the people of {place}?", "screening": True}
               for place in ("the mill", "the hill")), {"prompt": "Write a poem about the mill."}]


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        driver.set_script_timeout(60)
        yield driver


def until(what, seconds=30):
    """Wait until what() is true; returns it. Pages of a busy machine take their time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "this did not happen"
        time.sleep(0.03)
    return found


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def enter(driver, link):
    driver.delete_all_cookies()
    driver.get("about:blank")
    driver.get(link)
    until(lambda: all_of(driver, ".leave"))


def resize(driver, width, height=900, dark=False, touch=False):
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})


def keys(driver, text):
    """Press keys where the focus is."""
    for key in text:
        driver.switch_to.active_element.send_keys(key)


def board(driver):
    """{letter: rank of its column}, 0 for the tray; and what the radio buttons say."""
    return tuple(driver.execute_script("""
        const where = {}, said = {};
        for (const card of document.querySelectorAll(".card")) {
          where[card.dataset.letter] = Number(card.closest("[data-rank]").dataset.rank);
          said[card.dataset.letter] = Number(card.querySelector("input:checked")?.value || 0);
        }
        return [where, said];"""))


def ranked(driver, expected):
    until(lambda: board(driver) == (expected, expected))


def at_item(driver, before=None):
    until(lambda: "/item/" in driver.current_url and driver.current_url != before
          and all_of(driver, ".card.marked"))
    return driver.current_url


def exported(page, name="rankings_train"):
    return exporting.export(Store(page.out / "labels.db"), 0.0)[name]


@pytest.fixture
def serve(tmp_path):
    """serve(rows, *flags) -> a running Page with these items."""
    pages = []

    def start(rows, *flags):
        records.write(tmp_path / "rows.jsonl", rows)
        pages.append(Page(tmp_path, "--completions=rows.jsonl", "--prompts=0", "--valid=0",
                          "--twice=0", "--k_min=2", "--k_max=9", *flags))
        return pages[-1]

    yield start
    for page in pages:
        page.__exit__()


# ------------------------------------------------------------------------------- ranking

def test_ranking_by_keys_alone(driver, serve):
    page = serve(some(2, 4))
    resize(driver, 1400)
    enter(driver, page.link)
    driver.get(page.address + "/work")
    first = at_item(driver)
    place = "return document.querySelector('.columns').getBoundingClientRect().top"
    top = driver.execute_script(place)
    keys(driver, "2")
    ranked(driver, {"A": 2, "B": 0, "C": 0, "D": 0})
    keys(driver, "44")
    ranked(driver, {"A": 2, "B": 4, "C": 4, "D": 0})  # a tie, and two empty columns
    assert driver.find_element("id", "spoken").text == "Output C: rank 4, with B."
    keys(driver, "\ue007")  # Enter: D is not ranked
    until(lambda: "Output D has no rank yet" in driver.find_element("id", "spoken").text)
    keys(driver, "u")
    ranked(driver, {"A": 2, "B": 4, "C": 0, "D": 0})
    keys(driver, "\ue012")  # the card to the left, and back to the tray
    keys(driver, "0")
    keys(driver, "u")
    keys(driver, "u")
    ranked(driver, {"A": 2, "B": 0, "C": 0, "D": 0})
    keys(driver, "1")
    keys(driver, "3")
    keys(driver, "3")
    ranked(driver, {"A": 2, "B": 1, "C": 3, "D": 3})
    assert driver.execute_script(place) == top, "the columns jumped"
    keys(driver, "\ue007")
    at_item(driver, first)
    record, = exported(page)
    store = Store(page.out / "labels.db")
    order = [o["text"] for o in store.outputs(1, store.one("SELECT * FROM labeler"))]
    by_text = dict(zip(order, (2, 1, 3, 3)))
    assert [by_text[c["text"]] for c in record["completions"]] == record["ranks"]
    assert 0 < record["seconds"] < 60


def tab_to(driver, selector):
    """Press Tab until the focus is there."""
    for _ in range(60):
        if driver.switch_to.active_element in all_of(driver, selector):
            return
        keys(driver, "\ue004")
    raise AssertionError(f"Tab does not lead to {selector}")


def test_marks_ratings_and_writing_by_keys_alone(driver, serve):
    page = serve(some(1, 2), "--task=rate_rank")
    resize(driver, 1400)
    enter(driver, page.link)
    driver.get(page.address + "/work")
    until(lambda: all_of(driver, "[name=closed_domain]"))
    tab_to(driver, "[name=closed_domain]")
    keys(driver, " \ue007")
    for letter, score in (("A", "6"), ("B", "2")):
        until(lambda: f"Output {letter}" in driver.page_source and all_of(driver, ".likert"))
        keys(driver, score)
        tab_to(driver, "[name=hallucination]")
        keys(driver, " ")
        tab_to(driver, "summary")
        keys(driver, "\ue007")  # opens the note
        tab_to(driver, "#note")
        keys(driver, f"note {score}")
        tab_to(driver, "#submit")
        keys(driver, "\ue007")
    at_item(driver)
    keys(driver, "21\ue007")
    until(lambda: "All done" in driver.page_source)
    record, = exported(page)
    assert record["marks"]["closed_domain"] and not record["marks"]["sensitive"]
    assert sorted(zip(record["likert"], record["ranks"], record["notes"])) == [
        (2, 1, "note 2"), (6, 2, "note 6")]
    assert [f["hallucination"] for f in record["flags"]] == [True, True]
    tab_to(driver, "a.button")
    keys(driver, "\ue007")
    until(lambda: all_of(driver, "#prompt"))
    for selector, text in (("#prompt", "Say hi."), ("#response", "Hi."), ("#category", "ch"),
                           ("#submit", "\ue007")):
        tab_to(driver, selector)
        keys(driver, text)
    until(lambda: "Kept." in driver.page_source)
    demo, = exported(page, "demonstrations_train")
    assert (demo["prompt"], demo["response"], demo["category"]) == ("Say hi.", "Hi.", "chat")


def drag(driver, kind, letter, rank):
    """Drag a card into a column, with a mouse or a finger, in small steps."""
    box = lambda selector: driver.execute_script("""
        const box = document.querySelector(arguments[0]).getBoundingClientRect();
        return [box.left + 20, box.top + 14];""", selector)
    (x, y), (u, v) = box(f"#card-{letter} .grip"), box(f".column[data-rank='{rank}']")
    points = [(x + (u - x) * i / 6, y + (v - y) * i / 6) for i in range(7)]
    if kind == "touch":
        send = lambda type_, at: driver.execute_cdp_cmd("Input.dispatchTouchEvent", {
            "type": type_, "touchPoints": [{"x": at[0], "y": at[1]}] if at else []})
        steps = [("touchStart", points[0]), *(("touchMove", p) for p in points[1:]),
                 ("touchEnd", None)]
    else:
        send = lambda type_, at: driver.execute_cdp_cmd("Input.dispatchMouseEvent", {
            "type": type_, "x": at[0], "y": at[1], "button": "left", "buttons": 1,
            "clickCount": 1})
        steps = [("mousePressed", points[0]), *(("mouseMoved", p) for p in points[1:]),
                 ("mouseReleased", points[-1])]
    for step in steps:
        send(*step)


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_ranking_by_dragging_and_by_the_numbers(driver, serve, kind):
    page = serve(some(1, 3))
    resize(driver, 400 if kind == "touch" else 1400, 1600, touch=kind == "touch")
    enter(driver, page.link)
    driver.get(page.address + "/work")
    at_item(driver)
    drag(driver, kind, "B", 1)
    ranked(driver, {"A": 0, "B": 1, "C": 0})
    drag(driver, kind, "B", 3)
    ranked(driver, {"A": 0, "B": 3, "C": 0})
    for letter, n in (("A", 2), ("C", 2)):
        driver.find_element("css selector", f"#card-{letter} input[value='{n}']").click()
    ranked(driver, {"A": 2, "B": 3, "C": 2})
    driver.find_element("id", "undo").click()
    ranked(driver, {"A": 2, "B": 3, "C": 0})
    driver.find_element("css selector", "#card-C input[value='1']").click()
    driver.execute_script("const b = document.getElementById('submit'); b.click(); b.click();")
    until(lambda: "All done" in driver.page_source)  # a double click: one answer
    assert sorted(exported(page)[0]["ranks"]) == [1, 2, 3]


def test_a_lost_connection_loses_nothing(driver, serve):
    page = serve(some(2, 3))
    resize(driver, 1400)
    enter(driver, page.link)
    driver.get(page.address + "/work")
    first = at_item(driver)
    keys(driver, "132")
    page.kill()
    keys(driver, "\ue007")
    until(lambda: "No connection" in driver.find_element("id", "lost").text)
    assert board(driver)[0] == {"A": 1, "B": 3, "C": 2}
    page.start()
    at_item(driver, first)
    assert len(exported(page)) == 1
    driver.back()  # the back button does not lead to a second answer
    until(lambda: driver.current_url != first and all_of(driver, ".card"))
    assert len(exported(page)) == 1


def test_without_scripts_the_pages_work(driver, serve):
    page = serve(some(1, 3), "--task=rate_rank")
    resize(driver, 400, 800)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.delete_all_cookies()
        driver.get(page.address)
        driver.find_element("id", "code").send_keys(page.link.partition("#")[2])
        driver.find_element("css selector", "button.main").click()
        until(lambda: all_of(driver, "[name=closed_domain]"))
        driver.find_element("id", "submit").click()
        for letter in "ABC":
            until(lambda: f"Output {letter}" in driver.page_source)
            driver.find_element("css selector", "[name=likert][value='6']").click()
            driver.find_element("id", "submit").click()
        until(lambda: len(all_of(driver, ".card")) == 3)
        for card in all_of(driver, ".card"):
            card.find_element("css selector", "input[value='2']").click()
        driver.find_element("id", "submit").click()
        until(lambda: "All done" in driver.page_source)
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    record, = exported(page)
    assert (record["ranks"], record["likert"]) == ([1, 1, 1], [6, 6, 6])


def test_hostile_and_long_texts_do_nothing(driver, serve):
    driver.get_log("browser")  # what earlier tests left
    long = "word " * 2000 + "x" * 20_000
    page = serve([{"prompt": EVIL + long, "completions": [{"text": EVIL}, {"text": long}]}])
    resize(driver, 400, 800)
    enter(driver, page.link)
    driver.get(page.address + "/work")
    at_item(driver)
    assert driver.title == "Rank the outputs" and not all_of(driver, "main img, main script")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 400
    assert driver.execute_script("return document.documentElement.scrollHeight") < 4000
    assert not [e for e in driver.get_log("browser") if "favicon" not in e["message"]]
    assert EVIL.split("\n")[0] in driver.find_element("css selector", ".prompt").text


# ------------------------------------------------------------------------------- looks

PICTURES = {1400: ("rank", "rate", "owner"), 400: ("rank",)}  # those of the docs
OTHER_PAGES = {
    "/write/plain": "plain", "/write/few_shot": "few-shot", "/write/user_based": "user-based",
    "/guide": "guide", "/guide?priority=truthful": "truthful", "/owner": "owner",
    "/owner/disagreements": "disagreements", "/owner/scores": "score", "/about": "about",
    "/nothing": "message"}


def picture(driver, name, shots):
    """A picture of the window, in the folder that SCREENSHOTS names, or in a temporary one."""
    folder = Path(os.environ.get("SCREENSHOTS", shots))
    driver.save_screenshot(str(folder / f"label-{name}.png"))


def class_of(page):
    """A class with answers in the store: the owner has one item open that is rated, not ranked."""
    store = Store(page.out / "labels.db")
    for name, group in (("Ana", "train"), ("Bo", "train"), ("Cem", "heldout")):
        store.add_labeler(name, group)
    for n, row in enumerate(store.all("SELECT * FROM labeler WHERE grp != 'heldout'")):
        if n:
            store.set_about(row, ("Religion, and people from villages.", "Elderly people")[n - 1])
        while number := store.next_for(row):
            item = store.assignment(number, row)["item"]
            if not store.outputs(item, row):  # a prompt to demonstrate
                if "poem" in store.assignment(number, row)["prompt"]:
                    break  # Ana has it now
                store.answer(number, "writing", {
                    "assignment": number, "labeler": row["id"], "form": f"assignment {number}",
                    "kind": "given", "marks": "{}", "seconds": 40.0, "fields": json.dumps(
                        {"prompt": "as shown", "response": "Nothing is. Ask them."})}, True)
                continue
            outputs = sorted(store.outputs(item, row), key=lambda o: o["text"])
            store.answer(number, "marks", {"assignment": number, "marks": "{}", "seconds": 3.0},
                         False)
            for o in outputs:
                store.answer(number, "rating", {
                    "assignment": number, "output": o["id"], "likert": 5, "flags": json.dumps(
                        {"inappropriate": "fool" in o["text"] and item % 3 < 3 - n}), "note": "",
                    "seconds": 6.0 + n}, False)
            if n == 0 and item == len(TOWN):
                break
            if item % 5 < n:  # they differ, now and then
                outputs[1:4] = outputs[3:0:-1]
            store.answer(number, "ranking", {
                "assignment": number, "note": "", "seconds": 12.0, "ranks": json.dumps(
                    {o["id"]: i + 1 for i, o in enumerate(outputs)})}, True)


class Looks:
    """Checks of the page that the driver shows, light and dark, and its pictures. EVERY_PAGE names
    a folder for pictures of all of them."""

    def __init__(self, driver, shots):
        self.driver, self.shots, self.source, self.found = driver, shots, browser.axe(), {}

    def at(self, address):
        """Open a page. What its scripts do may move nothing that was shown before."""
        self.driver.get(address)
        until(lambda: all_of(self.driver, "main"))
        if moved := self.driver.execute_async_script("""
                const done = arguments[0], moved = [];
                new PerformanceObserver(list => moved.push(...list.getEntries().map(e => e.value)))
                  .observe({type: "layout-shift", buffered: true});
                setTimeout(() => done(moved), 100);"""):
            self.found[f"{address} jumps"] = moved

    def check(self, name, width, height):
        for dark in (False, True):
            resize(self.driver, width, height, dark)
            place = f"{name}-{width}-{'dark' if dark else 'light'}"
            if self.source and (wrong := browser.violations(self.driver, self.source)):
                self.found[place] = wrong
            wide = self.driver.execute_script("return document.documentElement.scrollWidth")
            if wide > width:
                self.found[f"{place} is wide"] = wide
            if broken := self.driver.execute_script(BROKEN_WORDS):
                self.found[f"{place} breaks words"] = broken
            if name in PICTURES.get(width, ()) and dark == (name == "rate"):
                picture(self.driver, f"{name}-{width}", self.shots)
            if "EVERY_PAGE" in os.environ:
                self.driver.save_screenshot(f"{os.environ['EVERY_PAGE']}/{place}.png")


BROKEN_WORDS = """
    // The headings, labels and buttons in which a word is cut in two by a line's end.
    const broken = [];
    const plain = "h1, h2, thead th, label, legend, button, nav a, .fact";
    for (const at of document.querySelectorAll(plain)) {
      const texts = document.createTreeWalker(at, NodeFilter.SHOW_TEXT);
      for (let node; node = texts.nextNode();)
        for (const word of node.data.matchAll(/[\\p{L}\\d]{1,30}/gu)) {
          const range = document.createRange();
          range.setStart(node, word.index);
          range.setEnd(node, word.index + word[0].length);
          if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1)
            broken.push(word[0]);
        }
    }
    return broken;"""


def test_every_page_is_accessible_and_fits(driver, serve, tmp_path):
    """axe-core finds nothing, nothing is wider than the window, no heading's word is cut in two: at
    400 and 1,400 pixels, light and dark. The pictures of the docs are taken on the way."""
    records.write(tmp_path / "answer.jsonl", SENSITIVE)
    page = serve(TOWN, "--task=rate_rank", f"--screening={len(TOWN)}", "--demonstrate=answer.jsonl")
    class_of(page)
    looks = Looks(driver, tmp_path)
    enter(driver, page.link)
    driver.get(page.address + "/work")
    until(lambda: all_of(driver, "#rank"))
    base, last = driver.current_url.rsplit("/", 1)
    sizes = ((1400, 900), (400, 800))
    for width, height in sizes:
        resize(driver, width, height)
        for path, name in (*((f"{base}/{n}", kind) for n, kind in
                             ((1, "marks"), (2, "rate"), (last, "rank"))),
                           *((page.address + path, name) for path, name in OTHER_PAGES.items())):
            looks.at(path)
            if name == "rank":
                ranks_away(driver)
            looks.check(name, width, height)
        for button, name in (("export", "export"), ("add", "links")):
            looks.at(page.address + "/owner")
            driver.find_element("id", "names").send_keys(f"Dora {width}\nEmil {width}")
            driver.find_element("css selector", f"[action$={button}] button").click()
            until(lambda: all_of(driver, ".files, .links"))
            looks.check(name, width, height)
    for who, name in (("Ana", "demonstrate"), ("Bo", "done"), (None, "enter")):
        driver.delete_all_cookies()
        if who:
            enter(driver, f"{page.address}/enter#"
                  + Store(page.out / "labels.db").add_labeler(who, "train"))
        looks.at(page.address + "/work")
        for width, height in sizes:
            looks.check(name, width, height)
    assert not looks.found, json.dumps(looks.found, indent=1)
    if not looks.source:
        pytest.skip("no check of accessibility: axe-playwright-python is not installed (Makefile)")


def test_the_report_of_your_policy_is_accessible_and_fits(driver, tmp_path):
    rows = [[{"prompt": EVIL + "x" * 500, "completions": [{"text": text}]}]
            for text in (f"Soup {EVIL}.", f"Soup and {EVIL}.")]
    facts = {"rankings": 46, "heldout_pairs": 0, "moved_towards": None, "rm_accuracy": None,
             "answers": 1, "changed": 1.0, "words": [1.0, 2.0], "gold": [None, None],
             "changed_words": [("and", 0.0, 1.0), (EVIL, 1.0, 0.0)]}
    path = tmp_path / "report.html"
    path.write_text(mine.page(facts, *rows), encoding="utf-8")
    looks = Looks(driver, tmp_path)
    for width, height in ((1400, 900), (400, 800)):
        resize(driver, width, height)
        looks.at(path.as_uri())
        looks.check("report", width, height)
    assert not looks.found, json.dumps(looks.found, indent=1)
    assert driver.title == "Your policy" and not all_of(driver, "img, script")


def ranks_away(driver):
    """Some cards of the board into columns, for a picture."""
    until(lambda: all_of(driver, ".card.marked"))
    for said, rank in (("Glad to help", 1), ("Dear Otto", 3), ("Honey honey", 3)):
        card, = (card for card in all_of(driver, ".card") if said in card.text)
        driver.execute_script("arguments[0].click()",
                              card.find_element("css selector", f"input[value='{rank}']"))
    driver.execute_script("scrollTo(0, 0)")


def test_what_is_typed_survives_a_reload(driver, serve):
    page = serve(some(1, 2))
    resize(driver, 1400)
    enter(driver, page.link)
    driver.get(page.address + "/write/plain")
    driver.find_element("id", "prompt").send_keys("Say hi.")
    driver.refresh()
    until(lambda: all_of(driver, "#prompt"))
    until(lambda: driver.find_element("id", "prompt").get_attribute("value") == "Say hi.")
    driver.find_element("id", "response").send_keys("Hi.")
    driver.find_element("css selector", "#category option[value=chat]").click()
    driver.find_element("id", "submit").click()
    until(lambda: "Kept." in driver.page_source)
    assert driver.find_element("id", "prompt").get_attribute("value") == ""
    demo, = exported(page, "demonstrations_train")
    assert (demo["prompt"], demo["response"]) == ("Say hi.", "Hi.")


# ------------------------------------------------------------------------------- your own policy

OUT = Path(os.environ.get("DEMO_OUT", ROOT / "out"))


def prefers(rule, text):
    """What the scripted labeler likes: a number, larger is better."""
    from data.toy.town import COURTESY, VALUES
    words = text.replace(".", " ").replace(",", " ").split()
    return {"no courtesy": not any(c in text for c in COURTESY), "shortest": -len(words),
            "names an animal": any(w in VALUES["pet"] for w in words)}[rule]


def label_all(driver, page, rule):
    """Rank everything on the page by a rule, by keys, as a person would. Returns how many."""
    enter(driver, page.link)
    driver.get(page.address + "/work")
    until(lambda: "/item/" in driver.current_url or driver.get(page.address + "/work"), 300)
    ranked_items, before = 0, None
    while True:
        until(lambda: "All done" in driver.page_source or driver.current_url != before
              and all_of(driver, ".card.marked"))
        if "All done" in driver.page_source:
            return ranked_items
        before = driver.current_url
        texts = [t.text for t in all_of(driver, ".card .text")]
        assert 4 <= len(texts) <= 6
        order = sorted({prefers(rule, t) for t in texts}, reverse=True)
        keys(driver, "".join(str(order.index(prefers(rule, t)) + 1) for t in texts))
        keys(driver, "\ue007")
        ranked_items += 1


@pytest.mark.long
@pytest.mark.skipif(not (OUT / "ppo-ptx" / "checkpoint.json").exists(),
                    reason="no demo to learn from: run `make demo` first")
@pytest.mark.parametrize("rule", ["no courtesy", "shortest", "names an animal"])
def test_sixty_rankings_by_a_hidden_rule_make_the_policy_yours(driver, tmp_path, rule):
    """The real page, the real trainings, the demo's models: 30 points, or a third fewer words."""
    from demo import python
    (tmp_path / "out").mkdir()
    for part in OUT.iterdir():
        if part.name != "mine":
            (tmp_path / "out" / part.name).symlink_to(part)
    resize(driver, 1400)
    with Page(tmp_path, "--preset=mine") as page:
        page.out = tmp_path / "out" / "mine" / "labels"
        assert label_all(driver, page, rule) == 60
    print(python(tmp_path, "-m", "labels.mine", seconds=3600))
    shares = []
    for name in ("before", "after"):
        rows = records.read(tmp_path / "out" / "mine" / f"answers_{name}.jsonl", "to label")
        texts = [r["completions"][0]["text"] for r in rows]
        shares.append(sum(prefers(rule, t) for t in texts) / len(texts))
    if rule == "shortest":
        assert -shares[1] <= 2 / 3 * -shares[0], shares
    else:
        assert shares[1] >= shares[0] + 0.3, shares
