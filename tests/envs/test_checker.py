"""The checker passes good environments and rejects each planted fault with the right words."""

import functools

import gymnasium
import pytest
import torch
from env_checker import check_vector_env
from gymnasium.vector import AutoresetMode

from ppo_fast.envs import make
from ppo_fast.envs.cartpole import ANGLE_LIMIT, POSITION_LIMIT, TensorCartPole
from ppo_fast.envs.host import HostVectorEnv

N = 4
# The import of Box2D's own bindings warns.
box2d = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")


def fallen(obs):
    return (obs[:, 0].abs() > POSITION_LIMIT) | (obs[:, 2].abs() > ANGLE_LIMIT)


def swung_up(obs):
    cos1, sin1, cos2, sin2 = obs[:, :4].unbind(1)
    return -cos1 - (cos1 * cos2 - sin1 * sin2) > 1


NO_VELOCITY_LIMITS = torch.tensor([POSITION_LIMIT, ANGLE_LIMIT])
TENSOR = {
    "CartPole-v1": {"limit": 15, "terminal": fallen},
    "MountainCar-v0": {"limit": 15},
    "MountainCarContinuous-v0": {"limit": 15},
    "Acrobot-v1": {"limit": 15, "terminal": swung_up},
    "Pendulum-v1": {"limit": 15},
    "ppo_fast/CartPoleNoVel-v1": {"limit": 15, "terminal": lambda obs: obs.abs().gt(NO_VELOCITY_LIMITS).any(1)},
    "ppo_fast/RepeatFirst-v0": {"limit": 15, "continuous": False},
    "ppo_fast/RepeatPrevious-v0": {"limit": 15, "continuous": False},
}


@pytest.mark.parametrize("env_id", TENSOR)
def test_tensor_environments(env_id):
    check_vector_env(functools.partial(make, env_id, N, "cpu", "tensor", max_episode_steps=15), **TENSOR[env_id])


HOST = [
    ("CartPole-v1", {"limit": 15, "terminal": fallen}),
    ("Acrobot-v1", {"limit": 15, "terminal": swung_up}),
    ("Pendulum-v1", {"limit": 15}),
    # One action for all: in these worlds a move into a wall changes nothing.
    ("Taxi-v4", {"limit": 15, "continuous": False}),
    ("FrozenLake-v1", {"limit": 15, "continuous": False, "fixed_start": True}),
    pytest.param("LunarLander-v3", {"limit": 15}, marks=box2d),
]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("env_id", "options"), HOST)
def test_host_environments(env_id, options, backend):
    check_vector_env(functools.partial(make, env_id, N, "cpu", backend, max_episode_steps=15), **options)


def test_entry_point():
    options = {"limit": 15, "terminal": fallen}
    check_vector_env(functools.partial(make, "CartPole-v1", N, "cpu", "entry_point", max_episode_steps=15), **options)


def test_groups():
    options = {"limit": 15, "terminal": fallen}
    grouped = functools.partial(make, "CartPole-v1", N, "cpu", "async", groups=3, max_episode_steps=15)
    check_vector_env(grouped, **options)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_autoreset_modes(mode, vectorization):
    def cartpoles():
        options = {"autoreset_mode": mode}
        envs = gymnasium.make_vec("CartPole-v1", N, vectorization, vector_kwargs=options, max_episode_steps=15)
        return HostVectorEnv(envs, "cpu", vectorization, "CartPole-v1")

    check_vector_env(cartpoles, limit=15, terminal=fallen)


class Faulty(TensorCartPole):
    """A good environment; each subclass plants one fault."""

    def __init__(self):
        super().__init__(N, 15)


class SharedBuffer(Faulty):
    def step(self, actions):
        obs, *rest = super().step(actions)
        self.buffer = getattr(self, "buffer", torch.empty_like(obs)).copy_(obs)
        return self.buffer, *rest


class StateHandedOut(Faulty):
    def step(self, actions):
        _, *rest = super().step(actions)
        return self.state[0], *rest


class SharedValid(Faulty):
    def step(self, actions):
        *rest, info = super().step(actions)
        self.all_valid = getattr(self, "all_valid", info["valid"])
        info["valid"] = self.all_valid
        return *rest, info


class FinalObsIsObs(Faulty):
    def step(self, actions):
        obs, *rest, info = super().step(actions)
        return obs, *rest, info if info["_final_obs"].any() else {**info, "final_obs": obs}


class NoFinalObs(Faulty):
    def step(self, actions):
        *rest, info = super().step(actions)
        del info["final_obs"]
        return *rest, info


class ResetAsFinalObs(Faulty):
    def step(self, actions):
        obs, *rest, info = super().step(actions)
        return obs, *rest, {**info, "final_obs": obs.clone()}


