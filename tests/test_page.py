"""The labelling page without a browser: what is handed out, kept, exported, and how labelers agree.
"""
import collections
import itertools
import json
import random
import sqlite3
from types import SimpleNamespace

import pytest

from data import records
from evals import preference
from labels import agreement, exporting, forms, items, overview, page, store as store_module
from labels.showing import shown, turns
from labels.store import Store


def settings(**changes):
    return SimpleNamespace(**{**dict(k_min=2, k_max=9, task="rank", priority="helpful", valid=0.0,
                                     twice=0.0, screening=0, prompts=0), **changes})


def some(n, k=3):
    """n prompts with k different completions each."""
    return [{"prompt": f"prompt {i}", "category": "chat", "completions": [
        {"text": f"output {i}.{j}", "model": f"m{j}", "ended": True} for j in range(k)]}
        for i in range(n)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def filled(tmp_path, clock, rows, **changes):
    """(store, {name: labeler}) with a training labeler each for a, b, c, and x, y held out."""
    store = Store(tmp_path / "labels.db", 100, clock)
    store.add_items(items.make_items(rows, settings(**changes))[0])
    for name, group in (("owner", "owner"), ("a", "train"), ("b", "train"), ("c", "train"),
                        ("x", "heldout"), ("y", "heldout")):
        store.add_labeler(name, group)
    return store, {row["name"]: row for row in store.all("SELECT * FROM labeler")}


def rank(store, labeler, order=None):
    """Answer the labeler's next item. Returns (item, {text: column}), or None: nothing to do."""
    number = store.next_for(labeler)
    if number is None:
        return None
    item = store.assignment(number, labeler)["item"]
    outputs = store.outputs(item, labeler)
    ranks = {o["id"]: (order(o["text"]) if order else i + 1) for i, o in enumerate(outputs)}
    assert store.answer(number, "ranking", {"assignment": number, "ranks": json.dumps(ranks),
                                            "note": "", "seconds": 2.0}, True)
    return item, {o["text"]: ranks[o["id"]] for o in outputs}


# -------------------------------------------------------------------------------- handing out

def test_everything_is_labelled_once_and_nobody_gets_one_twice(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(20))
    rng, done = random.Random(0), collections.Counter()
    got = {name: [] for name in "abc"}
    while names := [n for n in "abc" if store.next_for(who[n])]:
        name = rng.choice(names)
        item, _ = rank(store, who[name])
        got[name].append(item)
        done[item] += 1
    assert done == dict.fromkeys(range(1, 21), 1)
    assert all(len(own) == len(set(own)) > 0 for own in got.values())


def test_a_share_is_labelled_twice_by_two_people(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(200), twice=0.25)
    by = collections.defaultdict(list)
    for name in itertools.cycle("abc"):
        found = rank(store, who[name])
        if found is None:
            break
        by[found[0]].append(name)
    twice = [names for names in by.values() if len(names) == 2]
    assert len(by) == 200 and 25 < len(twice) < 80
    assert all(len(set(names)) == 2 for names in twice)
    assert all(len(names) < 3 for names in by.values())


def test_nobody_waits_while_others_have_items_open(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(3))
    assert len({store.next_for(who[name]) for name in "abc"}) == 3
    assert store.next_for(who["a"]) == store.next_for(who["a"])  # two tabs: the same item
    assert store.next_for(who["owner"]) is None


def test_the_next_item_comes_with_the_answer_and_can_be_abandoned(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(3))
    first = store.next_for(who["a"])
    done = lambda number: store.answer(number, "ranking", {
        "assignment": number, "ranks": "{}", "note": "", "seconds": 1.0}, True, who["a"])
    assert done(first)
    second = store.opened(who["a"])
    assert second not in (None, first) and store.next_for(who["a"]) == second
    assert not done(first) and store.next_for(who["a"]) == second  # sent twice: nothing changes
    other = store.next_for(who["b"])
    rank(store, who["b"])
    assert store.next_for(who["b"]) is None and other != second
    clock.now = 101
    assert store.next_for(who["b"])  # never looked at, and abandoned all the same
    assert done(second) and store.opened(who["a"]) is None


def test_an_abandoned_item_comes_back_after_a_while(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(1))
    first = store.next_for(who["a"])
    clock.now = 99
    assert store.next_for(who["b"]) is None
    clock.now = 101
    second = store.next_for(who["b"])
    assert second not in (None, first)
    assert store.next_for(who["a"]) == first  # still hers, too: no work is lost
    assert rank(store, who["a"]) and rank(store, who["b"])
    assert len(exporting.export(store)["rankings_train"]) == 2


def test_after_a_restart_everyone_has_the_whole_time_again(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(1))
    first = store.next_for(who["a"])
    clock.now = -5000  # a clock that begins anew
    store = Store(tmp_path / "labels.db", 100, clock)
    assert store.next_for(who["b"]) is None and store.next_for(who["a"]) == first
    clock.now += 101
    assert store.next_for(who["b"])


def test_the_heldout_group_labels_only_the_validation_split(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(60), valid=0.3, screening=2)
    splits = dict(store.all("SELECT id, split FROM item"))
    screening = overview.screening_items(store)
    heldout = {rank(store, who["x"])[0] for _ in range(store.progress(who["x"])["of"])}
    assert rank(store, who["x"]) is None
    assert heldout == {i for i, split in splits.items() if split == "valid"} - screening
    while rank(store, who["a"]):
        pass
    out = exporting.export(store)
    assert len(out["rankings_valid"]) == len(heldout) + 2
    assert len(out["rankings_valid_heldout"]) == len(heldout)
    assert {r["labeler"] for r in out["rankings_valid_heldout"]} == {"x"}
    assert len(out["rankings_train"]) + len(out["rankings_valid"]) == 60


def test_screening_items_go_to_the_owner_and_all_training_labelers_first(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(10), screening=3)
    for name in ("owner", "a", "b", "c"):
        assert [rank(store, who[name])[0] for _ in range(3)] == [1, 2, 3]


def test_a_removed_labelers_work_goes_and_comes_back(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(4))
    for name in "aab":
        rank(store, who[name])
    before = exporting.export(store)
    store.set_removed(who["a"]["id"], True)
    a = store.labeler(who["a"]["id"])
    assert [r["labeler"] for r in exporting.export(store)["rankings_train"]] == ["b"]
    assert store.next_for(a) is None and store.progress(who["c"])["of"] == 3  # wanted again
    store.set_removed(who["a"]["id"], False)
    assert exporting.export(store) == before
    store.set_removed(who["owner"]["id"], True)
    assert not store.labeler(who["owner"]["id"])["removed"]


def test_the_order_of_outputs_is_each_labelers_own_and_stays(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(1, k=8))
    orders = {name: [o["text"] for o in store.outputs(1, row)] for name, row in who.items()}
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(sorted(orders["a"]))}
    again = Store(tmp_path / "labels.db", 100, clock)
    assert [o["text"] for o in again.outputs(1, who["a"])] == orders["a"]


