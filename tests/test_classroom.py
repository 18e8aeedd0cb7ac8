"""The exercises: a hole is red, the project's own function is green, a known mistake is red with
its hint, two right solutions written differently are green. And the commands around them."""
import ast
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
import settings
from exercises import (course, cutting, defects, exporting, helpers, hunt, judge, student,
                       worker)

ROOT = Path(settings.__file__).parent
COURSE = course.load()
RIGHT = "def last_of(mask):\n    return mask & ~F.pad(mask[:, 1:], (0, 1))\n"
QUICK = ("loss-mask", "pairs", "weights", "center", "choose", "last-token", "warm-up", "accuracy")
long = pytest.mark.long
each = pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=long)
                                        for n in COURSE])


def verdict_of(exercise, source, folder):
    """The Verdict on a source, as a student gets it."""
    path = folder / Path(exercise.file).name
    path.write_text(source)
    return judge.judge(exercise, worker.run(exercise, path)[0])


def solutions(exercise):
    """The sources with the right solutions of tests/solutions in place."""
    text = (ROOT / "tests" / "solutions" / f"{exercise.name}.py").read_text()
    whole = cutting.reference(exercise.file)
    lines, nodes = text.splitlines(), ast.parse(text).body
    if exercise.part:  # these are functions around the statements that were cut
        cut = cutting.cut(whole, exercise.function, exercise.name, exercise.part).splitlines()
        at = next(i for i, line in enumerate(cut) if cutting.hole(exercise.name) in line)
        indent = cut[at][: len(cut[at]) - len(cut[at].lstrip()) - 4]
        return ["\n".join([*cut[:at], *(indent + line for line in
                                        lines[node.body[0].lineno - 1 : node.end_lineno]),
                           *cut[at + 1 :]]) + "\n" for node in nodes]
    spans = [cutting.lines_of(node) for node in nodes]
    return [cutting.replaced(whole, exercise.function, "\n".join(lines[a:b])) for a, b in spans]


def needed(exercise):
    if exercise.needs:
        pytest.importorskip(exercise.needs)
    return exercise


# ----------------------------------------------------------------------- what every exercise keeps

@pytest.mark.parametrize("name", COURSE)
def test_a_hole_is_red_and_says_which_exercise_it_is(name, tmp_path):
    exercise = needed(COURSE[name])
    try:
        source = cutting.cut(cutting.reference(exercise.file), exercise.function, name,
                             exercise.part)
    except cutting.Gone as gone:
        pytest.fail(f"exercise {name}: {exercise.file}: {gone}. Name the new function in "
                    "exercises/checks, or take the exercise out")
    verdict = verdict_of(exercise, source, tmp_path)
    assert verdict.blank and not any(verdict.held.values())
    assert "not written yet" in judge.explained(exercise, verdict)[0]


@each
def test_the_projects_own_function_is_green(name, tmp_path):
    exercise = needed(COURSE[name])
    verdict = verdict_of(exercise, cutting.reference(exercise.file), tmp_path)
    assert verdict.good, "\n".join(judge.explained(exercise, verdict))


@each
def test_two_right_solutions_written_differently_are_green(name, tmp_path):
    exercise = needed(COURSE[name])
    own = solutions(exercise)
    assert len(own) == 2
    for source in own:
        assert not cutting.same_code(cutting.text_of(source, exercise.function), cutting.text_of(
            cutting.reference(exercise.file), exercise.function))
        verdict = verdict_of(exercise, source, tmp_path)
        assert verdict.good, "\n".join(judge.explained(exercise, verdict))


@each
def test_each_known_mistake_is_red_and_gets_its_own_hint(name, tmp_path):
    exercise = needed(COURSE[name])
    known = defects.of_exercise(name)
    assert len(known) >= 2
    for n, defect in enumerate(known):  # the first one once more, as a student would write it
        source = defects.planted(cutting.reference(exercise.file), defect)
        verdict = judge.judge(exercise, judge.mistaken(exercise, defect)) if n else (
            verdict_of(exercise, source, tmp_path))
        assert not verdict.good and not verdict.blank, defect.name
        assert judge.recognised(exercise, verdict) == [defect]
        assert judge.explained(exercise, verdict)[-1] == f"Hint: {defect.hint}"


def test_a_check_leaves_this_process_as_it_was(tmp_path):
    """Also of a file that registers operators with PyTorch: whoever checks goes on computing with
    the project's own, and may be another test, or a server that grades."""
    exercise, source = COURSE["cross-entropy"], cutting.reference("kernels/losses.py")
    ours = lambda: {name: module for name, module in sys.modules.items() if str(
        getattr(module, "__file__", "")).startswith(str(ROOT))}
    x, W = torch.randn(5, 3), torch.randn(7, 3)
    expected = (x @ W.T).log_softmax(-1)[:, 2]
    logprob = lambda: kernels.token_losses(x, W, torch.full((5,), 2))[1]
    assert torch.allclose(logprob(), expected, atol=1e-5)
    before = ours()
    assert verdict_of(exercise, cutting.cut(source, "_exponentials", "cross-entropy"),
                      tmp_path).blank
    for defect in defects.of_exercise("cross-entropy"):
        verdict = verdict_of(exercise, defects.planted(source, defect), tmp_path)
        assert judge.recognised(exercise, verdict) == [defect]
    assert ours() == before
    assert torch.allclose(logprob(), expected, atol=1e-5)


