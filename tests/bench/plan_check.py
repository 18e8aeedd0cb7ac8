"""The cost model of plan.py beside what really happens on this CPU: the time of a step (and its
memory, for the tests; memory_check.py does that with whole scripts).

    OMP_NUM_THREADS=1 python tests/bench/plan_check.py

Each number is from a process of its own with random weights and random tokens. Memory is the peak
of what is resident, less what was resident once the modules were imported and a tiny model had
trained; glibc is told to give freed memory back, or its free lists would be counted as well (with
blocks of up to 1 MB kept, the activations of small models, they were up to 45 MB). Of time it is
CPU seconds that count, the least of five SFT steps, and of three PPO iterations, after
one to warm up. The time of all rows is planned with one utilisation, `MACHINES["cpu"]`'s.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SFT = [(256, 4, 4, 256, 8), (256, 6, 6, 384, 8), (256, 6, 8, 512, 16), (256, 12, 6, 384, 16),
       (512, 8, 8, 512, 8)]  # context, layers, heads, width, rows
PPO = [(64, 4, 4, 256, 64), (64, 6, 6, 384, 64), (64, 8, 8, 512, 64)]
VOCAB = 1024


def resident(name="VmRSS"):
    """Bytes of this process in memory now, or at its peak ("VmHWM"): getrusage's peak would begin
    with that of the process which started it."""
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) * 1024


def sft_steps(config, rows, n):
    """CPU seconds of n - 1 steps on full rows, after a first."""
    import torch

    import sft
    from model import GPT
    from runtime.optimizer import make_optimizer
    from runtime.world import World
    world, model = World(0, "cpu"), GPT(config)
    optimizer = make_optimizer(model, 1e-4, 0.1)
    s, times = sft.Settings(batch=rows, micro_batch=rows), []
    for _ in range(n):
        ids = torch.randint(0, config.vocab_size, (rows, config.block_size)).tolist()
        started = time.process_time()
        sft.train_step(model, optimizer, [(row, 1) for row in ids], 1e-4, s, world)
        times.append(time.process_time() - started)
    return times[1:]


def ppo_iterations(config, rows, n):
    """CPU seconds of n - 1 iterations, {phase: seconds} each: half a row prompt, half response, and
    a text row an episode."""
    import torch

    import ppo
    from model import GPT, ScalarGPT
    from runtime.optimizer import make_optimizer
    from runtime.world import World
    world, half, times = World(0, "cpu"), config.block_size // 2, []
    policy, reference = GPT(config), GPT(config).eval().requires_grad_(False)
    value, judge = ScalarGPT(config), ScalarGPT(config).eval().requires_grad_(False)
    optimizers = [make_optimizer(m, 1e-6, 0.0) for m in (policy, value)]
    ema = {k: v.clone() for k, v in policy.state_dict().items()}
    s = ppo.Settings(batch=rows, minibatch=rows // 4, micro_batch=rows // 4, ptx_rows=rows // 4,
                     max_new_tokens=half)
    draw = lambda t: torch.randint(0, config.vocab_size, (rows, t))
    for i in range(n):
        # No token is the end of text here, so that every response has the length it was planned.
        prompts, text, at = draw(half).tolist(), draw(config.block_size), [time.process_time()]
        e = ppo.rollout(policy, reference, judge, value, prompts, range(rows), -1, s, world)
        at.append(time.process_time())
        ppo.update(policy, value, optimizers, ema, e, text, 1e-6, i, s, world)
        at.append(time.process_time())
        times.append((at[1] - at[0], at[2] - at[1]))
    return times[1:]


def measure(script, sizes, n=None):
    """In a process of its own: (bytes at the peak, [seconds of each part]); n: runs."""
    from model import GPTConfig
    run = {"sft": sft_steps, "ppo": ppo_iterations}[script]
    run(GPTConfig(64, 16, 1, 2, 32), 4, 2)
    n = n or (6 if script == "sft" else 4)
    T, layers, heads, width, rows = sizes
    before = resident()
    times = run(GPTConfig(VOCAB, T, layers, heads, width), rows, n)
    peak = resident("VmHWM") - before
    parts = [min(x) for x in zip(*times)] if script == "ppo" else [min(times)]
    return peak, parts


def predict(script, sizes):
    """The same two by plan.py."""
    from model import GPTConfig
    from runtime.plan import MACHINES, Model, Work, memory, timing
    T, layers, heads, width, rows = sizes
    c, half = GPTConfig(VOCAB, T, layers, heads, width), T // 2
    policy, value = Model("policy", c, False, True, script == "ppo"), Model("value", c, True, True)
    if script == "sft":
        models, micro = [policy], rows
        work = [Work("update", "policy", policy, rows, 0, T, 1)]
    else:
        models, micro = [policy, Model("ref", c), value, Model("reward", c, True)], rows // 4
        row = rows, half, half
        work = [Work("rollout", "", policy, *row, longest=half),
                Work("scoring", "", models[1], *row),
                Work("scoring", "", value, *row), Work("scoring", "", value, *row),
                Work("update", "", policy, *row, 4), Work("update", "", value, *row, 4),
                Work("update", "", policy, rows, 0, T, 4)]
    m = MACHINES["cpu"]
    phases, _ = timing(work, 1, False, micro, m)
    parts = ([phases["rollout"] + phases["scoring"], phases["update"]] if script == "ppo"
             else [phases["update"]])
    return memory(models, work, 1, False, micro, m)["peak"], parts


def measured(script, sizes, seconds=True):
    """`measure` in new processes: the peak of one, or the seconds of another."""
    def run(n, **environment):
        words = [sys.executable, __file__, script, *map(str, sizes), str(n)]
        done = subprocess.run(words, capture_output=True, text=True, check=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
        return json.loads(done.stdout)

    return run(0)[1] if seconds else run(2, MALLOC_MMAP_THRESHOLD_="65536")[0]


def main():
    print("| run | parameters | seconds, measured | planned | error |\n|---|---|---|---|---|")
    from model import GPTConfig
    from runtime.plan import parameters
    for script, rows in (("sft", SFT), ("ppo", PPO)):
        for sizes in rows:
            parts, times = measured(script, sizes), predict(script, sizes)[1]
            T, layers, heads, width, n = sizes
            P = parameters(GPTConfig(VOCAB, T, layers, heads, width))
            names = ("rollout and scoring", "update") if script == "ppo" else ("step",)
            for name, a, b in zip(names, parts, times):
                print(f"| {script} {name}, {layers} x {width}, {n} rows of {T} | {P / 1e6:.1f} M | "
                      f"{a:.2f} | {b:.2f} | {b / a - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], tuple(map(int, sys.argv[2:-1])), int(sys.argv[-1]))))
    else:
        main()
