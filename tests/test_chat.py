"""The terminal: completions of a prompt, conversations, and what they are to be safe against."""
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import chat
import kernels
from runtime import checkpoint, huggingface
from data import tokenizer
from data.formats import openassistant
from data.batches import encode_prompt
from helpers import tiny, tiny_scalar
from model import last_score
from sampler import generate


@dataclass
class Example:
    max_new_tokens: int = 7


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of letters and their pairs."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "Anna is the baker. The baker lives in the mill.\nWho is Anna? Say it briefly.\n"
    (folder / "tokenizer.tiktoken").write_bytes(tokenizer.train_bpe(text, 280))
    return tokenizer.load_tokenizer("tokenizer.tiktoken", folder)


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    """A folder with a policy, `m`, a reward model, `rm`, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("chat")
    checkpoint.save(folder / "m", tiny(vocab_size=words.size, block_size=64), words, Example())
    judge = tiny_scalar(vocab_size=words.size, block_size=64)
    checkpoint.save(folder / "rm", judge, words, Example())
    other = tokenizer.Tokenizer("other", words.encoding, words.source + b"\n")
    checkpoint.save(folder / "other", tiny_scalar(vocab_size=words.size), other, Example())
    return folder


@pytest.fixture
def policy(made):
    return checkpoint.load(made / "m", {"GPT": chat.GPT}, "")[0]


def run(folder, monkeypatch, capsys, *words, typed=None):
    """What the program prints. typed: lines at a terminal; exceptions are raised in their place."""
    monkeypatch.chdir(folder)
    lines = iter([*(typed or []), EOFError()])

    def line(_):
        entry = next(lines)
        if not isinstance(entry, str):
            raise entry
        return entry

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(chat.sys.stdin, "isatty", lambda: typed is not None, raising=False)
    chat.main(list(words))
    return capsys.readouterr().out


def expected(policy, words, prompt, n=1, temperature=1.0, seed=1, new=20, before=(), first=0):
    samples = generate(policy, [[*before, *encode_prompt(words, prompt)]] * n, new, words.eos,
                       temperature, seed, list(range(first, first + n)))
    return [words.decode(ids) for ids in samples.responses()], samples


NEW = "--max_new_tokens=20"


def test_a_prompt_gives_its_completion(made, policy, words, monkeypatch, capsys):
    """That of `generate`, behind the template that all stages use, streamed or not."""
    out = run(made, monkeypatch, capsys, "m", "Who is Anna?", NEW)
    assert out == expected(policy, words, "Who is Anna?")[0][0] + "\n"
    out = run(made, monkeypatch, capsys, "m", "Who is Anna?  \n", NEW, "--temperature=0")
    assert out == expected(policy, words, "Who is Anna?", temperature=0.0)[0][0] + "\n"


def test_a_checkpoint_keeps_its_template(made, policy, words, tmp_path, monkeypatch, capsys):
    """It is applied wherever the model is loaded: here in the terminal."""
    own = tokenizer.Tokenizer("own", words.encoding, words.source)
    own.template = "Anna: {prompt}\nthe baker:"
    checkpoint.save(tmp_path / "m", policy, own, Example())
    assert words.template == "{prompt}\n" and encode_prompt(own, "Who? ") == own.encode(
        "Anna: Who?\nthe baker:")
    out = run(tmp_path, monkeypatch, capsys, "m", "Who?", NEW)
    assert out == expected(policy, own, "Who?")[0][0] + "\n"
    assert out != expected(policy, words, "Who?")[0][0] + "\n"
    with pytest.raises(SystemExit, match=r"rm was trained on prompts in the format '{prompt}\\n'"):
        run(tmp_path, monkeypatch, capsys, "m", "Who?", f"--reward={made}/rm")


def test_several_completions_with_their_scores(made, policy, words, monkeypatch, capsys):
    """--num, --temperature, --seed, --reward: each score is of the row as PPO scores it."""
    out = run(made, monkeypatch, capsys, "m", "Who?", NEW, "--num=4", "--temperature=0.7",
              "--seed=3", "--reward=rm")
    said, samples = expected(policy, words, "Who?", 4, 0.7, 3)
    scorer = checkpoint.load(made / "rm", {"ScalarGPT": chat.ScalarGPT}, "")[0]
    with torch.no_grad():
        scores = last_score(scorer(samples.ids), samples.lengths).tolist()
    assert out == "".join(f"[{i + 1}] {score:+.2f}  {text}\n"
                          for i, (score, text) in enumerate(zip(scores, said)))
    out = run(made, monkeypatch, capsys, "m", "Who?", NEW, "--reward=rm")
    assert re.fullmatch(r"(?s)(.*)  [+-]\d+\.\d\d\n", out).group(1) == (
        expected(policy, words, "Who?")[0][0])


def test_a_row_that_the_reward_model_cannot_read_has_no_score(made, policy, words, monkeypatch,
                                                              capsys):
    """It has a smaller context than the policy: the completion is shown, and why it has none."""
    judge = tiny_scalar(vocab_size=words.size, block_size=12)
    checkpoint.save(made / "short", judge, words, Example())
    (said,), samples = expected(policy, words, "Who?")
    n = int(samples.lengths[0])
    assert n > 12
    out = run(made, monkeypatch, capsys, "m", "Who?", NEW, "--reward=short")
    assert out == f"{said}  (no score: {n} tokens, the reward model's context has 12)\n"


def test_a_chat_is_put_as_the_records_of_chats_are(made, policy, words, monkeypatch, capsys):
    """--chat: the tokens of what data.public makes of the same chat; the oldest turns go first."""
    a, b, c = "Who is Anna?", "Say it.", "Is it?"
    lines = run(made, monkeypatch, capsys, "m", "--max_new_tokens=4", "--chat", typed=[a, b, "", c])

    def tree(*turns):
        first, *rest = turns
        reply = {"text": first[1], "replies": [tree(*rest)] if rest else []}
        return {"text": first[0], "replies": [reply]}

    chats = lambda *turns: [r["prompt"] for r in openassistant(
        {"prompt": tree(*turns)}) if isinstance(r, dict)]
    shown, number = [], 0
    for turns in ([a], [a, b], [c]):  # an empty line forgets
        prompt = chats(*((asked, shown[-1] if i < len(turns) - 1 else "x")
                         for i, asked in enumerate(turns)))[-1]
        shown += expected(policy, words, prompt, new=4, first=number)[0]
        number += 1
    assert lines.splitlines()[1:] == [*"\n".join(shown).splitlines(), ""]
    long = " ".join(["Who is Anna?"] * 3)
    out = run(made, monkeypatch, capsys, "m", "--max_new_tokens=4", "--chat", typed=[long, long, c])
    assert "error" not in out and len(out.splitlines()) >= 4


PROGRAM = [sys.executable, str(Path(chat.__file__).parent / "chat.py"), "m", NEW]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb"}


def piped(monkeypatch, content):
    """Let stdin be a pipe with some bytes."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