@pytest.mark.parametrize("name", COURSE)
def test_a_hole_keeps_signature_and_docstring_and_the_rest_of_the_file(name):
    exercise = COURSE[name]
    before = cutting.reference(exercise.file)
    after = cutting.cut(before, exercise.function, name, exercise.part)
    node, old = (cutting.node_of(s, exercise.function) for s in (after, before))
    assert ast.dump(node.args) == ast.dump(old.args)
    assert ast.get_docstring(node) == ast.get_docstring(old)
    assert list(map(ast.dump, node.decorator_list)) == list(map(ast.dump, old.decorator_list))
    assert after.count(cutting.hole(name)) == 1
    if not exercise.part:
        assert len(node.body) == 1 + (ast.get_docstring(node) is not None)
    back = cutting.replaced(after, exercise.function, cutting.text_of(before, exercise.function))
    assert back == before


@pytest.mark.parametrize("name", COURSE)
def test_every_exercise_has_a_page_and_three_hints(name):
    exercise, page = COURSE[name], (ROOT / "exercises" / f"{name}.md").read_text()
    assert len(exercise.hints) == 3 and len(set(exercise.hints)) == 3
    assert f"`{exercise.file}: {exercise.function}`" in page and "Source: " in page
    assert re.findall(r"^## (.+)$", page, re.M) == ["The formula", "What to write", "A question"]
    assert page.count("```text\n") == 2 and f"python -m exercises check {name}\n" in page
    assert f"About {exercise.lines} line" in page
    assert page.partition("## A question")[2].strip().endswith("?")
    assert max(map(len, page.splitlines())) <= 110


CALLS = {  # of the project's own functions; what PyTorch has is not told
    "attention": [], "gae": [], "kl-reward": ["last_of"], "loss-mask": ["pad", "response_mask"],
    "agreement": ["rank", "impressions"], "weights": ["PrefixTree"], "ema": ["bare"],
    "win-rate": ["features", "rank", "impressions", "interval"], "center": ["score", "bare"],
    "ptx": ["groups_of", "accumulate", "clipped_policy_loss", "policy", "world.backward",
            "take_step"],
    "ranks": ["sft_loss", "world.share", "accumulate", "world.micro_batches", "pad_and_mask",
              "model", "world.backward", "world.sum", "take_step"]}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_student_would_have_to_look_for_is_told(name):
    """With its arguments, its file and its docstring: `accumulate` was only named in a hint."""
    lines = "\n".join(helpers.told(COURSE[name]))
    assert re.findall(r"^    ([\w.]+)\(.*\)    [\w/]+\.py$", lines, re.M) == CALLS[name]
    assert name != "ptx" or ("    accumulate(model, groups, more=False)    runtime/sharding.py\n"
                             "        Each group in turn." in lines
                             and "returns (loss, logprob, entropy)" in lines)
    assert name != "weights" or "    PrefixTree(rows, device='cpu')    kernels/prefixes.py" in lines