# -------------------------------------------------------------------------------- what is kept

def test_the_first_answer_counts(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(2))
    number = store.next_for(who["a"])
    values = lambda ranks: {"assignment": number, "ranks": json.dumps(ranks), "note": "",
                            "seconds": 1.0}
    assert store.answer(number, "ranking", values({1: 1, 2: 2, 3: 2}), True)
    assert not store.answer(number, "ranking", values({1: 3, 2: 2, 3: 1}), True)
    assert exporting.export(store)["rankings_train"][0]["ranks"] == [1, 2, 2]
    assert store.reopen_last(who["a"]) == number == store.next_for(who["a"])
    assert exporting.export(store)["rankings_train"] == []  # open again, until it is sent
    assert store.answer(number, "ranking", values({1: 3, 2: 2, 3: 1}), True)
    assert exporting.export(store)["rankings_train"][0]["ranks"] == [3, 2, 1]


def test_adding_items_again_adds_only_new_ones(tmp_path, clock):
    store, _ = filled(tmp_path, clock, some(3))
    again, _ = items.make_items(some(5), settings())
    assert store.add_items(again) == 2 and store.add_items(again) == 0


def test_a_failed_change_changes_nothing(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(1))
    number = store.next_for(who["a"])
    with pytest.raises(sqlite3.IntegrityError):
        store.answer(number, "rating", {"assignment": number, "output": 1, "likert": 8,
                                        "flags": "{}", "note": "", "seconds": 1}, True)
    assert store.assignment(number, who["a"])["state"] == "open"


