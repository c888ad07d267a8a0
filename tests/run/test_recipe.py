"""recipe.py: what an environment gets by its kind where nobody names it."""

import itertools
import json
import random
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import gymnasium
import numpy as np
import pytest

from ppo_fast import train as train_program, train_lstm
from ppo_fast.envs.sight import Sight
from ppo_fast.run import cli, recipe, settle
from ppo_fast.run.run_flags import RunFlags
from ppo_fast.train import Args, train

pytestmark = pytest.mark.fitted

ACTIONS: list[tuple[Literal["discrete", "continuous"], int]] = [("discrete", 2), ("continuous", 1), ("continuous", 17)]
OBSERVATIONS: list[tuple[Literal["table", "numbers"], int]] = [("table", 16), ("numbers", 3), ("numbers", 376)]
# Of what is watched: sparse, falls, unrewarded.
SEEN = {
    "discrete": ((False, False, False), (False, False, True)),
    "continuous": ((False, False, False), (True, False, False), (False, True, False)),
}
KINDS = [
    Sight(actions, action_size, observation, observation_size, limit, reach, *seen)
    for actions, action_size in ACTIONS
    for observation, observation_size in OBSERVATIONS
    for limit in (None, 20, 200, 1000, 27_000)
    for seen in SEEN[actions]
    for reach in ((2.0,) if action_size == 1 else (1.0,))
]


def chosen(sight: Sight, **named) -> dict:
    """All that the recipe chooses."""
    given = {"total_timesteps": 500_000, **named}
    return {name: value for choice in recipe.VECTORS.choose(sight, given) for name, value in choice.flags.items()}


@pytest.mark.parametrize(("own", "program"), [(recipe.VECTORS, train_program), (recipe.MEMORY, train_lstm)])
def test_its_defaults_are_those_of_the_program(own: recipe.Recipe, program: ModuleType) -> None:
    defaults = vars(program.Args())
    assert {name: defaults[name] for name in own.defaults} == own.defaults
    assert program.Args.by_kind is own


@pytest.mark.parametrize("sight", KINDS, ids=str)
def test_it_chooses_flags_that_training_accepts(sight: Sight) -> None:
    for envs, steps, total in itertools.product((None, 1, 3, 64, 65_536), (None, 1, 500), (70_000, 10**9)):
        named = {"num_envs": envs, "num_steps": steps, "total_timesteps": total}
        named = {name: value for name, value in named.items() if value is not None}
        if (envs or 0) * (steps or 1) > total:
            continue
        flags = chosen(sight, **named)
        assert set(flags) <= set(recipe.VECTORS.defaults)
        for name, value in flags.items():  # an int where a float is meant would print, and resume, as another value
            default = getattr(Args(), name)
            assert type(value) is (float if default is None else type(default)), name
        replace(Args(), **{**flags, **named}).check()


@pytest.mark.parametrize("own", [recipe.VECTORS, recipe.MEMORY])
@pytest.mark.parametrize("actions", ["discrete", "continuous"])
def test_what_is_watched_changes_the_watched_flags_alone(
    own: recipe.Recipe, actions: Literal["discrete", "continuous"]
) -> None:
    changed = set()
    for sight in (kind for kind in KINDS if kind.actions == actions):
        unseen = replace(sight, sparse=False, falls=False, unrewarded=False)
        flags, others = (
            {
                name: flag
                for choice in own.choose(kind, {"total_timesteps": 500_000})
                for name, flag in choice.flags.items()
            }
            for kind in (sight, unseen)
        )
        changed |= {name for name in flags.keys() | others.keys() if flags.get(name) != others.get(name)}
    assert changed == set(own.watched[actions])


@pytest.mark.parametrize("own", [recipe.VECTORS, recipe.MEMORY])
def test_each_flag_is_chosen_once_with_a_reason(own: recipe.Recipe) -> None:
    for sight in KINDS:
        choices = own.choose(sight, {"total_timesteps": 500_000})
        names = [name for choice in choices for name in choice.flags]
        assert len(set(names)) == len(names)
        assert all(choice.why and choice.flags for choice in choices)