def test_numbers_in_the_pictures_are_right():
    """They were wrong in one: whitened numbers, rounded by hand."""
    def row(name, label):
        page = (ROOT / "exercises" / f"{name}.md").read_text()
        line = re.search(rf"^{label}  (.*)$", page, re.M)[1]
        return [float(x) for x in re.findall(r"-?\d*\.\d+", line)]

    near = lambda a, b, digits: a == [round(float(x), digits) for x in b]
    x = torch.tensor(row("whiten", "before"))
    assert near(row("whiten", "after"), (x - x.mean()) / x.std(correction=0), 1)
    p = torch.tensor(row("choose", "p"))
    assert row("choose", "cumulative")[: len(p)] == [round(float(c), 2) for c in p.cumsum(0)]
    scores = row("center", "scores of demonstrations")
    mean = scores.pop()
    assert mean == sum(scores) / 3 and row("center", "after")[:3] == [s - mean for s in scores]
    proxy, gold = (row("best-of-n", label)[:3] for label in ("proxy", "gold"))
    best = [gold[i] if proxy[i] > proxy[j] else gold[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert near(row("best-of-n", "gold .*best, gold"), [*best, sum(best) / 3], 2)


def test_pages_and_solutions_are_those_of_the_exercises():
    assert {p.stem for p in (ROOT / "exercises").glob("*.md")} == set(COURSE)
    assert {p.stem for p in (ROOT / "tests" / "solutions").glob("*.py")} == set(COURSE)
    assert {e.lesson for e in COURSE.values()} == set(course.LESSONS) and len(COURSE) >= 24


def test_the_code_has_no_marks():
    """An exercise is known by the name of its function; the real sources say nothing of it."""
    for file in {e.file for e in COURSE.values()}:
        assert "exercise" not in (ROOT / file).read_text().lower()


def test_names_that_are_gone_are_told():
    with pytest.raises(cutting.Gone, match="no function gae any more"):
        cutting.cut("def other():\n    pass\n", "gae", "gae")
    with pytest.raises(cutting.Gone, match="no statement 'for x' any more"):
        cutting.cut("def gae():\n    pass\n", "gae", "gae", "for x")


def test_moved_lines_do_not_matter():
    source = "import os\n\n\n@os.fspath\ndef f(a,\n      b):\n    x = 1\n    return x\n\n\ny = 2\n"
    hole = f"    {cutting.hole('f')}\n"
    assert cutting.cut(source, "f", "f") == source.replace("    x = 1\n    return x\n", hole)
    moved = "# new\n" * 9 + source
    assert cutting.cut(moved, "f", "f") == "# new\n" * 9 + cutting.cut(source, "f", "f")


# ----------------------------------------------------------------------- the judge and its pictures

def test_equal_or_not():
    same = lambda a, b: judge.equal(worker.packed(a), worker.packed(b), 1e-5)
    t = torch.tensor
    assert same(t([1.0, float("nan")]), t([1.0, float("nan")]).double())
    assert same(t(2.0), 2.0) and same([1, 2], (1, 2)) and same(None, None)
    assert not same(t([1.0]), t(1.0)) and not same(t([True]), t([1.0]))
    assert not same(t([1.0, 2.0]), t([1.0, 2.001])) and not same(None, 0.0)
    assert not same(float("inf"), 1e300) and not same([1], [1, 1]) and not same("a", 1)
    assert not same(object(), 1.0)


def test_the_picture_shows_the_smallest_case_with_yours_beside_expected(tmp_path):
    exercise = COURSE["gae"]
    bug = next(d for d in defects.of_exercise("gae") if d.name == "bootstrapped-past-the-end")
    verdict = verdict_of(exercise, defects.planted(cutting.reference("ppo.py"), bug), tmp_path)
    lines = judge.explained(exercise, verdict)
    size, _ = verdict.failing[0]
    assert size == min(size for size, _ in verdict.failing) == 11  # three columns
    text = "\n".join(lines)
    assert re.search(r"mask +0 +1 +0\n +reward .*\n +value .*\n +yours .*\n +expected .*\n +\^",
                     text)
    assert lines[-1] == f"Hint: {bug.hint}"


def test_a_mistake_that_nobody_knows_gets_no_wrong_hint(tmp_path):
    exercise, source = COURSE["gae"], cutting.reference("ppo.py")
    wrong = cutting.replaced(source, "gae", "def gae(reward, value, mask, discount, lam):\n"
                                            "    return 3 * reward, value\n")
    verdict = verdict_of(exercise, wrong, tmp_path)
    assert not verdict.good and judge.recognised(exercise, verdict) == []
    assert judge.explained(exercise, verdict)[-1].startswith("No mistake that we know")


def test_a_traceback_points_into_the_students_own_file(tmp_path):
    source = cutting.replaced(cutting.reference("ppo.py"), "last_of",
                              "def last_of(mask):\n    return mask.nothing\n")
    verdict = verdict_of(COURSE["last-token"], source, tmp_path)
    line = source.splitlines().index("    return mask.nothing") + 1
    assert f"ppo.py:{line}: return mask.nothing" in "\n".join(
        judge.explained(COURSE["last-token"], verdict))


def test_a_traceback_that_ends_elsewhere_points_into_the_students_own_file(tmp_path):
    """It pointed at the line of model.py that got the wrong ids."""
    source = cutting.replaced(cutting.reference("reward.py"), "collate",
                              "def collate(rankings, prompts, device):\n"
                              "    return PrefixTree(None, device)\n")
    said = "\n".join(judge.explained(COURSE["weights"], verdict_of(COURSE["weights"], source,
                                                                   tmp_path)))
    assert re.search(r"ends with +TypeError: .*\n +reward.py:\d+: return PrefixTree", said)


def test_what_cannot_be_drawn_beside_the_expected_is_said_with_the_inputs():
    """Of another shape or kind: the mask and the numbers were left out. A gradient of hundreds of
    numbers filled the screen."""
    whiten, last = COURSE["whiten"], COURSE["last-token"]
    case, wanted = whiten.cases()[0][1], judge.expected(whiten)[0]
    said = lambda e, case, wanted, x: "\n".join(judge.picture(
        e, case, {"value": {next(iter(wanted)): worker.packed(x)}}, wanted))
    text = said(whiten, case, wanted, torch.zeros(2))
    assert re.search(r"^  mask .*\n  x .*\n  white: yours has the shape \[2\], expected \[1, 3\]$",
                     text)
    case, wanted = last.cases()[0][1], judge.expected(last)[0]
    text = said(last, case, wanted, torch.zeros(1, 2))
    assert re.search(r"^  mask .*\n  last: yours is float32, expected bool$", text)
    long = judge.words(worker.packed(torch.arange(300.0).view(3, 100)))
    assert len(long) < 250 and long.startswith("[[0, 1, 2,") and long.endswith("... (300 numbers)")
    assert judge.words(worker.packed([[1.0, True], None])) == "[[1, 1], None]"


def text_of(exercise, source, folder):
    """(the Verdict on a source, what a student reads of it)."""
    verdict = verdict_of(exercise, source, folder)
    return verdict, "\n".join(judge.explained(exercise, verdict))


def loss_in(name, body):
    """The file of an exercise with another body of one line in its function."""
    e = COURSE[name]
    return cutting.cut(cutting.reference(e.file), e.function, name).replace(
        cutting.hole(name), body)


def test_a_wrong_number_is_shown_beside_the_right_one(tmp_path):
    """A loss was said to be float32 where float64 is expected, which is no mistake; of NaN in a
    loss this was all that was said."""
    verdict, said = text_of(COURSE["sft-loss"], loss_in("sft-loss", "return (-logprob * mask).sum()"
                                                                    " / tokens"), tmp_path)
    assert verdict.failing and "float" not in said
    assert re.search(r"^  loss +nan   yours\n +0\.13   expected$", said, re.M)
    close = {"loss": worker.packed(torch.tensor(1.0001)), "gradient": worker.packed(
        torch.tensor([[0.0, -0.5003, -0.5]]))}
    case, wanted = COURSE["sft-loss"].cases()[0][1], {
        "loss": worker.packed(torch.tensor(1.0)), "gradient": worker.packed(
            torch.tensor([[0.0, -0.5, -0.5]]))}
    said = "\n".join(judge.picture(COURSE["sft-loss"], case, {"value": close}, wanted))
    assert re.search(r"loss +1   yours\n +1   expected\n +0.0001   difference$", said, re.M)
    assert re.search(r"yours +0    -0.5    -0.5\n.*expected .*\n +difference +-0.0003\n +\^$", said)


@pytest.mark.parametrize("x, text", [
    (0.0, "0"), (1.0, "1"), (-0.25, "-0.25"), (1950.4, "1950"), (-1950.4, "-1950"),
    (1.23e9, "1.2e+09"), (-1.78e-148, "-2e-148"), (-0.001234, "-0.0012"), (True, "1"), (7, "7"),
    (float("nan"), "nan"), (float("-inf"), "-inf"), (-9.99e-5, "-0.0001")])
def test_a_number_leaves_room_for_the_next_one(x, text):
    """Of logits of thousands two numbers stood side by side as one."""
    assert judge.number(x) == text and len(text) <= 7
    assert judge.columns("yours", ["-123456", "x" * 12, "1"]).split()[1:] == [
        "-123456", "x" * 12, "1"]


def test_inputs_are_drawn_beside_a_result_only_as_rows_of_it():
    """All rows of the states stood in one line beside a result of one number a row. Where more
    than the drawn row counts, the whole is written, too."""
    exercise = COURSE["cross-entropy"]
    i = next(i for i, (_, c) in enumerate(exercise.cases()) if c["entropy"] and len(
        c["states"]) == 2)
    wanted = judge.expected(exercise)[i]
    mine = {**wanted, "mean": worker.packed(torch.zeros(2))}
    said = judge.picture(exercise, exercise.cases()[i][1], {"value": mine}, wanted)
    assert [line.split()[0] for line in said] == ["states", "embedding", "tile", "mean", "yours",
                                                  "expected", "^"]
    attention = COURSE["attention"]
    wanted = judge.expected(attention)[1]
    mine = {"y": worker.packed(torch.zeros(1, 1, 2, 2))}
    said = judge.picture(attention, attention.cases()[1][1], {"value": mine}, wanted)
    assert [line.split()[0] for line in said] == ["k", "v", "y[0,", "q", "k", "v", "yours",
                                                  "expected", "^"]


def test_what_reaches_a_result_as_nan_tells_the_mistake_wherever_it_is(tmp_path):
    """The textbook's gae, with nothing set to 0: the values behind the last token were not
    recognised, because the NaN of pads were in other places than with the known mistake."""
    body = """def gae(reward, value, mask, discount, lam):
    advantage, after, nxt = torch.zeros_like(reward), 0.0, torch.zeros(len(reward))
    for t in reversed(range(reward.size(1))):
        delta = reward[:, t] + discount * nxt - value[:, t]
        after = (delta + discount * lam * after) * mask[:, t]
        advantage[:, t], nxt = after, value[:, t]
    return advantage, (advantage + value) * mask
"""
    _, said = text_of(COURSE["gae"], cutting.replaced(cutting.reference("ppo.py"), "gae", body),
                      tmp_path)
    assert said.endswith("Hint: The value of a pad counts as the value of the state after the last "
                         "token.")
    case = {"x": torch.tensor([1.0, math.nan])}
    same = lambda case, a, b: judge.same_outcome(COURSE["gae"], case, *({"value": {
        "y": worker.packed(torch.tensor(x))}} for x in (a, b)))
    assert same(case, [math.nan, 1.0], [2.0, math.nan]) and not same(case, [1.0, 2.0], [1.0, 3.0])
    assert not same({"x": torch.ones(2)}, [math.nan, 1.0], [2.0, math.nan])


@pytest.mark.parametrize("name, body, said", [
    ("ranking-loss", "return float(scores.sum())", "TypeError: the loss has no gradient. Make it"),
    ("sft-loss", "return -logprob / tokens", "ValueError: the loss has the shape [1, 3]. It is")])
def test_a_loss_that_cannot_be_trained_is_told_as_such(name, body, said, tmp_path):
    """It was `'float' object is not iterable`, in a line that the student has not written. An error
    is no mistake that nobody knows."""
    _, text = text_of(COURSE[name], loss_in(name, body), tmp_path)
    assert said in text and text.endswith(f"\n\nStuck? python -m exercises hint {name}")


PTX = [f'sums["{name}"] += ' for name in ("loss/policy", "policy/entropy", "policy/ratio",
                                          "policy/approx_kl", "policy/clip_fraction")]
UNASKED = [("ptx", line, line.replace("+=", "-=")) for line in PTX] + [
    ("ptx", "return sums, take_step(policy", "return sums, 2 * take_step(policy"),
    ("ptx", "sums[\"loss/policy\"] += world.backward(loss)",
     "loss.backward(); sums[\"loss/policy\"] += loss.detach()"),
    ("ranks", "float(world.sum(total)), take_step", "float(world.sum(total)), 2 * take_step"),
    ("ranks", "owners=owners)", "owners=owners + 1)"),
    ("agreement", "in responses * 6:", "in responses * 5:"),
    ("cross-entropy", "else room[: n * V]", "else room")]


@long
@pytest.mark.parametrize("name, old, new", UNASKED, ids=lambda x: x if x in COURSE else "")
def test_all_that_a_page_asks_for_is_looked_at(name, old, new, tmp_path):
    """Nonsense in what ptx logs got full credit; so did a row's noise and a norm."""
    source = cutting.reference(COURSE[name].file)
    assert source.count(old) == 1
    assert not verdict_of(COURSE[name], source.replace(old, new), tmp_path).good


def test_attention_with_all_scores_at_once_is_no_attention_in_tiles(tmp_path):
    """Right numbers, but all of them in memory. To see that, no compiler is imported: it took a
    second of each run, with a dozen runs to find a hint."""
    tiles, source = COURSE["online-softmax"], cutting.reference("kernels/attention.py")
    verdict = verdict_of(tiles, cutting.replaced(source, "tiled_attention", """\
def tiled_attention(q, k, v):
    s = (q @ k.mT / math.sqrt(q.size(-1))).masked_fill(
        torch.ones(q.size(2), q.size(2)).triu(1).bool(), -math.inf)
    return s.softmax(-1) @ v, s.logsumexp(-1) * LOG2E
"""), tmp_path)
    assert [i for _, i in verdict.failing] and all(judge.differences(
        tiles, verdict.outcomes[i], judge.expected(tiles)[i]) == ["holds all T x T scores"]
        for _, i in verdict.failing)
    own = solutions(tiles)[0].replace("    B, H, T, D = q.shape\n    out, lse", "    import sys\n"
                                      "    assert 'torch._dynamo' not in sys.modules\n"
                                      "    B, H, T, D = q.shape\n    out, lse", 1)
    assert "_dynamo" in own and verdict_of(tiles, own, tmp_path).good


@long
def test_what_looks_alike_gets_no_hint_of_another(tmp_path):
    """Twice the loss on each rank is not `Each rank takes all rows`."""
    exercise, source = COURSE["ranks"], cutting.reference("sft.py")
    twice = source.replace("total += world.backward(loss)",
                           "total += world.backward(world.size * loss)")
    verdict, said = text_of(exercise, twice, tmp_path)
    assert not verdict.good and "No mistake that we know" in said


def test_other_holes_of_the_same_file_do_not_matter(tmp_path):
    source = cutting.reference("ppo.py")
    for name in ("last-token", "gae", "whiten"):
        source = cutting.cut(source, COURSE[name].function, name)
    assert verdict_of(COURSE["kl-reward"], source, tmp_path).good  # it calls last_of


# ----------------------------------------------------------------- what people do to files

@pytest.fixture
def place(tmp_path, monkeypatch):
    """A student's folder, with ppo.py and the hole of gae in it."""
    for name, path in (("ROOT", ""), ("KEPT", "kept"), ("PROGRESS", "progress.json"),
                       ("ANSWERS", "ppo.py")):  # a file that is there
        monkeypatch.setattr(student, name, tmp_path / path)
    monkeypatch.setattr(hunt, "ROOT", tmp_path)
    monkeypatch.setattr(hunt, "PLANTED", tmp_path / "planted.json")
    source = cutting.cut(cutting.reference("ppo.py"), "gae", "gae")
    (tmp_path / "ppo.py").write_text(source)
    return tmp_path


def others(content):
    """{name: code} of all functions but gae, as Python reads a file."""
    return {node.name: ast.dump(node) for node in ast.parse(content).body
            if isinstance(node, ast.FunctionDef) and node.name != "gae"}


LF = cutting.cut(cutting.reference("ppo.py"), "gae", "gae").encode()
WRITTEN = {  # by an editor, each the same code to Python
    "byte order mark": b"\xef\xbb\xbf" + LF, "line ends of Windows": LF.replace(b"\n", b"\r\n"),
    "form feeds": b"# a\x0cb\n\x0c\n# \x1c\n" + LF,
    "U+2028 and U+0085": "# a\u2028b\n# c\u0085d\n".encode() + LF,
    "a coding line": b"# coding: latin-1\n# \xe9\n" + LF, "no line end": LF.rstrip(b"\n")}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_read_as_python_reads_it(place, name):
    """It was called unreadable, or `reset` put the hole into the middle of another function."""
    content, gae = WRITTEN[name], COURSE["gae"]
    (place / "ppo.py").write_bytes(content)
    assert student.state(gae, {}) == "blank" and "def gae(" in student.text(gae)
    copy = student.put(gae, "def gae():\n    return 1\n")
    assert (place / copy).read_bytes() == content
    assert student.text(gae) == "def gae():\n    return 1\n"
    assert others((place / "ppo.py").read_bytes()) == others(content) == others(LF)
    student.put(gae, student.as_it_began(gae))
    assert student.state(gae, {}) == "blank"
    assert others((place / "ppo.py").read_bytes()) == others(LF)


@pytest.mark.parametrize("added, said", [
    (b"# \xe9", "ppo.py is not UTF-8 text"), (b"\0", "ppo.py.*null byte"),
    (b"def (", "ppo.py, line .*: invalid syntax"), (b"# coding: rot13", "ppo.py.*rot13"),
    (b"x = " + b"(" * 300 + b")" * 300, "ppo.py.*too many nested parentheses"),
    (b"x = " + b"-" * 100_000 + b"1", "ppo.py.*. Python cannot read the file$")],
    ids=["latin-1", "NUL", "syntax", "no encoding", "parentheses", "too deep"])
def test_a_file_that_python_cannot_read_stops_no_other_exercise(place, added, said):
    """`list`, and `check` of a right function in another file, ended with a complaint about it."""
    gae, content = COURSE["gae"], added + b"\n" + LF if b"coding" in added else LF + added
    (place / "ppo.py").write_bytes(content)
    assert student.state(gae, {}) == "broken" and "broken" in student.OPEN
    with pytest.raises(SystemExit, match=said) as error:
        student.text(gae)
    assert "\n" not in str(error.value)
    copy = student.put(gae, student.as_it_began(gae))
    assert student.state(gae, {}) == "blank" and (place / copy).read_bytes() == content


def test_a_file_that_is_gone(place):
    (place / "ppo.py").unlink()
    for use in (student.text, student.place, lambda e: student.put(e, "x")):
        with pytest.raises(SystemExit, match="ppo.py is missing: `git checkout ppo.py` brings"):
            use(COURSE["gae"])
    assert not (place / "kept").exists()


def test_half_a_copy_is_removed(tmp_path, monkeypatch):
    """A disk that is full: the copy had no answers.zip, and `start` called its folder not empty."""
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(student.zipfile, "ZipFile", full)
    monkeypatch.setattr(student, "files_of", lambda: ["ppo.py", "exercises/course.py"])
    with pytest.raises(OSError) as error:
        student.make(tmp_path / "mine", ["gae"])
    assert error.value.filename == str(tmp_path / "mine")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file is a file: choose another folder with --into"):
        student.make(tmp_path / "file", ["gae"])


def test_of_two_functions_with_one_name_the_last_counts():
    """As in Python. `check` called it right, while its grade was 0: the hole stood above it."""
    source = "def f():\n    return 1\n\n\ndef f():\n    return 2\n"
    assert cutting.text_of(source, "f") == "def f():\n    return 2\n"
    found = {}
    exec(cutting.replaced(source, "f", "def f():\n    return 3\n"), found)
    assert found["f"]() == 3


@pytest.mark.parametrize("content", [
    "[]", "3", "null", '"x"', "{", "[" * 10_000, '{"done": ["gae"], "hints": "x", "last": [1]}',
    '{"done": {"gae": 3}, "hints": {"gae": "x"}, "last": "gone"}', '{"hints": {"gae": -5}}'])
def test_a_progress_of_another_form(place, content):
    """Merged by git, or edited: it counts as empty where it makes no sense."""
    (place / "progress.json").write_text(content)
    assert student.state(COURSE["gae"], student.progress()) == "blank"
    assert [student.next_hint(COURSE["gae"])[0] for _ in range(2)] == [1, 2]
    student.remember(done={"gae": "x"}, last="gae")
    assert student.progress() == {"done": {"gae": "x"}, "hints": {"gae": 2}, "last": "gae"}


@pytest.mark.parametrize("bug", [[], 3, {}, {"bug": 3}, {"bug": hunt.packed(3)},
                                 {"bug": hunt.packed([1])}, {"bug": hunt.packed(["gone", ""])},
                                 {"bug": "x"}])
def test_a_planted_bug_of_another_form(place, bug):
    (place / "planted.json").write_text(json.dumps(bug))
    with pytest.raises(SystemExit, match="planted.json is damaged"):
        hunt.check()


def test_a_bug_that_cannot_be_planted_is_not_hunted(place, monkeypatch):
    """The disk is full, or the file is another user's: no planted.json is left behind."""
    whole = cutting.reference("ppo.py")
    (place / "ppo.py").write_text(whole)
    replace = os.replace

    def full(a, b):
        if Path(b).name == "ppo.py":
            raise OSError(28, "No space left on device")
        replace(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        hunt.plant("1")
    assert (place / "ppo.py").read_text() == whole and os.listdir(place) == ["ppo.py"]


# ----------------------------------------------------------------------- a student's copy

def python(folder, *words, status=0, seconds=300):
    """Run the classroom in a folder. Returns what it prints."""
    run = subprocess.run([sys.executable, "-m", "exercises", *words], cwd=folder, text=True,
                         capture_output=True, timeout=seconds,
                         env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""})
    assert run.returncode == status, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A student's copy with three holes."""
    folder = tmp_path_factory.mktemp("classroom") / "mine"
    names = ["last-token", "kl-reward", "pairs"]
    assert "3 holes" in python(ROOT, "start", *names, f"--into={folder}")
    return folder


def write(folder, name, body):
    """Put a student's text where the hole (or an earlier text) is."""
    exercise = COURSE[name]
    path = folder / exercise.file
    path.write_text(cutting.replaced(path.read_text(), exercise.function, body))


def test_a_copy_is_made_and_checked(tmp_path):
    """The shortest way: a copy, a hole that is filled, a check."""
    folder = tmp_path / "mine"
    python(ROOT, "start", "last-token", f"--into={folder}")
    assert cutting.hole("last-token") in (folder / "ppo.py").read_text()
    write(folder, "last-token", RIGHT)
    said = python(folder, "check", "last-token")
    assert "3 of 3 properties hold" in said and "All of them are done." in said


@long
def test_from_the_hole_to_done(copy):
    assert len(re.findall(r"^  blank ", python(copy, "list"), re.M)) == 3
    said = python(copy, "check", "last-token", status=1)
    assert "last-token: not written yet" in said and "# The last token" in said
    assert '    def last_of(mask):\n        """[B, T] bool' in said, "what is given and asked for"
    assert "## What is there" not in said
    assert "    last_of(mask)    ppo.py\n" in python(copy, "check", "kl-reward", status=1)
    python(copy, "check", "last-token", status=1)  # the last one is what `hint` is about
    hints = [python(copy, "hint") for _ in range(4)]
    assert [h[h.index("hint ") :][:11] for h in hints] == ["hint 1 of 3", "hint 2 of 3",
                                                           "hint 3 of 3", "hint 3 of 3"]
    write(copy, "last-token", "def last_of(mask):\n    print('hello')\n    return mask & ~F.pad("
                              "mask[:, :-1], (1, 0))\n")
    said = python(copy, "check", status=1)
    assert "Hint: This is the first token of each response." in said and "  hello" in said
    assert "-    raise NotImplementedError" in python(copy, "diff")
    assert "first `python -m exercises check" in python(copy, "diff", "--reference", status=1)
    write(copy, "last-token", RIGHT)
    said = python(copy, "check")
    assert "3 of 3 properties hold" in said and "The question of" in said
    assert "Next: python -m exercises check pairs" in said
    assert re.search(r"^  done +last-token", python(copy, "list"), re.M)
    assert "+    return mask & ~F.pad" in python(copy, "diff", "last-token", "--reference")


@long
def test_reset_keeps_what_the_student_wrote(copy):
    write(copy, "pairs", "def untied_pairs(ranks):\n    return 'my own text'\n")
    file = (copy / "data/records.py").read_text()
    assert "exercises/kept/pairs-1.py" in python(copy, "reset", "pairs")
    assert (copy / "exercises/kept/pairs-1.py").read_text() == file
    broken = (copy / "data/records.py").read_text() + "\ndef half(:\n"
    (copy / "data/records.py").write_text(broken)
    assert "Python cannot read the file" in python(copy, "check", "pairs", status=1)
    python(copy, "reset", "pairs")
    assert (copy / "exercises/kept/pairs-2.py").read_text() == broken
    assert "pairs: not written yet" in python(copy, "check", "pairs", status=1)


@long
def test_a_copy_has_a_git_repository_and_the_whole_project(copy):
    files = {f for f in student.files_of(ROOT)}
    assert {f for f in files if not (copy / f).exists()} == set()
    if (copy / ".git").exists():
        log = subprocess.run(["git", "log", "--oneline"], cwd=copy, capture_output=True, text=True)
        assert log.returncode == 0 and len(log.stdout.splitlines()) == 1
    run = subprocess.run([sys.executable, "sft.py", "--help"], cwd=copy, capture_output=True,
                         env={**os.environ, "PYTHONPATH": str(copy)})
    assert run.returncode == 0


def test_an_archive_replaces_no_source(tmp_path):
    """`export --into=ppo.py` put the archive in its place."""
    path = tmp_path / "ppo.py"
    path.write_text("mine")
    with pytest.raises(SystemExit, match="ppo.py: expected a name that ends in .zip"):
        exporting.main([], {"into": str(path)})
    assert path.read_text() == "mine"


def test_a_copy_holds_what_git_holds_and_no_other_copy(tmp_path):
    """Also beside results, archives and the copies of others."""
    for file in ("ppo.py", "README.md", "Makefile", "kernels/__init__.py", "docs/a.svg",
                 "tests/test_x.py", "out/x.md", "mine/README.md", "mine/kernels/__init__.py",
                 "students.zip", "grades.json", ".venv/x.py", "notebooks/gae.ipynb",
                 "kernels/__pycache__/x.pyc", "exercises/__init__.py", "exercises/kept/gae-1.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert student.files_of(tmp_path) == [
        "Makefile", "README.md", "docs/a.svg", "exercises/__init__.py", "kernels/__init__.py",
        "ppo.py", "tests/test_x.py"]
    held = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if held.returncode == 0:
        ours = {f for f in held.stdout.splitlines() if not f.startswith(".")}
        assert ours - set(student.files_of(ROOT)) == set()


@pytest.mark.parametrize("words, complaint", [
    (["chek"], "no command 'chek'"), (["check", "gea"], "did you mean gae?"),
    (["start", "gae"], "this is the project itself"), (["reset", "gae"], "this is the project"),
    (["check", "--fast"], "unknown flag '--fast'"), (["start", "--into="], "needs a value"),
    (["watch", "--times=x"], "--times=x: expected a whole"),
    (["start", "nothing", "--into=x"], "no exercise 'nothing'")])
def test_a_wrong_command_is_one_line(words, complaint, monkeypatch, capsys):
    from exercises import __main__
    monkeypatch.setattr(student, "PROGRESS", Path("/nowhere/progress.json"))
    with pytest.raises(SystemExit) as end:
        __main__.main(words)
    assert complaint in str(end.value) and "\n" not in str(end.value)


@long
def test_a_loop_without_end_is_ended(copy):
    """By its CPU time, so that a busy machine does not matter."""
    exercise = COURSE["last-token"]
    path = copy / "endless.py"
    path.write_text(cutting.replaced(cutting.reference("ppo.py"), "last_of",
                                     "def last_of(mask):\n    while True:\n        pass\n"))
    outcomes, _, _ = worker.run(exercise, path, worker.Limits(seconds=4))
    assert all("CPU time" in x["message"] for x in outcomes)


@long
def test_watch_checks_on_every_save(copy):
    """Two saves, two checks."""
    started = subprocess.Popen([sys.executable, "-m", "exercises", "watch", "kl-reward",
                                "--times=2"], cwd=copy, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"})
    try:
        for line in started.stdout:
            if "not written yet" in line:
                break
        write(copy, "kl-reward", "def shape_rewards(logprob, ref_logprob, score, mask, beta):\n"
              "    kl = torch.where(mask, logprob - ref_logprob, 0.0)\n"
              "    return torch.where(last_of(mask), score[:, None] - beta * kl, -beta * kl)\n")
        rest, _ = started.communicate(timeout=200)
        assert "5 of 5 properties hold" in rest
    finally:
        started.kill()


@long
def test_a_right_function_makes_the_students_own_ppo_train(tmp_path, demo):
    """A copy with one hole: its ppo.py stops at the hole, and trains when it is filled."""
    folder = tmp_path / "mine"
    python(ROOT, "start", "gae", f"--into={folder}")
    flags = ["--iterations=1", "--batch=8", "--minibatch=8", "--max_new_tokens=8", "--ptx=0",
             f"--out={tmp_path}/ppo"]
    train = lambda: subprocess.run(
        [sys.executable, str(folder / "ppo.py"), *flags], cwd=demo.folder, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})
    assert "exercise gae" in train().stderr
    lines = (ROOT / "tests/solutions/gae.py").read_text().partition("\n\n\n")[0]
    write(folder, "gae", lines)
    done = train()
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ppo/log.jsonl").read_text().splitlines()[0])["iteration"] == 1
