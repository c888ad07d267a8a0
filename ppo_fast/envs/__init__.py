"""Environments: one contract in front of every environment, wherever it runs.

`make` returns a gymnasium.vector.VectorEnv that takes and returns torch tensors on a device:

    reset(seed=s)  -> obs (N, *S), info
    step(actions)  -> obs (N, *S) float32, reward (N,) float32, terminated (N,) bool, truncated (N,) bool, info
    info["final_obs"]   (N, *S)  the true successor state, equal to obs where no episode ended
    info["_final_obs"]  (N,)     bool, where an episode ended
    info["valid"]       (N,)     bool, False for the reset row of a NEXT_STEP environment: never an experience

A training program steps it by `advance`, which looks the same for tensor environments, whose steps are pure functions
of their state, and for host environments, which keep theirs (see contract.py):

    noise = envs.draw_noise(T)                                  (T, N, ...)
    state, step = envs.advance(state, actions, noise[t])        from envs.state on; step is a Step, with names

`pure` says which of the two it is. `parts` are the environments that step together, each with `advance`, `draw_noise`,
`state` and `num_envs` of its own: one part, or a few where they are made in groups, to be stepped side by side.

Discrete actions start at 0 and are (N,); MultiDiscrete and Box actions are flat, (N, A), and Box actions are clipped
to their bounds or mapped to them from [-1, 1] (see actions.py). Observations are float32; discrete ones one-hot, dicts
and tuples flattened. Where an environment tells which of its n discrete actions are allowed, `mask_size` is n and the
last n columns of its flat observations say so (1 allowed, 0 not); elsewhere `mask_size` is 0.

`columns` says where the parts of a flattened observation are: a slice for each key of a Dict, which Gymnasium flattens
in sorted order, so that a policy can look at `obs[..., envs.columns["pose"]]`. Nested keys are joined by dots,
"arm.pose", and the outer one, "arm", stands for all that it holds. A Tuple's parts are "0", "1", ...; an action mask is
"action_mask". It is empty for an observation without parts.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppo_fast.envs.contract import Environments, Part, State, Step
    from ppo_fast.envs.factory import BACKENDS, available_backends, make
    from ppo_fast.envs.faults import EnvironmentFault
    from ppo_fast.envs.groups import HostGroups
    from ppo_fast.envs.handed import Own
    from ppo_fast.envs.host import HostVectorEnv
    from ppo_fast.envs.pixels import refuse_images
    from ppo_fast.envs.tensor import TensorVectorEnv

__all__ = [
    "BACKENDS",
    "EnvironmentFault",
    "Environments",
    "HostGroups",
    "HostVectorEnv",
    "Own",
    "Part",
    "State",
    "Step",
    "TensorVectorEnv",
    "available_backends",
    "make",
    "refuse_images",
]

# Which module has each of them. It is imported when it is first asked for: a policy that is loaded for a loop of
# somebody's own uses the encodings in here, and nothing that needs torch.
_MODULES = {
    **dict.fromkeys(("Environments", "Part", "State", "Step"), "contract"),
    **dict.fromkeys(("BACKENDS", "available_backends", "make"), "factory"),
    "EnvironmentFault": "faults",
    "HostGroups": "groups",
    "Own": "handed",
    "refuse_images": "pixels",
    "HostVectorEnv": "host",
    "TensorVectorEnv": "tensor",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
