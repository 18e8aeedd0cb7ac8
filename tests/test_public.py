"""data/public.py: small files with every known irregularity, and real files where they are.

Real files are looked for in $PUBLIC_DATA, or in ../shared/data beside the repository. Some of them
hold upsetting text: a failing test here shows row numbers, not rows.
"""
import collections
import gzip
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from data import public, records, spool

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("PUBLIC_DATA", ROOT.parent / "shared" / "data"))


def real(name):
    if not (REAL / name).exists():
        pytest.skip(f"no {name} in {REAL}: set PUBLIC_DATA to a folder that has it")
    return REAL / name


def save(path, rows):
    """Rows as JSON lines, or as a list where the file is called .json; packed where called .gz."""
    body = json.dumps(rows) if ".json" in path.suffixes else "".join(
        json.dumps(row) + "\n" for row in rows)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(body)
    return path


def convert(name, *rows):
    """What a loader makes of rows: ([records], [reasons])."""
    items = [item for _, item in public.convert(name, [("file:1", row) for row in rows])]
    return ([i for i in items if isinstance(i, dict)], [i for i in items if isinstance(i, str)])


def build(tmp_path, name, file, **settings):
    """Run the whole thing. Returns (counts, {kind: {split: records}})."""
    out = tmp_path / "out"
    facts = public.build(public.Settings(name, str(file), str(out), **settings))
    files = collections.defaultdict(dict)
    for path in sorted(out.iterdir()):
        kind, _, split = path.stem.partition("_")
        files[kind][split] = [json.loads(line) for line in open(path, encoding="utf-8")]
    return facts, files


def arrange(items, s):
    """({kind: {split: records}}, {(kind, reason): how many were dropped})."""
    files, dropped = {}, collections.Counter()
    for kind, split, item in public.arrange(items, s, spool.Known()):
        if split is None:
            dropped[kind, item] += 1
        else:
            files.setdefault(kind, {each: [] for each in spool.SPLITS})[split].append(item)
    return files, dropped


def fails(tmp_path, name, file, **settings):
    """The one line that the program ends with; it must have written nothing."""
    with pytest.raises(SystemExit) as error:
        build(tmp_path, name, file, **settings)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def union(files, kind):
    return [r for split in ("train", "valid", "test") for r in files[kind][split]]


# ---------------------------------------------------------------------------------------- text

def test_documents_are_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i}\nits second line " + "word " * (i % 7) for i in range(60)]
    paragraphs[20] = "a paragraph longer than any document " * 10
    text = "\n\n".join(paragraphs)
    out = public.documents(text, 200)
    assert "".join("".join(out).split()) == "".join(text.split())
    joined = [p.strip() for d in out for p in d.split("\n\n")]
    assert joined == [p.strip() for p in paragraphs]  # no paragraph was cut
    assert [len(d) > 200 for d in out].count(True) == 1 and len(out) < 40
    assert public.documents("one line", 3) == ["one line"] and public.documents(" \n\n ", 9) == []


CODE = "    c = a + b\n    return c"


def test_the_indent_of_code_stays():
    """Of the first line, too, in all kinds of text; what else is taken away is counted."""
    made, _ = convert("alpaca", {"instruction": CODE, "input": "", "output": f"\n \n{CODE}\n\n"})
    assert made == [{"prompt": CODE, "response": CODE}]
    made, _ = convert("alpaca-preference", {"instruction": "Go on.", "input": "", "chosen": CODE,
                                            "rejected": "\treturn a"})
    assert [c["text"] for c in made[0]["completions"]] == [CODE, "\treturn a"]
    made, _ = convert("prompts", f"\n{CODE}")
    assert made == [{"prompt": CODE}]
    made, _ = convert("hh-rlhf", {"chosen": START + " " + CODE, "rejected": START + " No."})
    assert [c["text"] for c in made[0]["completions"]] == [CODE, "No."]
    assert public.documents(f"\n\n{CODE}\n\n    d = 1\n", 25) == [CODE, "    d = 1"]


def test_what_a_loader_takes_away_is_counted(tmp_path):
    """Two responses and a prompt of four rows; the rows with the indent alone are as they came."""
    rows = [("a", CODE), ("b", "x\n"), ("c", " y"), ("\n\nd", "z"), ("e", "u v")]
    file = save(tmp_path / "a.jsonl", [{"instruction": a, "input": "", "output": b}
                                       for a, b in rows])
    facts, _ = build(tmp_path, "alpaca", file)
    assert facts["altered"] == {"demonstrations": 3}
    assert "3 read without the blank lines, or the space" in public.report(facts, "out")
    file = save(tmp_path / "b.jsonl", [{"instruction": a, "input": "", "output": b}
                                       for a, b in rows[::4]])
    facts, _ = build(tmp_path, "alpaca", file)
    assert facts["altered"] == {} and "read without" not in public.report(facts, "out")


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    file = save(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(9)])
    assert build(tmp_path, "prompts", f"{file},{tmp_path}/../{tmp_path.name}/p.jsonl")[0][
        "rows"] == 9
    assert public.find_files(f"{tmp_path},{file}").count(file) == 1


