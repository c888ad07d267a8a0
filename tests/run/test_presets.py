"""presets.py: every preset is a set of flags that training accepts."""

from dataclasses import fields, replace

import pytest

from ppo_fast.run import presets
from ppo_fast.train import Args


@pytest.mark.parametrize("env_id", presets.PRESETS)
def test_a_preset_is_made_of_flags_that_training_accepts(env_id: str) -> None:
    tuned = presets.flags(env_id)
    assert tuned and set(tuned) <= {field.name for field in fields(Args)}
    args = replace(Args(), env_id=env_id, **tuned)
    args.check()
    for name, value in tuned.items():  # an int where a float is meant would print, and resume, as another value
        assert type(value) is type(getattr(Args(), name)), name


@pytest.mark.parametrize("env_id", presets.PRESETS)
def test_a_preset_spends_its_steps_on_whole_iterations(env_id: str) -> None:
    args = replace(Args(), **presets.flags(env_id))
    # What is rounded down is lost: a large rollout could cost a tenth of a run.
    assert args.num_iterations * args.batch_size > 0.99 * args.total_timesteps


def test_presets_name_no_plumbing() -> None:
    plumbing = {"env_id", "seed", "backend", "cuda", "track", "run_root", "quiet", "compile", "eval_episodes"}
    assert [env_id for env_id in presets.PRESETS if plumbing & set(presets.flags(env_id))] == []


def test_an_environment_without_a_preset_has_no_flags() -> None:
    assert presets.flags("LunarLander-v3") == {}


def test_flags_are_a_fresh_dict() -> None:
    presets.flags("Hopper-v5")["ent_coef"] = 0.5
    assert presets.flags("Hopper-v5")["ent_coef"] != 0.5