def test_after_a_full_disk_the_next_change_works(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(2))
    pages = store.one("PRAGMA page_count")[0]
    store.db().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.write(who["a"], "1", "plain", {"prompt": "x" * 100_000, "response": "r"}, {}, 1.0)
    store.db().execute("PRAGMA max_page_count = 100000")
    assert store.write(who["a"], "1", "plain", {"prompt": "p", "response": "r"}, {}, 1.0)
    assert [r["prompt"] for r in exporting.export(store, 0.0)["prompts_train"]] == ["p"]


@pytest.mark.parametrize("spoil, message", [
    (lambda p: p.write_bytes(b"no database at all" * 100), "cannot be used"),
    (lambda p: sqlite3.connect(p).executescript("CREATE TABLE x (y)").close(), "no database of"),
    (lambda p: (Store(p), sqlite3.connect(p).executescript("PRAGMA user_version = 7").close()),
     "has version 7 of the tables, this program knows versions 1 to 2"),
    (lambda p: (Store(p), sqlite3.connect(p).executescript("PRAGMA user_version = 0").close()),
     "has version 0 of the tables"),
])
def test_a_file_that_is_not_ours_is_refused_in_one_line(tmp_path, spoil, message):
    path = tmp_path / "labels.db"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        Store(path)
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
    assert path.read_bytes() == before


def test_an_older_file_is_migrated_with_all_its_answers(tmp_path, clock, monkeypatch):
    with monkeypatch.context() as patch:  # as the program of version 1 wrote it
        patch.setattr(store_module, "SCHEMAS", store_module.SCHEMAS[:1])
        old = Store(tmp_path / "labels.db", 100, clock)
        token = old.add_labeler("a", "train")
        old.add_items(items.make_items(some(3), settings())[0])
        rank(old, old.labeler(1))
        number, secret = old.next_for(old.labeler(1)), old.secret
        tables = {row["name"] for row in old.all("SELECT name FROM sqlite_master")}
    assert "score" not in tables and old.one("PRAGMA user_version")[0] == 1
    new = Store(tmp_path / "labels.db", 100, clock)
    assert new.one("PRAGMA user_version")[0] == 2 and new.secret == secret
    assert new.labeler_of(token)["name"] == "a" and new.next_for(new.labeler(1)) == number
    assert len(exporting.export(new)["rankings_train"]) == 1
    assert new.to_score() == [] and new.about(new.labeler(1)) is None
    fresh = Store(tmp_path / "fresh.db")
    schema = "SELECT sql FROM sqlite_master ORDER BY name"
    assert list(map(tuple, new.all(schema))) == list(map(tuple, fresh.all(schema)))


def test_only_its_owner_can_read_the_file_and_no_token_is_in_it(tmp_path):
    store = Store(tmp_path / "labels.db")
    token = store.add_labeler("a", "train")
    assert (tmp_path / "labels.db").stat().st_mode & 0o077 == 0
    for path in tmp_path.iterdir():
        assert token.encode() not in path.read_bytes()
    assert store.labeler_of(token)["name"] == "a" and store.labeler_of("") is None
    new = store.add_labeler("a", "train")
    assert store.labeler_of(token) is None and store.labeler_of(new)["session"] == 1


# -------------------------------------------------------------------------------- items

def test_the_same_output_twice_is_shown_once_and_exported_twice(tmp_path, clock):
    row = {"prompt": "p", "completions": [{"text": t, "model": m} for t, m in
                                          (("x", "1"), ("y", "2"), ("x", "3"), ("z", "1"))]}
    store, who = filled(tmp_path, clock, [row])
    assert sorted(o["text"] for o in store.outputs(1, who["a"])) == ["x", "y", "z"]
    rank(store, who["a"], {"x": 3, "y": 1, "z": 3}.get)
    record, = exporting.export(store)["rankings_train"]
    assert record["ranks"] == [2, 1, 2, 2] and record["completions"] == row["completions"]