def test_a_memory_gets_its_own() -> None:
    for env_id, flags in (("Pendulum-v1", ("kl", None)), ("CartPole-v1", ("linear", 0.08))):
        args, beginning = settle.settle(train_lstm.Args(env_id=env_id))
        assert (args.lr_schedule, args.target_kl) == flags and beginning.notes[0].startswith("recipe ")
        assert settle.settle(train_lstm.Args(env_id=env_id, lr_schedule="constant"))[0].lr_schedule == "constant"


def test_one_number_and_a_goal_far_away_get_more_noise() -> None:
    for program in (train_program, train_lstm):
        for env_id, far in (("MountainCarContinuous-v0", True), ("InvertedPendulum-v5", False), ("Pendulum-v1", False)):
            args, _ = settle.settle(program.Args(env_id=env_id, recipe=True))
            assert (args.log_std_init == 1.0 and args.gamma == 0.999) is far, env_id
    for size in (1, 2):
        sparse = Sight("continuous", size, "numbers", 3, 1000, sparse=True)
        assert (chosen(sparse).get("gamma") == 0.999) is (size == 1)


def test_where_nothing_is_rewarded_errors_of_the_values_stay_small() -> None:
    numbers = Sight("discrete", 4, "numbers", 2, 100)
    table = replace(numbers, observation="table")
    for sight, quiet in ((numbers, False), (replace(numbers, unrewarded=True), True), (table, True)):
        assert (chosen(sight).get("adv_std_min", 0.0) > 0) is quiet
        assert "adv_std_min" not in chosen(sight, norm_reward=False)  # of rewards whose scale nobody knows
        assert "adv_std_min" not in chosen(sight, norm_adv=False)  # since nothing is divided


def test_nothing_is_known_before_a_far_corner_is_found() -> None:
    """From the environment to the flags, and what is said of them."""
    gymnasium.register("FarCorner-v0", lambda **_: Corner(), max_episode_steps=100)
    try:
        args, beginning = settle.settle(Args(env_id="FarCorner-v0"))
        named, _ = settle.settle(Args(env_id="FarCorner-v0", norm_reward=False))
    finally:
        gymnasium.registry.pop("FarCorner-v0")
    assert args.adv_std_min == 0.1 and "--adv-std-min 0.1 (small advantages" in " ".join(
        "\n".join(beginning.notes).split()
    )
    assert named.adv_std_min == 0.0


class Corner(gymnasium.Env):
    """A reward that 256 random actions don't meet."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,))
    action_space = gymnasium.spaces.Discrete(4)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_nothing_is_stepped_for_what_is_named() -> None:
    made = Corner()
    gymnasium.register("FarCorner-v0", lambda **_: made, max_episode_steps=100)
    try:
        settle.settle(Args(env_id="FarCorner-v0", gamma=0.98))
        assert made.steps == 256
        made.steps = 0
        settle.settle(Args(env_id="FarCorner-v0", adv_std_min=0.2))
        assert made.steps == 0
        settle.settle(train_lstm.Args(env_id="FarCorner-v0"))  # whose recipe would make nothing of it
        assert made.steps == 0
    finally:
        gymnasium.registry.pop("FarCorner-v0")


class Lucky(gymnasium.Env):
    """Rewarded by chance, from the process-wide generator."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(random.random() < 0.0027), False, False, {}


def test_a_seed_chooses_the_same_each_time() -> None:
    gymnasium.register("Lucky-v0", lambda **_: Lucky(), max_episode_steps=500)
    try:
        by_seed = {}
        for seed in range(8):
            state = random.getstate()
            found = [settle.settle(Args(env_id="Lucky-v0", seed=seed))[0].gamma for _ in range(3)]
            assert random.getstate() == state
            assert len(set(found)) == 1
            by_seed[seed] = found[0]
    finally:
        gymnasium.registry.pop("Lucky-v0")
    assert set(by_seed.values()) == {0.99, 0.999}


def test_it_never_looks_at_a_name() -> None:
    assert {field.name for field in fields(Sight)} == {
        *("actions", "action_size", "observation", "observation_size", "time_limit", "reach", "sparse", "falls"),
        *("unrewarded", "resets_singly"),
    }