class PreviousAsFinalObs(Faulty):
    def step(self, actions):
        before = self.state[0].clone()
        obs, reward, terminated, truncated, info = super().step(actions)
        done = (terminated | truncated).unsqueeze(1)
        return obs, reward, terminated, truncated, {**info, "final_obs": torch.where(done, before, obs)}


class NoValid(Faulty):
    def step(self, actions):
        *rest, info = super().step(actions)
        del info["valid"]
        return *rest, info


class RowsCalledInvalid(Faulty):
    def step(self, actions):
        *rest, info = super().step(actions)
        return *rest, {**info, "valid": ~info["_final_obs"]}


class SeedIgnored(Faulty):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None, options=options)


class SeedFixed(Faulty):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=0, options=options)


class OneStreamForAll(Faulty):
    def draw_noise(self, num_steps):
        noise = super().draw_noise(num_steps)
        return noise[:, :1].expand_as(noise)


class NoAutoreset(Faulty):
    def step_state(self, state, action, noise):
        state, obs, *ends = self.transition(state, action, noise[:, :0])
        return state, obs, *ends, obs


class ClockRunsOn(Faulty):
    def step_state(self, state, action, noise):
        before = state[1]
        state, *rest = super().step_state(state, action, noise)
        return (state[0], before + 1), *rest


class OneStepTooLong(Faulty):
    def __init__(self):
        super().__init__()
        self.max_episode_steps = 16


class AlwaysTheSameStart(Faulty):
    def draw_noise(self, num_steps):
        noise = super().draw_noise(num_steps)
        return noise if not self.state else torch.full_like(noise, 0.5)


class StartsAnywhere(Faulty):
    def step_state(self, state, action, noise):
        (physics, elapsed), obs, reward, terminated, truncated, final_obs = super().step_state(state, action, noise)
        shift = (terminated | truncated).unsqueeze(1) * 0.1
        return (physics + shift, elapsed), obs + shift, reward, terminated, truncated, final_obs


class DoubleObs(Faulty):
    def step(self, actions):
        obs, *rest = super().step(actions)
        return obs.double(), *rest


class FlatReward(Faulty):
    def step(self, actions):
        obs, reward, *rest = super().step(actions)
        return obs, reward.unsqueeze(1), *rest


class ActionsUnchecked(Faulty):
    def step(self, actions):
        return super().step(actions[:N])


class SharedMetadata(Faulty):
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.metadata = type(self).metadata


class AdvanceSwapsObservations(Faulty):
    def advance(self, state, action, noise):
        state, step = super().advance(state, action, noise)
        return state, step._replace(obs=step.final_obs, final_obs=step.obs)


class AdvanceKeepsTheState(Faulty):
    def advance(self, state, action, noise):
        return state, super().advance(state, action, noise)[1]


class AdvanceCountsItself(Faulty):
    calls = 0

    def advance(self, state, action, noise):
        self.calls += 1
        state, step = super().advance(state, action, noise)
        return state, step._replace(obs=step.obs + (self.calls % 2 == 0))


class AdvanceTellsOfResetRows(Faulty):
    def advance(self, state, action, noise):
        state, step = super().advance(state, action, noise)
        return state, step._replace(valid=torch.ones_like(step.terminated))


FAULTS = {
    SharedBuffer: "final_obs differs from obs|shares memory",
    StateHandedOut: "final_obs differs from obs|shares memory",
    SharedValid: "shares memory",
    FinalObsIsObs: "one step returned share memory",
    NoFinalObs: "lacks final_obs",
    ResetAsFinalObs: "terminated does not fit final_obs",
    PreviousAsFinalObs: "before the last",
    NoValid: "lacks valid",
    RowsCalledInvalid: "valid is not False exactly",
    SeedIgnored: "same seed gives another",
    SeedFixed: "another seed gives the same",
    OneStreamForAll: "same stream|same state",
    NoAutoreset: "truncated exactly|final observation|fresh start",
    ClockRunsOn: "truncated exactly",
    OneStepTooLong: "truncated exactly",
    AlwaysTheSameStart: "same state",
    StartsAnywhere: "fresh start",
    DoubleObs: "obs is torch.float64",
    FlatReward: "reward has the shape",
    ActionsUnchecked: "wrong number of actions",
    SharedMetadata: "metadata is shared",
    AdvanceSwapsObservations: "advance gives another",
    AdvanceKeepsTheState: "advance gives another",
    AdvanceCountsItself: "not a pure function",
    AdvanceTellsOfResetRows: "reset rows where there are none",
}


def test_the_unbroken_environment_passes():
    check_vector_env(Faulty, limit=15, terminal=fallen)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_rejected(fault):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_vector_env(fault, limit=15, terminal=fallen)