def test_too_few_different_outputs_are_left_out():
    rows = [{"prompt": "p", "completions": [{"text": "x"}, {"text": "x"}]}, *some(4, 4)]
    made, none = items.make_items(rows, settings(k_min=3, prompts=2))
    assert [m["prompt"] for m in made] == ["prompt 0", "prompt 1"] and none == 1


@pytest.mark.parametrize("models, complaint", [
    ("out/no/such", "out/no/such has no checkpoint: run `make demo` first"),
    ("/no/where", "no folder /no/where"), ("./none", "no folder ./none"),
    ("a/b/c", "no folder a/b/c"), ("gpt2,", "no folder of no name")])
def test_a_model_that_cannot_be_there_is_told_before_the_page_starts(tmp_path, models, complaint):
    """Nor can it be a name of the hub, which sampling alone can ask."""
    filling = page.Filling(None, page.Settings(models=models, out=str(tmp_path / "labels")))
    with pytest.raises(SystemExit) as error:
        filling.sample()
    assert complaint in str(error.value) and not (tmp_path / "labels").exists()


def test_most_different_outputs_by_hand():
    texts = ["a b c", "a b d", "x y z", "a b c e", "q r"]
    assert items.most_different(texts, 3) == ["a b c", "x y z", "q r"]
    assert items.most_different(texts, 9) == texts and items.most_different(["x"], 2) == ["x"]


def test_of_the_same_prompt_the_split_is_always_the_same():
    for share, low, high in ((0.0, 0, 0), (0.2, 150, 250), (1.0, 1000, 1000)):
        split = [exporting.split_of(f"prompt {i}", share) for i in range(1000)]
        assert low <= split.count("valid") <= high
        assert split == [exporting.split_of(f"prompt {i}", share) for i in range(1000)]


# -------------------------------------------------------------------------------- exports

def test_columns_become_ranks_without_gaps():
    assert exporting.dense([4, 2, 4, 9]) == [2, 1, 2, 3]


def test_each_pair_of_a_few_shot_prompt_is_an_example_once():
    out = exporting.few_shot("Give the plural.", [["hen", "hens"], ["cow", "cows"], ["x", "xs"]])
    assert [response for _, response in out] == ["hens", "cows", "xs"]
    assert out[1][0] == ("Give the plural.\n\nInput: hen\nOutput: hens\n\nInput: x\nOutput: xs\n\n"
                         "Input: cow\nOutput:")


def test_an_export_has_all_that_was_said_and_is_read_as_it_is(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(2), task="rate_rank")
    number = store.next_for(who["a"])
    outputs = sorted(store.outputs(1, who["a"]), key=lambda o: o["text"])
    store.answer(number, "marks", {"assignment": number, "marks": '{"sensitive": true}',
                                   "seconds": 1.5}, False)
    for i, o in enumerate(outputs):
        store.answer(number, "rating", {
            "assignment": number, "output": o["id"], "likert": 7 - i, "flags":
            json.dumps({"violent": i == 1}), "note": f"note {i}", "seconds": 2.0}, False)
    assert exporting.export(store)["rankings_train"] == []  # not done: the ranking is missing
    store.answer(number, "ranking", {
        "assignment": number, "ranks": json.dumps({o["id"]: i + 1 for i, o in enumerate(outputs)}),
        "note": "all", "seconds": 3.0}, True)
    store.write(who["b"], "1", "plain", {"prompt": "p", "response": "r", "category": "chat"},
                {"sensitive": False}, 9.0)
    store.write(who["b"], "1", "plain", {"prompt": "other", "response": "r"}, {}, 9.0)  # twice
    counts = exporting.write(store, tmp_path / "records", 0.0)
    assert set(counts.values()) == {1}
    ranking, = records.read(tmp_path / "records" / "rankings_train.jsonl", "ranking")
    assert {k: ranking[k] for k in ("likert", "ranks", "labeler", "group", "seconds", "note",
                                    "notes", "priority", "category")} == {
        "likert": [7, 6, 5], "ranks": [1, 2, 3], "labeler": "a", "group": "train", "seconds": 10.5,
        "note": "all", "notes": ["note 0", "note 1", "note 2"], "priority": "helpful",
        "category": "chat"}
    assert ranking["flags"] == [{"violent": False}, {"violent": True}, {"violent": False}]
    assert ranking["marks"] == {"sensitive": True}
    demo, = records.read(tmp_path / "records" / "demonstrations_train.jsonl", "demonstration")
    assert (demo["prompt"], demo["labeler"], demo["kind"]) == ("p", "b", "plain")
    store.set_removed(who["b"]["id"], True)
    exporting.write(store, tmp_path / "records", 0.0)
    assert not (tmp_path / "records" / "demonstrations_train.jsonl").exists()