def test_what_is_named_stays() -> None:
    args, beginning = settle.settle(Args(env_id="FrozenLake-v1", update_epochs=3, clip_vloss=True))
    assert (args.update_epochs, args.clip_vloss, args.norm_reward) == (3, True, True)
    said = "\n".join(beginning.notes)
    assert "--norm-reward" in said and "clip-vloss" not in said and "--update-epochs" not in said


def test_a_call_from_python_and_the_command_line_get_the_same() -> None:
    words = ["--env-id", "FrozenLake-v1", "--seed", "4"]
    typed, said = settle.settle(cli.parse(Args, words, ""))
    called, heard = settle.settle(Args(env_id="FrozenLake-v1", seed=4))
    assert typed == called and said == heard
    assert typed.norm_reward


def test_flags_that_are_replaced_count_where_they_differ_from_the_default() -> None:
    args, _ = settle.settle(replace(Args(env_id="FrozenLake-v1", update_epochs=5), seed=4))
    assert (args.update_epochs, args.norm_reward) == (5, True)


def test_presets_come_first_unless_the_recipe_is_asked_for() -> None:
    assert settle.settle(Args())[1].notes[0].startswith("preset ")
    assert settle.settle(Args(recipe=True))[1].notes[0].startswith("recipe ")
    assert settle.settle(Args(preset=False)) == (Args(preset=False, exp_name="train"), settle.Beginning())


def test_tables_get_fewer_updates_and_a_long_discount() -> None:
    for limit in (None, 20, 1000):
        flags = chosen(Sight("discrete", 4, "table", 64, limit))
        assert flags == {
            **{"norm_reward": True, "clip_vloss": False, "gamma": 0.999, "adv_std_min": 0.1},
            **{"num_envs": 64, "num_steps": 64, "update_epochs": 4, "num_minibatches": 8},
        }
    numbers = chosen(Sight("discrete", 4, "numbers", 8, 1000))
    assert "gamma" not in numbers and (numbers["update_epochs"], numbers["ent_coef"]) == (8, 0.005)


def test_short_episodes_are_about_what_comes_soon() -> None:
    limits = (20, 200, 201, 1000, None)
    for size in (1, 3):
        found = [chosen(Sight("continuous", size, "numbers", 3, limit)).get("gamma") for limit in limits]
        assert found == [0.95, 0.95, None, None, None]
    assert "gamma" not in chosen(Sight("discrete", 2, "numbers", 3, 20))


def test_the_noise_of_all_numbers_together_is_as_large_but_for_many() -> None:
    found = [chosen(Sight("continuous", size, "numbers", 9, 1000))["log_std_init"] for size in (1, 2, 3, 6, 17)]
    assert found == [0.0, -0.35, -0.55, -0.9, -1.0]
    assert "log_std_init" not in chosen(Sight("discrete", 6, "numbers", 9, 1000))
    found = [chosen(Sight("continuous", size, "numbers", 9, 1000, reach=2.0))["log_std_init"] for size in (1, 7)]
    assert found == [0.69, -0.28]


def test_what_falls_gets_more_noise_and_smaller_steps() -> None:
    for size, flags in ((1, (0.69, 0.015)), (2, (0.52, 0.01)), (17, (-0.02, 0.01))):
        falling = chosen(Sight("continuous", size, "numbers", 9, 1000, reach=2.0, falls=True))
        assert (falling["log_std_init"], falling["desired_kl"]) == flags
    upright = chosen(Sight("continuous", 3, "numbers", 9, 1000))
    assert (upright["log_std_init"], upright["desired_kl"]) == (-0.55, 0.015)


def test_rollouts_have_so_many_rows_and_no_more_steps_than_are_of_use() -> None:
    discrete, continuous = Sight("discrete", 2, "numbers", 3, 1000), Sight("continuous", 2, "numbers", 3, 1000)
    for sight, lengths in (
        (discrete, {1: 128, 16: 128, 64: 64, 1024: 32}),
        (continuous, {1: 2048, 16: 128, 64: 32, 1024: 32}),
    ):
        assert {envs: chosen(sight, num_envs=envs)["num_steps"] for envs in lengths} == lengths


