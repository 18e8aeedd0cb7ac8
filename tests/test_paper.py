"""Each setting that the paper gives, typed off the paper again: a wrong value turns a test red.

Ouyang et al. 2022, arXiv 2203.02155v1, App. C.1 to C.4 and figure 38.
"""
import pytest

import ppo
import reward
import sft
from data import public
from helpers import tiny
from labels import page, sample
from runtime.optimizer import cosine, make_optimizer

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
    (reward, "", "warmup"): 0,
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


T0 = sft.Settings(**sft.PRESETS["t0"])  # App. C.5


@pytest.mark.parametrize("settings, name, value", [
    (T0, "epochs", 1), (T0, "batch", 64),
    (ppo.Settings(**ppo.PRESETS["ppo"]), "ptx", 0.0), (sample.Settings(), "k_min", 4),
    (sample.Settings(), "k_max", 9), (page.Settings(), "k_min", 4), (public.Settings(), "cap", 200),
    (public.Settings(), "pii", True)])
def test_what_other_commands_take_over_from_the_paper(settings, name, value):
    assert getattr(settings, name) == value


def test_the_rate_of_the_reward_model_falls_to_a_tenth():
    assert cosine(600, 600, 9e-6) == pytest.approx(9e-7)  # reward.py names no other floor


@pytest.mark.parametrize("muon", [False, True])
def test_the_betas_of_adam(muon):
    groups = make_optimizer(tiny(), 1e-3, 0.1, muon=muon).param_groups
    assert {group["betas"] for group in groups if "betas" in group} == {(0.9, 0.95)}


def test_an_iteration_has_eight_minibatches_and_eight_text_rows_an_episode():
    s = ppo.Settings(**ppo.PRESETS["175b"])
    assert s.batch // s.minibatch == 8 and s.ptx_rows == 8 * s.minibatch
    assert s.batch * s.iterations == 256_000
