"""Talk to a checkpoint in the terminal.

    python chat.py out/ppo-ptx                          a prompt; Ctrl-C stops, Ctrl-D ends
    python chat.py out/ppo-ptx "Who is Anna?"           one completion; or a prompt on stdin
    python chat.py out/ppo-ptx "Who is Anna?" --num=4 --temperature=0.7 --reward=out/rm
    python chat.py out/hh/ppo --chat                    for a model that learnt from chats
    python chat.py gpt2 "Once upon a time"              any model that --init takes
"""
import os
import sys
from dataclasses import dataclass

from settings import parse, stop  # before torch

import torch

from data import records
from data.tokenizer import encode_prompt
from model import GPT, ScalarGPT
from runtime.checkpoint import load, load_for
from runtime.world import World
from sampler import generate


@dataclass
class Settings:
    """python chat.py CHECKPOINT [PROMPT]"""
    num: int = 1  # completions of each prompt; a single one is shown as it is sampled
    temperature: float = 1.0  # 0 is greedy
    seed: int = 1  # of the sampling noise
    max_new_tokens: int = 128  # fewer where the context has less room
    chat: bool = False  # write the conversation as turns, "Human: ... Assistant:", as in hh-rlhf
    reward: str = ""  # reward model whose score is shown beside each completion
    device: str = "auto"  # cpu, cuda or auto


class Stream:
    """Prints a response as its tokens arrive, whole characters only."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], 0

    def __call__(self, token):
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids).rstrip("\N{REPLACEMENT CHARACTER}")
        self.show(text)

    def show(self, text):
        print(text[self.shown :], end="", flush=True)
        self.shown = max(self.shown, len(text))


def room_for(prompt, history, block_size, max_new_tokens):
    """(the tokens of the latest turns that fit before a prompt, how many new tokens fit after it).

    Raises ValueError where the prompt alone fills the context.
    """
    free = block_size - len(prompt)
    if free < 1:
        raise ValueError(f"the prompt has {len(prompt)} tokens and fills the context of "
                         f"{block_size}: shorten it")
    new, before = min(max_new_tokens, free), []
    for turn in reversed(history):
        if len(turn) + len(before) > free - new:
            break
        before = turn + before
    return before, new


class Speaker:
    """A model, its settings and the conversation so far."""

    def __init__(self, checkpoint, s):
        self.s, self.history, self.turn = s, [], 0
        device = World(s.seed, s.device).device
        self.model, self.tokenizer, _ = load(checkpoint, {"GPT": GPT}, "python sft.py")
        self.reward = None
        if s.reward:
            self.reward = load_for(self.tokenizer, s.reward, {"ScalarGPT": ScalarGPT},
                                   "python reward.py")
            self.reward.to(device).eval()
        self.model.to(device).eval()

    def laid_out(self, text):
        """(ids before a prompt, ids of the prompt, how many new tokens fit after it).

        Turns follow each other, each with its EOS, like documents in a row of text. With
        --chat all turns form one prompt, as in the records of data.public.
        """
        block, most = self.model.config.block_size, self.s.max_new_tokens
        prompt, history = encode_prompt(self.tokenizer, text), self.history
        if self.s.chat:
            for first in range(len(history) + 1):
                chat = records.asked("".join(history[first:]), text)
                prompt = encode_prompt(self.tokenizer, chat)
                if len(prompt) + most <= block:
                    break
            history = []
        before, new = room_for(prompt, history, block, most)
        return before, prompt, new

    def answer(self, text):
        """Print s.num completions of a prompt; the history keeps the first."""
        s, eos = self.s, self.tokenizer.eos
        before, prompt, new = self.laid_out(text)
        stream = Stream(self.tokenizer)
        watch = lambda rows, tokens: tokens[0] != eos and stream(tokens[0])
        numbers = [self.turn * s.num + i for i in range(s.num)]  # new noise each turn
        samples = generate(self.model, [before + prompt] * s.num, new, eos, s.temperature, s.seed,
                           numbers, watch if s.num == 1 else None)
        responses = samples.responses()
        for i, (ids, ended) in enumerate(zip(responses, samples.ended.tolist())):
            said = self.tokenizer.decode(ids)
            score = self.score(prompt + ids + [eos] * ended)
            if s.num == 1:
                stream.show(said)
                print(score and f"  {score}")
            else:
                print(f"[{i + 1}] {score}{score and '  '}{said}")
        said = self.tokenizer.decode(responses[0])
        self.history.append(records.answered(records.asked("", text), said) if s.chat
                            else prompt + responses[0] + [eos])
        self.turn += 1

    @torch.no_grad()
    def score(self, ids):
        """The reward model's score of a prompt with its response, as text; "" without one."""
        if self.reward is None:
            return ""
        if len(ids) > (most := self.reward.config.block_size):
            return f"(no score: {len(ids)} tokens, the reward model's context has {most})"
        ids = torch.tensor([ids], device=next(self.reward.parameters()).device)
        return f"{float(self.reward(ids)[0, -1]):+.2f}"


def converse(speaker):
    """Prompts from the terminal until Ctrl-D. Ctrl-C drops the line, or the rest of an answer."""
    try:
        import readline  # noqa: F401  arrow keys and earlier lines, where Python has it
    except ImportError:
        pass
    print("Ctrl-C stops an answer, Ctrl-D ends, an empty line forgets what was said before.")
    while True:
        try:
            text = input("> ")
            if text.strip():
                speaker.answer(text)
            else:
                speaker.history.clear()
        except KeyboardInterrupt:
            print()
        except ValueError as error:  # a prompt that does not fit
            print(f"error: {error}")
        except EOFError:
            print()
            return


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    flags = [arg for arg in argv if arg.startswith("--") or arg == "-h"]
    words = [arg for arg in argv if arg not in flags]
    s = parse(Settings, argv=flags)
    if not 1 <= len(words) <= 2:
        stop("expected: python chat.py CHECKPOINT [PROMPT], the prompt in quotes")
    try:  # arguments are UTF-8, but Python decoded them by the locale
        words[1:] = [os.fsencode(word).decode() for word in words[1:]]
    except (UnicodeDecodeError, UnicodeEncodeError):
        stop("the prompt is no UTF-8 text")
    if len(words) == 1 and sys.stdin is None:
        stop("there is no terminal and no stdin: give the prompt in quotes")
    if len(words) == 1 and not sys.stdin.isatty():
        try:
            words.append(sys.stdin.buffer.read().decode())
        except UnicodeDecodeError:
            stop("the prompt on stdin is no UTF-8 text")
    if len(words) == 2 and not words[1].strip():
        stop("the prompt is empty")
    try:
        speaker = Speaker(words[0], s)
        if len(words) == 1:
            return converse(speaker)
        try:
            speaker.answer(words[1])
        except ValueError as error:  # a prompt that does not fit
            stop(error)
    except KeyboardInterrupt:  # while the model was loaded, or in the only answer
        print()
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