def test_few_numbers_and_long_episodes_keep_their_noise() -> None:
    seen = Sight("continuous", 2, "numbers", 5, 1000)
    for size, bonus in ((1, 0.005), (2, 0.01)):
        flags = chosen(replace(seen, action_size=size))
        assert (flags["desired_kl"], flags["ent_coef"]) == (0.01, bonus)
    for other in (
        replace(seen, action_size=0),
        replace(seen, action_size=3),
        replace(seen, time_limit=None),
        replace(seen, action_size=1, sparse=True),
        replace(seen, action_size=1, falls=True),
    ):
        flags = chosen(other)
        assert (flags["desired_kl"], flags["ent_coef"]) == (0.015, 0.0)
    assert chosen(replace(seen, falls=True))["ent_coef"] == 0.0
    assert chosen(replace(seen, sparse=True))["ent_coef"] == 0.01  # with two numbers some reward is met
    for limit, named in (  # whatever a rollout holds of it, however many there are, and for however long
        (201, {}),
        (201, {"num_envs": 64}),
        (10**9, {}),
        (1000, {"num_envs": 1}),
        (1000, {"num_envs": 65_536, "total_timesteps": 10**9}),
    ):
        assert chosen(replace(seen, time_limit=limit), **named)["ent_coef"] == 0.01
    flags = chosen(replace(seen, resets_singly=False))
    assert (flags["desired_kl"], flags["ent_coef"]) == (0.01, 0.01)


def test_what_keeps_noise_is_said_but_for_what_is_the_default() -> None:
    kwargs = {"max_episode_steps": 1000}
    said = "\n".join(settle.what_is_set(Args(env_id="Pendulum-v1", recipe=True, env_kwargs=kwargs)))
    assert "--ent-coef 0.005 (a bonus that keeps noise)" in said and "as large as" not in said
    said = " ".join("\n".join(settle.what_is_set(Args(env_id="CheetahRun-v1"))).split())
    assert "--desired-kl 0.015 (changes as large as the policy bears)" in said and "keeps noise" not in said
    named = {"desired_kl": 0.02, "lr_schedule": "kl", "learning_rate": 1e-4, "ent_coef": 0.1}
    said = "\n".join(settle.what_is_set(Args(env_id="Pendulum-v1", recipe=True, env_kwargs=kwargs, **named)))
    assert "changes" not in said and "bonus" not in said  # nothing is said of what was named


def test_what_many_short_episodes_have_taught_settles() -> None:
    for size, limit in ((1, 200), (2, 50), (7, 100)):
        flags = chosen(Sight("continuous", size, "numbers", 5, limit))
        assert (flags["lr_schedule"], flags["learning_rate"], flags["ent_coef"]) == ("linear", 5e-4, 0.0)
        assert "desired_kl" not in flags
    one = Sight("continuous", 1, "numbers", 5, 200)
    for other in (replace(one, falls=True), replace(one, sparse=True), replace(one, time_limit=201)):
        assert (chosen(other)["lr_schedule"], chosen(other)["learning_rate"]) == ("kl", 3e-4)
    for named in ({"lr_schedule": "kl"}, {"lr_schedule": "constant"}, {"anneal_lr": False}, {"desired_kl": 0.03}):
        flags = {"anneal_lr": True, **named}  # whoever wants another rate than one that falls gets what fits it
        assert (chosen(one, **flags)["learning_rate"], chosen(one, **flags)["desired_kl"]) == (3e-4, 0.015)
    assert chosen(one, anneal_lr=True, lr_schedule="linear")["learning_rate"] == 5e-4


