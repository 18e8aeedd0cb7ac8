"""Each setting that the paper gives, typed off the paper again: a wrong value turns a test red.

Ouyang et al. 2022, arXiv 2203.02155v1, App. C.1 to C.4 and figure 38.
"""
import pytest

import ppo
import reward
import sft

SIZES = ("1.3b", "6b", "175b")
EACH = {  # (script, preset's ending, setting): of 1.3B, 6B and 175B
    (sft, "", "lr"): (9.65e-6, 9.65e-6, 5.03e-6), (sft, "", "batch"): (32, 32, 8),
    (sft, "-init", "lr"): (5e-6, 1.04e-5, 2.45e-6), (sft, "-init", "batch"): (32, 32, 8),
    (ppo, "", "lr"): (1.18e-5, 1.18e-5, 2.55e-6), (ppo, "", "value_lr"): (9e-6, 9e-6, 5e-6),
}
ALL = {  # the same for every size
    (sft, "", "epochs"): 16, (sft, "", "dropout"): 0.2, (sft, "", "warmup"): 0,
    (sft, "", "floor"): 0.1, (sft, "", "pretrain_mix"): 0.0,
    (sft, "-init", "epochs"): 2, (sft, "-init", "pretrain_mix"): 0.1,
    (sft, "-init", "floor"): 0.1, (sft, "-init", "warmup"): 0,
    (reward, "", "epochs"): 1, (reward, "", "batch"): 64, (reward, "", "lr"): 9e-6,
    (ppo, "", "iterations"): 500, (ppo, "", "batch"): 512, (ppo, "", "minibatch"): 64,
    (ppo, "", "inner_epochs"): 1, (ppo, "", "warmup"): 10, (ppo, "", "beta"): 0.02,
    (ppo, "", "ptx"): 27.8, (ppo, "", "ptx_rows"): 512, (ppo, "", "clip_ratio"): 0.2,
    (ppo, "", "discount"): 1.0, (ppo, "", "temperature"): 1.0, (ppo, "", "ema"): 0.992,
    (ppo, "", "max_new_tokens"): 1024,
}


def of_preset(script, preset, name):
    return getattr(script.Settings(**script.PRESETS[preset]), name)


@pytest.mark.parametrize("size", SIZES)
def test_presets_are_the_papers(size):
    wrong = {}
    expected = {**{key: values[SIZES.index(size)] for key, values in EACH.items()}, **ALL}
    for (script, ending, name), value in expected.items():
        got = of_preset(script, size + ending, name)
        if got != value:
            wrong[f"{script.__name__} --preset={size}{ending} --{name}"] = got, value
    assert not wrong


@pytest.mark.parametrize("script, name, value", [
    (sft, "epochs", 16), (sft, "dropout", 0.2), (sft, "floor", 0.1), (ppo, "clip_ratio", 0.2),
    (ppo, "discount", 1.0), (ppo, "temperature", 1.0), (ppo, "ema", 0.992),
    (ppo, "inner_epochs", 1), (ppo, "gae_lambda", 0.95), (reward, "epochs", 1)])
def test_what_the_toy_takes_over_from_the_paper(script, name, value):
    assert getattr(script.Settings(), name) == value


def test_an_iteration_has_eight_minibatches_and_eight_text_rows_an_episode():
    s = ppo.Settings(**ppo.PRESETS["175b"])
    assert s.batch // s.minibatch == 8 and s.ptx_rows == 8 * s.minibatch
    assert s.batch * s.iterations == 256_000