def test_evaluations_with_truth_first_are_no_training_data(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(2), priority="truthful")
    rank(store, who["a"])
    out = exporting.export(store)
    assert [name for name, rows in out.items() if rows] == ["evaluation"]
    assert out["evaluation"][0]["priority"] == "truthful"


def test_an_evaluation_shows_every_output_of_every_model(tmp_path, clock):
    texts = ["the same", "the same", "nearly the same", "nearly the same, too", "x"]
    row = {"prompt": "p", "completions": [{"text": t, "model": f"m{i}", "ended": True}
                                          for i, t in enumerate(texts)]}
    two = {"prompt": "q", "completions": row["completions"][1:3]}
    one = {"prompt": "r", "completions": row["completions"][:2]}
    few = settings(k_min=3, k_max=3, priority="truthful")
    made, none = items.make_items([row, two, one], few)
    assert [m["texts"] for m in made] == [texts[1:], texts[1:3]] and none == 1
    few.priority = "helpful"
    made, none = items.make_items([row, two, one], few)
    assert [len(m["texts"]) for m in made] == [3] and none == 2


def test_evaluate_reads_an_evaluation_as_it_is(tmp_path, clock):
    """Win rates, scores and flags by hand: a wins once, loses once, and ties with itself once."""
    rows = [{"prompt": f"p{i}", "category": "closed_qa", "completions": [
        {"text": a, "model": "a", "ended": True}, {"text": b, "model": "b", "ended": True},
        {"text": "bad", "model": "c", "ended": True}]}
        for i, (a, b) in enumerate([("good", "poor"), ("poor", "good"), ("good", "good")])]
    store, who = filled(tmp_path, clock, rows, priority="truthful", task="rate_rank")
    rank_of, likert_of = {"good": 1, "poor": 2, "bad": 3}, {"good": 6, "poor": 3, "bad": 1}
    while number := store.next_for(who["a"]):
        outputs = store.outputs(store.assignment(number, who["a"])["item"], who["a"])
        for o in outputs:
            store.answer(number, "rating", {
                "assignment": number, "output": o["id"], "likert": likert_of[o["text"]], "flags":
                json.dumps({"hallucination": o["text"] == "poor"}), "note": "", "seconds": 1.0},
                False)
        store.answer(number, "ranking", {
            "assignment": number, "note": "", "seconds": 1.0, "ranks": json.dumps(
                {o["id"]: rank_of[o["text"]] for o in outputs})}, True)
    exporting.write(store, tmp_path / "records")
    found = preference.from_rankings(tmp_path / "records" / "evaluation.jsonl", "")
    numbers = {(of, metric): values for of, metric, values in found}
    assert numbers["a vs b", "win_rate"] == [1, 0, 0.5]
    assert numbers["a vs c", "win_rate"] == [1, 1, 1]
    assert numbers["a", "likert"] == [6, 3, 6] and numbers["c", "likert"] == [1, 1, 1]
    assert numbers["b", "hallucination"] == [1, 0, 0]


# -------------------------------------------------------------------------------- agreement

def test_agreement_counts_pairs_that_neither_tied():
    first, second = (1, 2, 3, 3), (2, 1, 3, 1)
    same = total = 0  # the oracle: all pairs, one by one
    for i, j in itertools.combinations(range(4), 2):
        if first[i] != first[j] and second[i] != second[j]:
            total += 1
            same += (first[i] < first[j]) == (second[i] < second[j])
    assert agreement.same_order(first, second) == (same, total) == (2, 4)