def test_what_lasts_as_long_each_time_is_staggered() -> None:
    """Unless a rollout holds a good part of an episode, they end by themselves, or can't be ended one by one."""
    seen = Sight("continuous", 2, "numbers", 5, 1000)
    assert chosen(seen)["stagger_resets"]
    assert "stagger_resets" not in chosen(seen, num_envs=1, num_steps=128)
    # Rollouts of 128 steps and of 32; then a run that is just long enough for 16 such episodes, and one that is not.
    for limit, envs, total, is_staggered in (
        (512, 16, 500_000, False),
        (513, 16, 500_000, True),
        (200, 64, 500_000, False),
        (201, 64, 500_000, True),
        (31_250, 16, 500_000, True),
        (31_251, 16, 500_000, False),
    ):
        flags = chosen(replace(seen, time_limit=limit), num_envs=envs, total_timesteps=total)
        assert ("stagger_resets" in flags) is is_staggered, limit
    for other in (
        replace(seen, time_limit=None),
        replace(seen, time_limit=10**9),
        replace(seen, time_limit=4 * 128),
        replace(seen, falls=True),
        replace(seen, resets_singly=False),
        replace(seen, action_size=3),
        replace(seen, actions="discrete"),
        replace(seen, action_size=1, sparse=True),
    ):
        assert "stagger_resets" not in chosen(other)


def test_a_robot_that_falls_is_seen_to_before_training() -> None:
    said = "\n".join(settle.what_is_set(Args(env_id="Walker2d-v5", backend="envpool")))
    assert "more for what falls" in " ".join(said.split()) and "--desired-kl" not in said  # 0.01 is the default
    args, _ = settle.settle(Args(env_id="Walker2d-v5", backend="envpool", log_std_init=0.5, gamma=0.98))
    assert (args.desired_kl, args.log_std_init) == (0.01, 0.5)


def test_several_processes_share_the_environments_of_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen can't be shared by thirty-two."""
    assert settle.settle(Args(env_id="Pendulum-v1", recipe=True))[0].num_envs == 16
    monkeypatch.setenv("WORLD_SIZE", "32")
    args, _ = settle.settle(Args(env_id="Pendulum-v1", recipe=True))
    assert (args.num_envs, args.num_steps) == (64, 32)


@dataclass
class Copied(Args):
    """A copy of the program whose author has changed a default."""

    update_epochs: int = 2


def test_a_default_that_a_copy_changes_stays() -> None:
    args, _ = settle.settle(Copied(env_id="FrozenLake-v1"))
    assert (args.update_epochs, args.norm_reward) == (2, True)


@pytest.mark.parametrize("program", [train_program, train_lstm])
def test_a_copy_may_lack_a_flag(program: ModuleType) -> None:
    """Of an older version of the program, say."""
    plumbing = {field.name for field in fields(RunFlags)}
    for missing in set(program.Args.by_kind.defaults) - plumbing - {"num_envs"}:  # without which nothing is looked at
        own = [(x.name, x.type, x) for x in fields(program.Args) if x.name not in {*plumbing, missing}]
        older = make_dataclass("Older", own, bases=(RunFlags,), namespace={"by_kind": program.Args.by_kind})
        args, _ = settle.settle(older(env_id="FrozenLake-v1"))
        assert not hasattr(args, missing)


def test_a_run_says_and_keeps_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "eval_episodes": 0, "run_root": str(tmp_path)}
    train(Args(env_id="FrozenLake-v1", **small))
    said = capsys.readouterr().out
    assert "recipe        --norm-reward --no-clip-vloss (" in said
    config = json.loads(next(tmp_path.glob("*/config.json")).read_text())
    assert config["norm_reward"] is True and config["num_minibatches"] == 4


class Corridor(gymnasium.Env):
    """Continuous actions."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, bool(self.np_random.random() < 0.1), {}


def test_environments_that_were_handed_in_get_it_too(tmp_path: Path) -> None:
    small = {"total_timesteps": 256, "eval_episodes": 0, "run_root": str(tmp_path), "quiet": True}
    train(Args(num_steps=8, **small), envs=Corridor)
    config = json.loads(next(tmp_path.glob("*/config.json")).read_text())
    assert config["lr_schedule"] == "kl" and config["num_envs"] == 16


def test_a_vector_that_was_made_already_keeps_its_size(tmp_path: Path) -> None:
    small = {"total_timesteps": 256, "eval_episodes": 0, "run_root": str(tmp_path), "quiet": True}
    made = gymnasium.vector.SyncVectorEnv([Corridor] * 3)
    train(Args(num_steps=8, **small), envs=made)
    config = json.loads(next(tmp_path.glob("*/config.json")).read_text())
    assert config["lr_schedule"] == "kl" and config["num_envs"] == 3
    made.close()