def test_a_prompt_on_stdin(made, policy, words, monkeypatch, capsys):
    prompt = "Who is Anna?\nSay it, naïve one.\n"
    piped(monkeypatch, prompt.encode())
    out = run(made, monkeypatch, capsys, "m", NEW)
    assert out == expected(policy, words, prompt)[0][0] + "\n"


@pytest.mark.parametrize("content, complaint", [
    (b"\xff\xfe", "the prompt on stdin is no UTF-8 text"), (b" \n", "the prompt is empty"),
    (b"", "the prompt is empty"), (b"Anna " * 100, "fills the context of 64"),
])
def test_a_bad_prompt_is_one_line(made, monkeypatch, capsys, content, complaint):
    piped(monkeypatch, content)
    with pytest.raises(SystemExit) as stop:
        run(made, monkeypatch, capsys, "m", NEW)
    assert stop.value.code.startswith("error: ") and complaint in stop.value.code
    assert "\n" not in stop.value.code and capsys.readouterr().out == ""


def test_without_any_stdin_a_prompt_is_asked_for(made, monkeypatch):
    """`<&-`, or a service: Python has no sys.stdin then."""
    monkeypatch.chdir(made)
    monkeypatch.setattr(chat.sys, "stdin", None)
    with pytest.raises(SystemExit, match="no terminal and no stdin: give the prompt in quotes"):
        chat.main(["m"])