def test_of_and_among_by_hand():
    rankings = {1: {"a": (1, 2), "b": (1, 2), "c": (2, 1)}, 2: {"a": (1, 1), "b": (1, 2)},
                3: {"a": (1, 2)}}
    assert agreement.among(rankings)["mean"] == 1 / 3
    assert agreement.of("a", rankings)["mean"] == 1 / 2 and agreement.of("a", rankings)["n"] == 2
    assert agreement.of("a", rankings, "b")["mean"] == 1
    assert agreement.of("z", rankings) == {"mean": None, "low": None, "high": None, "n": 0}
    assert agreement.disagreements(rankings) == [(2, 1)]


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Pairs of one item hang together: their share is drawn for the item (a beta distribution)."""
    rng, inside, trials = random.Random(0), 0, 600
    for _ in range(trials):
        counts = []
        for _ in range(25):
            p = rng.betavariate(7, 3)  # mean 0.7
            n = rng.randint(3, 10)
            counts.append((sum(rng.random() < p for _ in range(n)), n))
        found = agreement.share(counts)
        inside += found["low"] <= 0.7 <= found["high"]
    assert 0.92 <= inside / trials <= 0.98


def test_the_interval_of_perfect_agreement_is_not_a_point():
    found = agreement.share([(10, 10)] * 5)
    assert found["mean"] == found["high"] == 1 and 0.5 < found["low"] < 0.6  # Wilson, n = 5


def test_screening_compares_with_the_owner(tmp_path, clock):
    store, who = filled(tmp_path, clock, some(4), screening=4, task="rate_rank")
    for name, order, sensitive in (("owner", 1, True), ("a", 1, True), ("b", -1, False)):
        for _ in range(4):
            number = store.next_for(who[name])
            item = store.assignment(number, who[name])["item"]
            outputs = sorted(store.outputs(item, who[name]), key=lambda o: o["text"])[::order]
            for i, o in enumerate(outputs):
                store.answer(number, "rating", {
                    "assignment": number, "output": o["id"], "likert": 4, "flags": json.dumps(
                        {"violent": sensitive and o["text"].endswith("0")}), "note": "",
                    "seconds": 1.0}, False)
            store.answer(number, "ranking", {
                "assignment": number, "ranks": json.dumps({o["id"]: i + 1 for i, o in
                                                           enumerate(outputs)}),
                "note": "", "seconds": 1.0}, True)
    rankings = overview.rankings_of(store)
    facts = {row["labeler"]["name"]: row for row in overview.labelers(store, rankings)}
    assert (facts["a"]["ranks"]["mean"], facts["a"]["flags"]["mean"]) == (1, 1)
    assert (facts["b"]["ranks"]["mean"], facts["b"]["flags"]["mean"]) == (0, 2 / 3)
    assert [facts[n]["passes"] for n in "abc"] == [True, False, None]
    assert facts["a"]["seconds"] == 4.0 and "passes" not in facts["x"]
    worst = overview.disagreements(store, rankings)
    assert len(worst) == 4 and worst[0]["pairs"] == 6 and worst[0]["labelers"] == [
        "owner", "a", "b"]
    assert [(text, ranks) for text, ranks in worst[0]["rows"]][0][1] == [1, 1, 3]


def demonstrate(store, labeler, response):
    """Answer the labeler's next prompt by a demonstration. Returns the item."""
    number = store.next_for(labeler)
    item = store.assignment(number, labeler)
    assert item["task"] == "demonstrate"
    assert store.answer(number, "writing", {
        "assignment": number, "labeler": labeler["id"], "form": f"assignment {number}",
        "kind": "given", "marks": "{}", "seconds": 3.0,
        "fields": json.dumps({"prompt": item["prompt"], "response": response})}, True)
    return item["item"]