def test_titles_of_wikitext_begin_documents():
    text = (" \n = First = \n \n Text \n = 1 \n \n = = Part = = \n \n More . \n \n"
            " = Second = \n \n End . \n")
    out = public.documents(text, 1000)
    assert [d.split("\n")[0].strip() for d in out] == ["= First =", "= Second ="]


def test_bom_and_crlf_go_and_folders_are_read_whole(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_bytes("\ufeffé one\r\n\r\ntwo\rthree".encode())
    save(tmp_path / "in" / "deep" / "b.jsonl.gz", [{"text": "four"}, {"text": "  "}])
    (tmp_path / "in" / "picture.png").write_bytes(b"\xff")
    facts, files = build(tmp_path, "text", tmp_path / "in")
    assert sorted(r["text"] for r in union(files, "text")) == ["four", "é one\n\ntwo\nthree"]
    assert facts["rows"] == 3 and facts["dropped"] == {"text": {"empty text": 1}}
    assert list(files) == ["text"]


# ------------------------------------------------------------------------------ demonstrations

def test_alpaca_and_dolly_put_the_input_under_the_instruction():
    made, reasons = convert("alpaca", {"instruction": "Add.", "input": "1, 2", "output": "3"},
                            {"instruction": "Sing.", "input": "", "output": " La. "},
                            {"instruction": "Wait.", "input": "", "output": " "})
    assert made == [{"prompt": "Add.\n\n1, 2", "response": "3"},
                    {"prompt": "Sing.", "response": "La."}]
    assert reasons == ["empty response"]
    made, _ = convert("dolly", {"instruction": "Who?", "context": "Ann sang.", "response": "Ann",
                                "category": "closed_qa"})
    assert made == [{"prompt": "Who?\n\nAnn sang.", "response": "Ann", "category": "closed_qa"}]


def test_dolly_hhrlhf_is_freed_of_the_words_around_it():
    wrapped = ("Below is an instruction that describes a task. Write a response that appropriately "
               "completes the request.\n\n### Instruction:\nName\na fruit.\n\n### Response:\n")
    made, _ = convert("dolly", {"prompt": wrapped, "response": "Fig"},
                      {"prompt": "Bare?", "response": "Yes"})
    assert [r["prompt"] for r in made] == ["Name\na fruit.", "Bare?"]


def test_self_instruct_and_p3():
    made, reasons = convert("self-instruct", {"instruction": "Double.", "instances": [
        {"input": "2", "output": "4"}, {"input": "", "output": "?"}]},
        {"instruction": "Nothing.", "instances": []})
    assert [r["prompt"] for r in made] == ["Double.\n\n2", "Double."]
    assert reasons == ["no instances"]
    made, reasons = convert("p3", {"prompt": "2+2?", "completion": "4<|endoftext|>"},
                            {"prompt": "Empty?", "completion": "<|endoftext|>"})
    assert made == [{"prompt": "2+2?", "response": "4"}] and reasons == ["empty response"]
    made, reasons = convert("flan", {"inputs": "2+2?", "targets": "4", "task": "sums"},
                            {"inputs": "Empty?", "targets": ""})
    assert made == [{"prompt": "2+2?", "response": "4"}] and reasons == ["empty response"]


def test_lists_of_prompts():
    made, reasons = convert("prompts", "Why?", {"prompt": "How?"}, "  ")
    assert made == [{"prompt": "Why?"}, {"prompt": "How?"}] and reasons == ["empty prompt"]


# ------------------------------------------------------------------------------------ rankings

START = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tell me\n\nAssistant:"


@pytest.mark.parametrize("chosen, rejected, texts", [
    (" Yes.", " No.", ["Yes.", "No."]),
    (" Yes.\n\nAssistant: Really.", " No.", ["Yes.\n\nAssistant: Really.", "No."]),
    (" Yes, of course.", " Yes, but", ["Yes, of course.", "Yes, but"]),
    ("", " No.", ["", "No."]),  # silence can be the better answer
])
def test_an_hh_prompt_ends_at_the_last_shared_assistant_turn(chosen, rejected, texts):
    made, _ = convert("hh-rlhf", {"chosen": START + chosen, "rejected": START + rejected})
    assert made == [{"prompt": START.strip(), "completions": [{"text": t} for t in texts],
                     "ranks": [1, 2]}]


@pytest.mark.parametrize("chosen, rejected, reason", [
    ("\n\nHuman: a", "\n\nHuman: b", "no shared prompt"),
    ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: x", "no shared prompt"),
    (START + " x", START + " x ", "all completions are the same"),
    (START + " x\n\nHuman: more\n\nAssistant: y", START + " z",
     "the person speaks again after the shared prompt"),
])
def test_hh_rows_that_cannot_be_used_say_why(chosen, rejected, reason):
    assert convert("hh-rlhf", {"chosen": chosen, "rejected": rejected}) == ([], [reason])


def message(text, *replies, **more):
    return {"text": text, "replies": list(replies), **more}


def test_openassistant_trees_become_rankings_and_demonstrations_with_their_turns():
    tree = message(
        "Q", message("worse", rank=1),
        message("best", message("Q2", message("only")), message("silence"), rank=0),
        message("no rank"), message("spam", message("lost", message("lost too")), rank=2,
                                    deleted=True), user_id="u", lang="en")
    made, reasons = convert("openassistant", {"prompt": tree})
    more = {"author": "u", "lang": "en"}
    assert made == [
        {"prompt": "Human: Q\n\nAssistant:", "completions": [{"text": "worse"}, {"text": "best"}],
         "ranks": [2, 1], **more},
        {"prompt": "Human: Q\n\nAssistant: best\n\nHuman: Q2\n\nAssistant:", "response": "only",
         "author": "u"}]
    assert sorted(reasons) == ["a reply without a rank", "no reply", "withheld, with all below it"]
    assert convert("openassistant", {"prompt": message("Q", message("a"), message("b"))}) == (
        [], ["replies without ranks"])


def test_finegrained_preferences_become_ranks_or_are_told():
    def row(votes):
        return {"question": "Q?", "passages": [["Title", "A sentence."], ["Other"]],
                "preference": votes, **{f"prediction {i}": f"p{i}" for i in (1, 2, 3, 4)}}

    #        1v2 1v3 1v4 2v3 2v4 3v4: p3 is best, p1 and p2 tie, p4 is worst
    made, _ = convert("finegrained-qa", row([0, 2, 1, 2, 1, 1]))
    assert made[0]["ranks"] == [2, 2, 1, 4]
    assert made[0]["prompt"] == "Q?\n\nTitle A sentence.\n\nOther"
    circle = [1, 2, 1, 1, 1, 1]  # p1 > p2 > p3 > p1
    ties = [0, 1, 1, 0, 1, 1]  # p1 = p2 = p3 and yet p1 > p3
    for votes in (circle, ties):
        assert convert("finegrained-qa", row(votes)) == (
            [], ["preferences that no ranking can express"])


def test_webgpt_and_summarize_and_preference_rows():
    def answers(a, b):
        question = {"full_text": "Why?", "dataset": "eli5", "id": "x"}
        return [{"question": question, "answer": f"answer {i} [1]", "score": score}
                for i, score in enumerate((a, b))]

    made, _ = convert("webgpt", answers(0.5, -0.5), answers(-1, 1), answers(0, 0))
    assert [r["ranks"] for r in made] == [[1, 2], [2, 1], [1, 1]] and made[0]["prompt"] == "Why?"

    summaries = [{"text": " first", "policy": "ref"}, {"text": " second", "policy": "sup"}]
    post = {"id": "t3", "post": "Long story", "title": "Help", "subreddit": "tifu"}
    made, _ = convert("summarize",
                      {"info": post, "summaries": summaries, "choice": 1, "worker": "w"},
                      {"info": {"article": "News", "post": None}, "summaries": summaries,
                       "choice": 0})
    assert made[0] == {
        "prompt": "SUBREDDIT: r/tifu\n\nTITLE: Help\n\nPOST: Long story\n\nTL;DR:", "ranks": [2, 1],
        "completions": [{"text": "first"}, {"text": "second"}], "labeler": "w"}
    assert made[1]["prompt"] == "Article:\n\nNews\n\nTL;DR:" and "labeler" not in made[1]

    made, _ = convert("alpaca-preference", {"instruction": "Say.", "input": "", "output": "-",
                                            "chosen": "good", "rejected": "bad"})
    assert made[0]["completions"] == [{"text": "good"}, {"text": "bad"}]


def test_a_ranking_gives_its_best_completion_as_demonstration_unless_several_are():
    ranking = {"prompt": "p", "completions": [{"text": t} for t in "abc"], "lang": "en",
               "labeler": "w"}
    assert public.best({**ranking, "ranks": [3, 1, 2]}) == {"prompt": "p", "response": "b",
                                                            "lang": "en"}
    assert public.best({**ranking, "ranks": [2, 1, 1]}) == "several are best"


# -------------------------------------------------------------------------------------- splits

def test_splits_partition_the_prompts_and_stay_the_same(tmp_path):
    rows = [{"instruction": f"question {i // 2}", "input": "", "output": f"{i}"}
            for i in range(2000)]  # each prompt twice
    file = save(tmp_path / "in.jsonl", rows)
    facts, files = build(tmp_path, "alpaca", file, split_valid=0.2, split_test=0.1)
    seen = {split: {r["prompt"] for r in files["demonstrations"][split]}
            for split in ("train", "valid", "test")}
    for a, b in itertools.combinations(seen, 2):
        assert not seen[a] & seen[b]
    assert sum(map(len, seen.values())) == 1000
    assert abs(len(seen["valid"]) - 200) < 40 and abs(len(seen["test"]) - 100) < 40
    assert facts["dropped"] == {"prompts": {"begins like another": 1000}}
    again = build(tmp_path, "alpaca", save(file, rows[::-1]), split_valid=0.2, split_test=0.1)[1]
    assert {r["prompt"] for r in again["demonstrations"]["valid"]} == seen["valid"]


def test_a_share_is_taken_by_prompt_and_changes_no_split(tmp_path):
    """A quick try on a part of the data holds out what the whole would hold out, and no row of a
    prompt is taken without its other rows."""
    rows = [{"instruction": f"question {i // 2}", "input": "", "output": f"{i}"}
            for i in range(2000)]
    file = save(tmp_path / "in.jsonl", rows)
    whole = build(tmp_path / "whole", "alpaca", file, split_valid=0.2)[1]
    facts, part = build(tmp_path / "part", "alpaca", file, split_valid=0.2, share=0.3)
    for split in ("train", "valid", "test"):
        taken = collections.Counter(r["prompt"] for r in part["demonstrations"][split])
        assert set(taken.values()) == {2}
        assert set(taken) < {r["prompt"] for r in whole["demonstrations"][split]}
        assert set(taken) == {r["prompt"] for r in part["prompts"][split]}
    kept = len(union(part, "demonstrations"))
    assert abs(kept - 600) < 120  # 1,000 prompts: 4 standard deviations
    assert facts["dropped"]["demonstrations"] == {"outside --share": 2000 - kept}


def test_a_chat_and_its_continuation_stay_together():
    s = public.Settings(split_valid=0.3, split_test=0.3, prefix=40)
    items = []
    for i in range(100):
        first = f"Human: question {i}\n\nAssistant:"
        items += [("prompts", {"prompt": first}),
                  ("prompts", {"prompt": f"{first} answer\n\nHuman: more\n\nAssistant:"})]
    files, dropped = arrange(items, s)
    where = collections.defaultdict(set)
    for split, out in files["prompts"].items():
        for record in out:
            where[record["prompt"].split("\n\n")[0]].add(split)
    assert [len(splits) for splits in where.values()] == [1] * 100 and not dropped


def test_authors_are_capped_and_kept_in_one_split():
    s = public.Settings(split_valid=0.3, split_test=0.3, cap=3)
    items = [("prompts", {"prompt": f"{author} asks {i}", "author": author})
             for author in map(str, range(40)) for i in range(5)]
    items.append(("prompts", {"prompt": "0 asks 1", "author": "0"}))
    stolen = [("demonstrations", {"prompt": "0 asks 0", "author": str(a), "response": "r"})
              for a in range(40)]
    files, dropped = arrange(items + stolen, s)
    split_of = {}
    for split, out in files["prompts"].items():
        for record in out:
            assert split_of.setdefault(record["author"], split) == split
    assert dropped["prompts", "over its author's cap"] == 40 * 2
    assert dropped["prompts", "begins like another"] == 1
    # the prompt is in the split of author 0: the copies by authors of other splits must go
    others = sum(split_of[str(a)] != split_of["0"] for a in range(40))
    assert dropped["demonstrations", "another author's, in another split, begins alike"] == others


@pytest.mark.parametrize("text, kind", [
    ("write to ann.lee+x@mail.example.org now", "mail address"),
    ("mine is 078-05-1120.", "social security number"),
    ("call (555) 010-1234", "phone number"), ("call 555-010-1234", "phone number"),
    ("call +1 555 010 1234", "phone number"), ("call +44 20 7946 0958", "phone number"),
    ("pay with 4111 1111 1111 1111", "card number"), ("5500005555555559", "card number"),
    ("I live at 221 N. Baker Street, 2nd floor", "street address"),
    ("to 350 5th Avenue", "street address"), ("from 12 West Oak Dr. on", "street address"),
    ("in 1999 Mr Smith Drove to the Street", None), ("3 roads, 2 Streets", None),
    ("4111 1111 1111 1112 fails its check digit", None), ("what is 1234567890 + 1?", None),
    ("from 2019-03-04 to 2020-05-06", None), ("@ann said 3.14159265358979", None),
    ("a + b = 555, ISBN 978-3-16-148410-0", None), ("x@y", None), ("version 1.2.3.4", None),
])
def test_personal_data(text, kind):
    assert public.personal(text) == kind


def test_personal_data_leaves_the_training_split_only_and_long_texts_take_no_time():
    items = [("prompts", {"prompt": f"{i}: mail me at ann@example.org"}) for i in range(200)]
    files, dropped = arrange(items, public.Settings(split_valid=0.3))
    held = sum(len(files["prompts"][split]) for split in ("valid", "test"))
    assert files["prompts"]["train"] == [] and 0 < held < 200
    assert dropped == {("prompts", "personal data: mail address"): 200 - held}
    assert not arrange(items, public.Settings(pii=False))[1]
    assert public.personal("a" * 200_000 + "1" * 200_000 + " 1 A" + "a" * 200_000) is None
    assert public.personal("1 Aa Bb Cc " * 50_000) is None


MAIL = "write to ann@example.org, {}"


def answers(a, b, question="Why?"):
    return [{"question": {"full_text": question}, "answer": answer, "score": score}
            for answer, score in ((a, 0.5), (b, -0.5))]


def summaries(a, b, post="Long story"):
    return {"info": {"post": post, "title": "Help", "subreddit": "tifu"}, "choice": 1,
            "summaries": [{"text": a}, {"text": b}]}


def votes(prompt, texts, preference):
    return {"question": prompt, "passages": [], "preference": preference,
            **{f"prediction {i + 1}": text for i, text in enumerate(texts)}}


IRREGULAR = {  # dataset: from a prompt and two texts to its row; and rows of its own
    "prompts": (lambda p, a, b: p, []),
    "alpaca": (lambda p, a, b: {"instruction": p, "input": "", "output": a}, []),
    "dolly": (lambda p, a, b: {"instruction": p, "context": b, "response": a},
              [{"prompt": "Bare?", "response": ""}]),
    "self-instruct": (lambda p, a, b: {"instruction": p, "instances": [
        {"input": b, "output": a}]}, [{"instruction": "Nothing.", "instances": []}]),
    "p3": (lambda p, a, b: {"prompt": p, "completion": f"{a}<|endoftext|>"}, []),
    "flan": (lambda p, a, b: {"inputs": p, "targets": a}, []),
    "alpaca-preference": (lambda p, a, b: {"instruction": p, "input": "", "chosen": a,
                                           "rejected": b}, []),
    "hh-rlhf": (lambda p, a, b: {
        "chosen": f"\n\nHuman: {p}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {p}\n\nAssistant: {b}"},
        [{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}]),
    "finegrained-qa": (lambda p, a, b: votes(p, [a, b, a, b], [1, 0, 1, 2, 0, 1]),
                       [votes("Q", list("abcd"), [1, 2, 1, 1, 1, 1])]),
    "webgpt": (lambda p, a, b: answers(a, b, p), [[dict(x, score=0) for x in answers("a", "b")]]),
    "summarize": (lambda p, a, b: summaries(a, b, p), []),
    "openassistant": (lambda p, a, b: {"prompt": message(
        p, message(a, rank=0), message(b, rank=1), user_id="u")},
        [{"prompt": message("Q", message("a"), message("b"))}, {"prompt": message("Alone?")}]),
}


FURTHER = {"hh-online", "hh-sampled", "red-team", "ultrafeedback", "nectar", "helpsteer2",
           "helpsteer3", "shp", "pku-saferlhf", "sharegpt", "trl"}  # see test_formats.py


@pytest.mark.parametrize("name", IRREGULAR)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_every_row_is_written_or_counted(tmp_path, name, suffix):
    """Of each loader: copies, near copies, personal data, white space, equal and empty texts."""
    assert set(IRREGULAR) == set(public.DATASETS) - {"text"} - FURTHER
    make, own = IRREGULAR[name]
    rows = [make(*texts) for texts in [
        *((f"question {i}", "good", "bad") for i in range(60)), ("question 1", "good", "bad"),
        *((MAIL.format(i), "good", "bad") for i in range(9)), ("x" * 300, "a", "b"),
        ("x" * 300 + "y", "a", "b"), (" ", "a", "b"), ("", "a", "b"), ("same", "a", "a"),
        ("silent", "", "b"), ("silent too", "a", " "), ("nothing", " ", "")]] + own
    facts, files = build(tmp_path, name, save(tmp_path / f"in{suffix}", rows), share=0.9)
    kind = public.DATASETS[name][0]
    kept = lambda kind: sum(len(out) for out in files.get(kind, {}).values())
    made, reasons = convert(name, *rows)
    assert facts["rows"] == len(rows) == kept(kind) + lost(facts, kind) == len(made + reasons)
    assert facts["kept"] == {k: {split: len(out) for split, out in splits.items()}
                             for k, splits in files.items()}
    for further in {"prompts": [], "demonstrations": ["prompts"],
                    "rankings": ["prompts", "demonstrations"]}[kind]:
        assert kept(further) + lost(facts, further) == len(made), further
    assert kept(kind) > 40 and lost(facts, kind) > 2


def test_text_is_cut_at_the_separator_or_the_mark_is_counted(tmp_path):
    """TinyStories is one file, with GPT's end of text spelled out between its stories."""
    stories = [f"Story {i}.\n\nThe end." for i in range(6)]
    (tmp_path / "a.txt").write_bytes("\r\n<|endoftext|>\r\n".join(stories).encode())
    facts, files = build(tmp_path, "text", tmp_path / "a.txt")
    assert facts["typed"] == 1 and len(union(files, "text")) == 1
    assert "1 records have <|endoftext|> in them" in public.report(facts, "out")
    facts, files = build(tmp_path, "text", tmp_path / "a.txt", separator="<|endoftext|>")
    assert sorted(r["text"] for r in union(files, "text")) == stories
    assert facts["typed"] == 0 and "<|endoftext|>" not in public.report(facts, "out")
    facts, _ = build(tmp_path, "alpaca", save(tmp_path / "b.jsonl", [
        {"instruction": "Why?", "input": "", "output": "So.<|endoftext|>"}]))
    assert facts["typed"] == 1  # the demonstration; its prompt has none


def test_what_is_replaced_is_told(tmp_path):
    """Two datasets into one folder, as the presets want it: demonstrations and prompts are of the
    second, unless it is told not to write its own."""
    one = save(tmp_path / "one.jsonl", [{"prompt": "Why?", "completion": "So."}])
    two = save(tmp_path / "two.jsonl", [{"chosen": f"{START} yes", "rejected": f"{START} no"}])
    facts, _ = build(tmp_path, "p3", one)
    assert facts["replaced"] == [] and "in place of" not in public.report(facts, "out")
    facts, _ = build(tmp_path, "hh-rlhf", two, demonstrations=False, prompts=False)
    assert facts["replaced"] == []
    facts, files = build(tmp_path, "hh-rlhf", two)
    assert facts["replaced"] == ["rankings", "demonstrations", "prompts"]
    assert "in place of the rankings, demonstrations, prompts" in public.report(facts, "out")
    assert [r["response"] for r in union(files, "demonstrations")] == ["yes"]


def test_what_is_written_is_never_read(tmp_path):
    """A second run on a folder that holds the first one's records would read each text twice, and
    one on a file of records would replace it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("One.")
    run = lambda file: public.build(public.Settings(name="text", file=str(file), split_test=0.0,
                                                    split_valid=0.0, out=str(tmp_path / "in")))
    run(tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for file in ("in", "in/text_train.jsonl"):
        with pytest.raises(SystemExit, match="_t.*.jsonl would be read, and replaced"):
            run(tmp_path / file)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


# -------------------------------------------------------------------------------------- errors

@pytest.mark.parametrize("body, message", [
    (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "2: no field 'completion'; there"),
    (b'{"prompt": 3, "completion": "b"}\n', "1: field 'prompt': expected str, got 3"),
    (b'{"prompt": "a", "completion": "b"}\n\n{"prompt"\n', "3: not JSON: "),
    (b'{"prompt": "\xff"}\n', "1: not UTF-8 at byte 12"),
    (b'{"prompt": "\\ud800", "completion": "b"}\n', "1: not Unicode: half of a surrogate pair"),
    (b'["prompt"]\n', "1: expected a JSON object, got [\"prompt\"]"),
    (b"[" * 100_000 + b"\n", "1: nested too deep"),
])
def test_a_bad_line_ends_the_program_with_its_place(tmp_path, body, message):
    (tmp_path / "in.jsonl").write_bytes(body)
    error = fails(tmp_path, "p3", tmp_path / "in.jsonl")
    assert error.startswith(f"error: {tmp_path}/in.jsonl:{message}") and "\n" not in error


def test_lists_name_the_item_and_the_line(tmp_path):
    file = save(tmp_path / "in.json", [{"instruction": "a", "input": "", "output": "b"}, {}])
    assert "in.json:item 2: no field 'instruction'; there are none" in fails(
        tmp_path, "alpaca", file)
    file.write_text('[\n{"instruction": "a", "input": "", "output": "b"},\n}')
    assert "in.json:3: not JSON" in fails(tmp_path, "alpaca", file)
    file.write_text('\n{"instruction": "a", "input": "", "output": "b"}\n')  # JSON lines after all
    assert build(tmp_path, "alpaca", file)[0]["rows"] == 1


def test_damaged_and_exploding_gz(tmp_path):
    rows = [{"chosen": f"{START} yes {i}", "rejected": f"{START} no {i}"} for i in range(300)]
    file = save(tmp_path / "in.jsonl.gz", rows)
    whole = file.read_bytes()
    size = len(gzip.decompress(whole))
    assert f"more than {size - 1:,} bytes unpacked" in fails(
        tmp_path, "hh-rlhf", file, max_bytes=size - 1)
    assert build(tmp_path / "fits", "hh-rlhf", file, max_bytes=size)[0]["rows"] == 300
    for damaged in (whole[:-200], b"no gzip", whole[:50] + b"\0" * 40 + whole[90:]):
        file.write_bytes(damaged)
        error = fails(tmp_path, "hh-rlhf", file)
        assert f"{file}:" in error and "damaged .gz" in error
    file.write_bytes(gzip.compress(b"\0" * 10**8))  # one line of 100 MB in 100 kB
    assert "in.jsonl.gz:1: more than 1,000,000 bytes" in fails(
        tmp_path, "hh-rlhf", file, max_bytes=10**6)


def test_a_bomb_takes_little_memory_with_the_settings_as_they_are(tmp_path):
    """Half a gigabyte in one line, in 500 KB."""
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(gzip.compress(b"\0" * 2**22) * 128)
    tracemalloc.start()
    try:
        assert "in.jsonl.gz:1: more than 268,435,456 bytes unpacked" in fails(
            tmp_path, "hh-rlhf", file)
        assert tracemalloc.get_traced_memory()[1] < 2**30
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name, row, message", [
    ("summarize", {"info": {"article": "a"}, "summaries": [], "choice": 0}, "is no summary 0"),
    ("summarize", {"info": {"article": "a"}, "summaries": [{"text": "a"}], "choice": 0},
     "at least 2 completions, got 1"),
    ("webgpt", [], "expected a list of two answers, got []"),
    ("webgpt", [dict(x, score=float("nan")) for x in answers("a", "b")],
     "field 'score': expected int or float, got NaN"),
    ("webgpt", [dict(x, score=True) for x in answers("a", "b")],
     "field 'score': expected int or float, got true"),
    ("webgpt", [answers("a", "b")[0], answers("a", "b", "How?")[1]],
     "two answers to different questions"),
    ("summarize", {"info": {}, "summaries": [], "choice": True},
     "field 'choice': expected int, got true"),
    ("finegrained-qa", {"preference": [1, 2]}, "expected six of 0, 1, 2, got [1, 2]"),
    ("openassistant", {"prompt": {"text": "Q"}}, "no field 'replies'"),
    ("openassistant", {"prompt": message("Q", message("a", rank=-1), message("b", rank=0))},
     "field 'ranks': expected a list of whole numbers from 1"),
    ("openassistant", {"prompt": message("Q", "reply")}, "expected a JSON object, got \"reply\""),
])
def test_empty_and_senseless_rankings(tmp_path, name, row, message):
    error = fails(tmp_path, name, save(tmp_path / "in.jsonl", [row]))
    assert "in.jsonl:1: " in error and message in error


def test_nothing_to_read_and_nothing_to_write_are_errors(tmp_path):
    file = save(tmp_path / "in.jsonl", [{"prompt": "a", "completion": ""}])
    assert "1 rows and no demonstrations" in fails(tmp_path, "p3", file)
    assert "--name=hh-rlhf" in fails(tmp_path, "hh", file)
    assert "no file nowhere" in fails(tmp_path, "p3", "nowhere")
    assert "no .txt" in fails(tmp_path, "p3", (tmp_path / "empty").mkdir() or
                              tmp_path / "empty")


def test_without_a_name_it_lists_the_datasets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["public"])
    public.main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("give one of these names") and len(lines) == len(public.DATASETS)
    assert "--name=dolly " in lines[3] and "databricks/databricks-dolly-15k" in lines[3]
    for name in ("HH-RLHF", "text"):  # no dataset's, and one that names no file
        assert f"error: --name={name}: give one of these" in fails(tmp_path, name, "")


def test_the_command_and_its_flags(tmp_path):
    rows = [{"chosen": f"{START} yes {i}", "rejected": f"{START} no {i}"} for i in range(3)]
    file = save(tmp_path / "in.jsonl", rows)
    done = subprocess.run([sys.executable, "-m", "data.public", "--name=hh-rlhf", f"--file={file}",
                           f"--out={tmp_path}/out", "--demonstrations=false"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 rows read" in done.stdout and "2 dropped: begins like another" in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{kind}_{split}.jsonl" for kind in ("rankings", "prompts")
        for split in ("train", "valid", "test")}


# ---------------------------------------------------------------------------------- real files

def check(facts, files, kinds):
    """Every record is valid, no split shares a prompt, and the counts are those of the files."""
    assert set(files) == set(kinds)
    for kind, splits in files.items():
        where = {}
        for split, out in splits.items():
            assert len(out) == facts["kept"][kind][split] > 0
            for number, record in enumerate(out):
                records.check(record, kind.rstrip("s"), f"{kind}_{split}:{number}")
                key = record["text"] if kind == "text" else record["prompt"]
                assert where.setdefault(key, split) == split, number


def lost(facts, kind):
    return sum(facts["dropped"].get(kind, {}).values())


@pytest.mark.parametrize("name", ["wikitext-2", "tinyshakespeare", "gutenberg"])
def test_real_text(tmp_path, name):
    folder = real(name)
    facts, files = build(tmp_path, "text", folder)
    check(facts, files, ["text"])
    counted, originals, titles = collections.Counter(), collections.Counter(), 0
    for path in folder.glob("*.txt"):
        text = path.read_bytes().decode("utf-8").lstrip("\ufeff")
        originals.update(text.split())
        lines = [line.strip() for line in text.split("\n")]
        titles += sum(line[:2] == "= " != line[2:4] and not before and not after  # " = 1" occurs
                      for before, line, after in zip(lines, lines[1:], lines[2:]))
    documents = [r["text"] for r in union(files, "text")]
    for document in documents:
        counted.update(document.split())
        assert "\r" not in document and "\ufeff" not in document
    assert counted == originals  # every word, as often as before
    begun = sum(d.startswith("= ") and not d.startswith("= =") for d in documents)
    assert begun == titles and (titles > 100) == (name == "wikitext-2")


@pytest.mark.parametrize("name, file, kinds, rows", [
    ("alpaca", "rasbt/instruction-data.json", ["demonstrations", "prompts"], 1100),
    ("alpaca-preference", "rasbt/instruction-data-with-preference.json",
     ["rankings", "demonstrations", "prompts"], 1100),
    ("dolly", "dolly", ["demonstrations", "prompts"], 1012),
    ("self-instruct", "self-instruct", ["demonstrations", "prompts"], 175 + 252),
    ("p3", "t0-p3", ["demonstrations", "prompts"], 350),
    ("hh-rlhf", "hh-rlhf", ["rankings", "demonstrations", "prompts"], 3000),
    ("finegrained-qa", "finegrained-qa-feedback", ["rankings", "demonstrations", "prompts"], 250),
    ("prompts", "openassistant/en_100_text.jsonl", ["prompts"], 100),
])
def test_real_rows_are_kept_or_counted(tmp_path, name, file, kinds, rows):
    facts, files = build(tmp_path, name, real(file))
    check(facts, files, kinds)
    assert facts["rows"] == rows == len(union(files, kinds[0])) + lost(facts, kinds[0])


def test_real_hh_rows_are_put_together_again():
    """prompt + completion is the transcript, for both; the last turn's own prompt often is not."""
    wrong, odd = [], 0
    for part in ("helpful-base", "harmless-base"):
        with gzip.open(real(f"hh-rlhf/{part}/test.jsonl.gz"), "rt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                row = json.loads(line)
                made, _ = convert("hh-rlhf", row)
                texts = [c["text"] for c in made[0]["completions"]]
                if any(" ".join(row[side].split()) != " ".join(f"{made[0]['prompt']} {t}".split())
                       for side, t in zip(("chosen", "rejected"), texts)):
                    wrong.append(f"{part}:{number}")
                odd += len({row[side].rpartition("\n\nAssistant:")[0] for side in row}) == 2
    assert not wrong and odd == 10  # 10 rows would have been cut in two different places


def test_real_openassistant_trees_against_a_walk(tmp_path):
    def walk(asked):
        ranks = [r["rank"] for r in asked["replies"] if "rank" in r]
        sizes[len(ranks)] += 1
        alone[0] += len(asked["replies"]) == 1
        for reply in asked["replies"]:
            for further in reply["replies"]:
                walk(further)

    sizes, alone = collections.Counter(), [0]
    path = real("openassistant/en_100_tree.jsonl")
    for line in open(path, encoding="utf-8"):
        walk(json.loads(line)["prompt"])
    facts, files = build(tmp_path, "openassistant", path, pii=False)
    check(facts, files, ["rankings", "demonstrations", "prompts"])
    rankings = union(files, "rankings")
    assert collections.Counter(len(r["ranks"]) for r in rankings) == {
        k: n for k, n in sizes.items() if k >= 2}
    assert {2, 9} <= set(sizes) and len(union(files, "demonstrations")) == len(rankings) + alone[0]
    best = {(r["prompt"], c["text"]) for r in rankings for c, rank in
            zip(r["completions"], r["ranks"]) if rank == 1}
    assert len(best - {(r["prompt"], r["response"]) for r in union(files, "demonstrations")}) == 0


def test_real_finegrained_ranks_say_what_the_votes_say():
    rows, disagree, dropped = json.loads(real("finegrained-qa-feedback/dev_feedback.json")
                                         .read_text(encoding="utf-8")), [], 0
    for number, row in enumerate(rows):
        made, reasons = convert("finegrained-qa", row)
        dropped += len(reasons)
        votes = iter(row["preference"])
        for i in range(4) if made else ():
            for j in range(i + 1, 4):
                a, b = made[0]["ranks"][i], made[0]["ranks"][j]
                if (1 if a < b else 2 if b < a else 0) != next(votes):
                    disagree.append(number)
    assert not disagree and dropped == 10