def test_a_bad_prompt_is_a_failure_of_the_program(made):
    """In a process of its own, through chat.py: one line, nothing else, and exit status 1."""
    done = subprocess.run(PROGRAM, cwd=made, env=ENVIRONMENT, input=b"", capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == ["error: the prompt is empty"]


def test_a_long_prompt_leaves_less_room(made, policy, words, monkeypatch, capsys):
    prompt = "Anna " * 50
    length = len(encode_prompt(words, prompt))
    assert 50 < length < 60
    out = run(made, monkeypatch, capsys, "m", prompt, "--max_new_tokens=1000")
    assert out == expected(policy, words, prompt, new=64 - length)[0][0] + "\n"


@pytest.mark.parametrize("arguments, complaint", [
    ([], "expected: python chat.py CHECKPOINT"), (["m", "a", "b"], "the prompt in quotes"),
    (["m", "a", "--num=0"], "--num=0: expected a number >= 1"),
    (["m", "a", "--temperature=-1"], "--temperature=-1.0: expected a number >= 0"),
    (["m", "a", "--temprature=1"], "did you mean --temperature"),
    (["nothing", "a"], "nothing has no checkpoint: run `python sft.py` first"),
    (["rm", "a"], "rm holds a ScalarGPT, expected GPT"),
    (["m", "a", "--reward=m"], "m holds a GPT, expected ScalarGPT"),
    (["m", "a", "--reward=other"], "other has another tokenizer, other/tokenizer-"),
])
def test_wrong_arguments(made, monkeypatch, capsys, arguments, complaint):
    with pytest.raises(SystemExit, match=re.escape(complaint)):
        run(made, monkeypatch, capsys, *arguments)


def test_a_streamed_text_is_the_decoded_one(words, capsys):
    """Characters of several tokens come whole; the space that begins a line never shows."""
    text = "Anna is naïve 🎉\n lives\n\nin 世界\n"
    stream, seen = chat.Stream(words), ""
    for token in words.encode(text):
        stream(token)
        piece = capsys.readouterr().out
        assert "\ufffd" not in piece
        seen += piece
    assert seen == text


def test_history_is_what_fits_the_context(words):
    """The latest turns, whole ones, as long as prompt and answer have their room."""
    turns = [[1] * 10, [2] * 20, [3] * 5]
    assert chat.room_for([9] * 10, turns, 100, 30) == (turns[0] + turns[1] + turns[2], 30)
    assert chat.room_for([9] * 10, turns, 74, 30) == (turns[1] + turns[2], 30)
    assert chat.room_for([9] * 10, turns, 64, 30) == (turns[2], 30)
    assert chat.room_for([9] * 10, turns, 40, 30) == ([], 30)
    assert chat.room_for([9] * 10, turns, 12, 30) == ([], 2)
    with pytest.raises(ValueError, match="10 tokens and fills the context of 10"):
        chat.room_for([9] * 10, turns, 10, 30)


def test_a_conversation_keeps_its_turns(made, policy, words, monkeypatch, capsys):
    """Each prompt comes behind the turns before it; an empty line forgets them; the same prompt
    gets another noise; what does not fit is told, and the conversation goes on."""
    out = run(made, monkeypatch, capsys, "m", "--max_new_tokens=8",
              typed=["Who?", "Why?", "", "Why?", "Anna " * 100, "Who?"])
    (first,), a = expected(policy, words, "Who?", new=8)
    turn = encode_prompt(words, "Who?") + a.responses()[0] + [words.eos]
    (second,), _ = expected(policy, words, "Why?", new=8, before=turn, first=1)
    (third,), _ = expected(policy, words, "Why?", new=8, first=2)
    said = out.partition("before.\n")[2]
    assert said.startswith(f"{first}\n{second}\n{third}\nerror: the prompt has ")
    assert said.count("error:") == 1 and len(said.split("shorten it\n")[1]) > 1


def test_ctrl_c_drops_the_line_or_the_answer(made, policy, words, monkeypatch, capsys):
    """At the prompt, and in the middle of an answer: neither ends the program, nor stays."""
    step, calls = kernels.logits, []

    def interrupted(hidden, weight):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(hidden, weight)

    monkeypatch.setattr(kernels, "logits", interrupted)
    out = run(made, monkeypatch, capsys, "m", "--max_new_tokens=8",
              typed=[KeyboardInterrupt(), "Who?", "Why?"])
    monkeypatch.setattr(kernels, "logits", step)
    (answer,), _ = expected(policy, words, "Why?", new=8)
    assert out.endswith(f"\n{answer}\n\n")


@pytest.mark.parametrize("place", ["load", "generate"])
def test_ctrl_c_ends_a_single_answer(made, monkeypatch, capsys, place):
    """While the model is loaded, too: no traceback, and what a shell expects of Ctrl-C."""
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, place, interrupted)
    with pytest.raises(SystemExit) as stop:
        run(made, monkeypatch, capsys, "m", "Who?")
    assert stop.value.code == 130 and capsys.readouterr().out == "\n"


def heeds_ctrl_c():
    """What is started in the background inherits that SIGINT is ignored, and Python keeps to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_real_terminal(made):
    """through chat.py: a prompt, Ctrl-C twice, another prompt, Ctrl-D. It ends with success."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    parent, child = pty.openpty()
    process = subprocess.Popen(PROGRAM, cwd=made, env=ENVIRONMENT, stdin=child, stdout=child,
                               stderr=child, start_new_session=True, preexec_fn=heeds_ctrl_c)
    os.close(child)

    def prompted():
        """Wait until it asks: what is shown ends with a prompt, and nothing follows."""
        shown, end = b"", time.time() + 60
        while time.time() < end:
            if select.select([parent], [], [], 1.0)[0]:
                shown += os.read(parent, 1000)
            elif shown.endswith(b"> "):
                return
        raise AssertionError(f"no prompt after {shown}")

    prompted()
    for act in (lambda: os.write(parent, b"Who is Anna?\n"),
                lambda: process.send_signal(signal.SIGINT),
                lambda: process.send_signal(signal.SIGINT),
                lambda: os.write(parent, b"Who?\n")):
        act()
        prompted()
    os.write(parent, b"\x04")
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(parent)


@pytest.mark.parametrize("arguments, complaint", [
    (["export", "m"], "expected: python -m runtime.huggingface export CHECKPOINT FOLDER"),
    (["export", "nothing", "x"], "nothing has no checkpoint"),
    (["export", "m", "rm"], "rm is there already"),
])
def test_wrong_arguments_of_an_export(made, monkeypatch, arguments, complaint):
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit, match=re.escape(complaint)):
        huggingface.main(arguments)