def test_the_owner_scores_screening_demonstrations_without_their_writers(tmp_path, clock):
    rows = [{"prompt": f"sensitive {i}", "screening": True} for i in range(2)]
    store, who = filled(tmp_path, clock, [*rows, {"prompt": "harmless"}])
    assert store.next_for(who["owner"]) and store.assignment(
        store.next_for(who["owner"]), who["owner"])["prompt"] == "harmless"
    assert store.next_for(who["x"]) is None  # held-out labelers are not screened
    for name in "abc":
        assert [demonstrate(store, who[name], f"by {name}") for _ in range(2)] == [1, 2]
    found = store.to_score()
    assert sorted(row["response"] for row in found) == [f"by {n}" for n in "aabbcc"]
    assert all(row["score"] is None for row in found)
    assert [row["id"] for row in found] != sorted(row["id"] for row in found)
    assert found == store.to_score()  # the order stays
    for row in found:
        store.set_score(row["id"], {"by a": 6, "by b": 7, "by c": 5}[row["response"]])
    first_of_b = next(row["id"] for row in found if row["response"] == "by b")
    store.set_score(first_of_b, 4)  # the owner changed her mind
    rankings = overview.rankings_of(store)
    facts = {row["labeler"]["name"]: row for row in overview.labelers(store, rankings)}
    assert [sorted(facts[n]["scores"]) for n in "abc"] == [[6, 6], [4, 7], [5, 5]]
    assert [facts[n]["passes"] for n in "abc"] == [True, False, False]  # 6, 5.5, 5
    out = exporting.export(store)
    assert not out["demonstrations_train"]  # one prompt, many answers: none is trained on
    assert sorted(r["score"] for r in out["demonstrations_valid"]) == [4, 5, 5, 6, 6, 7]
    store.set_removed(who["a"]["id"], True)
    assert {row["response"] for row in store.to_score()} == {"by b", "by c"}


def test_a_demonstration_that_is_changed_loses_its_score(tmp_path, clock):
    store, who = filled(tmp_path, clock, [{"prompt": "sensitive", "screening": True}])
    demonstrate(store, who["a"], "first")
    store.set_score(store.to_score()[0]["id"], 7)
    store.reopen_last(who["a"])
    assert store.to_score() == []  # open again, until it is sent
    demonstrate(store, who["a"], "second")
    row, = store.to_score()
    assert (row["response"], row["score"]) == ("second", None)
    assert not store.all("SELECT * FROM score")


def test_demonstrations_of_one_prompt_are_all_in_its_split(tmp_path, clock):
    store, who = filled(tmp_path, clock, [{"prompt": f"p{i}"} for i in range(40)], valid=0.5,
                        twice=1.0)
    for name in "ab":
        while store.next_for(who[name]):
            demonstrate(store, who[name], name)
    out = exporting.export(store, 0.5)
    split = {kind: {r["prompt"] for r in out[f"demonstrations_{kind}"]}
             for kind in ("train", "valid")}
    assert split["train"] and split["valid"] and not split["train"] & split["valid"]


@pytest.mark.parametrize("ranks, flags, scores, expected", [
    (None, None, [], None), (0.75, None, [], True), (0.74, 1.0, [7], False),
    (None, 0.75, [6, 6], True), (None, None, [6, 5], False), (1.0, 0.5, [7], False)])
def test_all_that_was_measured_must_reach_its_cut_off(ranks, flags, scores, expected):
    assert overview.passes({"mean": ranks}, {"mean": flags}, scores) is expected


def test_progress_by_hand(tmp_path, clock):
    """Ten prompts, each wanted twice from training labelers, two of them held out for validation.
    """
    store, who = filled(tmp_path, clock, some(10), twice=1.0)
    with store.change() as db:
        db.execute("UPDATE item SET split = 'valid' WHERE id > 8")
    for name in "aab":
        rank(store, who[name])
    rank(store, who["x"])
    assert overview.progress(store) == [("training labelers", 3, 20), ("held-out labelers", 1, 4)]
    assert store.progress(who["a"]) == {"done": 2, "of": 10, "seconds": 4.0}
    store.set_removed(who["a"]["id"], True)
    assert overview.progress(store)[0] == ("training labelers", 1, 20)


