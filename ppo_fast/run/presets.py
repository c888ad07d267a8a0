"""Tuned flags per environment id, for the whole of its run: plain data that a program applies where the user is silent.

    presets.flags("Hopper-v5")   # {"num_envs": 8, ...}; {} where there is no preset

One stays where it beats the recipe of its kind (recipe.py) on seeds that it was not tuned on, CartPole's by its time.
Tuned on seeds of 101 and up; what they reach on seeds 1 to 10 stands in README.md, what was tried in benchmarks/LOG.md.
Flags not named here keep their defaults.
"""

from typing import Any

# Statistics of observations and of returns; a value loss that may move as far as the data says, since scaled returns
# differ by more than clip_coef.
_NORMALIZED = {"norm_obs": True, "norm_reward": True, "clip_vloss": False}

PRESETS: dict[str, dict[str, Any]] = {
    # Without the statistics one seed in ten or twenty drifts off after it has solved the task. With them two passes are
    # enough, and an uncompiled run is a quarter shorter.
    "CartPole-v1": {**_NORMALIZED, "update_epochs": 2},
    # The first goals are chance; how many updates follow decides how good it gets (four passes: 12 lower). These are
    # some eleven times those of the defaults from the same steps.
    "MountainCar-v0": {
        **_NORMALIZED,
        "num_envs": 32,
        "num_steps": 64,
        "num_minibatches": 8,
        "update_epochs": 8,
        "learning_rate": 2e-3,
        "gae_lambda": 0.98,
        "ent_coef": 0.0,
    },
    # Long rollouts of few environments, and a deviation of 1 to explore. With a discount above 0.99, or sixty-four
    # environments, it learned to stand still, or not much more.
    "Hopper-v5": {
        **_NORMALIZED,
        "total_timesteps": 1_000_000,
        "num_envs": 8,
        "num_steps": 256,
        "num_minibatches": 32,
        "update_epochs": 10,
        "learning_rate": 3e-4,
        "ent_coef": 0.0,
    },
}


def flags(env_id: str) -> dict[str, Any]:
    """Flags of the preset of `env_id` by field name, a fresh dict; empty where there is none."""
    return dict(PRESETS.get(env_id, {}))