def test_the_overview_asks_the_file_as_often_for_many_items_as_for_few(tmp_path, clock):
    asked = []
    for n in (3, 30):
        (tmp_path / str(n)).mkdir()
        store, who = filled(tmp_path / str(n), clock, some(n), screening=n)
        for name in "ab":
            while rank(store, who[name]):
                pass
        queries, query = [], store.all
        store.all = lambda *values: queries.append(values) or query(*values)
        rows = overview.labelers(store, overview.rankings_of(store))
        assert [row["done"] for row in rows if row["labeler"]["name"] in "ab"] == [n, n]
        asked.append(len(queries))
    assert asked[0] == asked[1]


# -------------------------------------------------------------------------------- forms, texts

@pytest.mark.parametrize("given, elapsed, expected", [
    ({"seconds": "3.25"}, 10.0, 3.2), ({"seconds": "300"}, 10.0, 10.0), ({}, 10.0, 10.0),
    ({"seconds": "-5"}, 10.0, 0.0), ({"seconds": "nan"}, 10.0, 0.0), ({"seconds": "inf"}, 1.0, 1.0),
    ({"seconds": "x"}, None, 0.0), ({"seconds": "1e9"}, None, 86400.0)])
def test_seconds_are_bounded_by_the_servers(given, elapsed, expected):
    assert forms.seconds(given, elapsed) == expected


def test_flags_are_asked_only_where_they_apply():
    always = set(forms.asked_flags({}))
    assert set(forms.FLAGS) - always == {"hallucination", "violates_constraint"}
    assert "hallucination" in forms.asked_flags({"closed_domain": True})
    assert set(forms.asked_flags({"closed_domain": True, "other_constraints": True})) == set(
        forms.FLAGS) and len(forms.FLAGS) == 11


def test_ranks_need_every_output():
    outputs = [{"id": 4}, {"id": 9}]
    assert forms.ranking({"rank-4": "2", "rank-9": "2"}, outputs) == {4: 2, 9: 2}
    for wrong in ({"rank-4": "1"}, {"rank-4": "1", "rank-9": "3"}, {"rank-4": "0", "rank-9": "1"},
                  {"rank-4": "1", "rank-9": "1.5"}):
        with pytest.raises(forms.Wrong):
            forms.ranking(wrong, outputs)


@pytest.mark.parametrize("kind, form, message", [
    ("plain", {"prompt": "p", "response": " ", "category": "chat"}, "response is empty"),
    ("plain", {"prompt": "p", "response": "r"}, "category is missing"),
    ("plain", {"prompt": "p" * 100_001, "response": "r", "category": "chat"}, "longer than 100"),
    ("user_based", {"prompt": "p", "response": "r", "category": "chat"}, "use case is empty"),
    ("few_shot", {"instruction": "i", "query-1": "q", "response-1": "r", "category": "chat"},
     "two pairs"),
    ("few_shot", {"instruction": "i", "query-1": "q", "response-1": "r", "query-2": "q",
                  "category": "chat"}, "two pairs"),
])
def test_a_writing_that_is_not_whole_is_told(kind, form, message):
    with pytest.raises(forms.Wrong, match=message):
        forms.writing(form, kind)


def test_line_ends_are_plain():
    assert forms.text({"x": "a\r\nb\rc\n"}, "x") == "a\nb\nc\n"


@pytest.mark.parametrize("text, html", [
    ("<script>alert('x')</script>", "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"),
    ('" onload="x', "&#34; onload=&#34;x"),
    ("a\u202eb", 'a<span class="hidden" title="right-to-left override">U+202E</span>b'),
    ("\x00", '<span class="hidden" title="control character">␀</span>'),
    ("مرحبا 👩‍🚀 \n\t", "مرحبا 👩‍🚀 \n\t"),
])
def test_any_text_is_shown_as_text(text, html):
    assert str(shown(text)) == html


def test_a_chat_is_taken_apart_and_nothing_is_lost():
    chat = records.answered(records.asked("", "Hi\n\nthere"), "Hello.") + records.HUMAN + " Bye" + (
        records.ASSISTANT)
    assert turns(chat) == [("Human", "Hi\n\nthere"), ("Assistant", "Hello."), ("Human", "Bye")]
    for plain in ("Say Human: x", "Human: but nobody answers", ""):
        assert turns(plain) == [("", plain)]
