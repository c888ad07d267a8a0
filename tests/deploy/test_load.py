"""ppo_fast.load: what it plays is the policy, whatever plays it."""

import importlib
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gymnasium
import made_policies as made
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo_fast
from ppo_fast import evaluate, train as program, train_lstm
from ppo_fast.algorithm import heads, mlp, normalize
from ppo_fast.deploy import networks
from ppo_fast.deploy.networks import NumpyPlayer
from ppo_fast.envs.seeds import spread_seeds
from ppo_fast.run.agent_player import AgentPlayer
from ppo_fast.run.play import EVAL_SEED
from ppo_fast.run.policy import load_policy, save_policy

TINY: dict[str, Any] = {"num_envs": 8, "num_steps": 32, "total_timesteps": 2048, "cuda": False, "compile": "off"}
TINY |= {"eval_episodes": 2, "quiet": True, "seed": 5}
MASKABLE = ("discrete", "multi")
CASES = [
    (kind, action, norm_obs, masked)
    for kind in made.AGENTS
    for action in made.ACTIONS
    for norm_obs in (False, True)
    for masked in ((False, True) if action in MASKABLE else (False,))
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a short run of CartPole."""
    root = tmp_path_factory.mktemp("runs")
    program.train(program.Args(run_root=str(root), norm_obs=True, **TINY))
    return next(root.iterdir())


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a policy that remembers."""
    root = tmp_path_factory.mktemp("runs")
    flags = {**TINY, "env_id": "ppo_fast/CartPoleNoVel-v1", "hidden_sizes": (8,), "lstm_hidden_size": 8}
    train_lstm.train(train_lstm.Args(run_root=str(root), **flags))
    return next(root.iterdir())


@pytest.mark.parametrize(("kind", "action", "norm_obs", "masked"), CASES)
def test_numpy_acts_as_the_agent_does(kind: str, action: str, norm_obs: bool, masked: bool, tmp_path: Path) -> None:
    """1,000 observations, in ten steps of a hundred where something is remembered."""
    own = made.own_spaces(made.ACTIONS[action], masked=masked)
    agent = made.saved(tmp_path, own, kind, norm_obs=norm_obs)
    policy = ppo_fast.load(tmp_path)
    assert isinstance(policy.player, NumpyPlayer)
    rng = np.random.default_rng(1)
    memory, remembered = policy.memory(100), AgentPlayer(agent).begin(100)
    numbers = policy.player.begin(100)
    for _ in range(10):
        obs = rng.uniform(-5, 5, (100, 4)).astype(np.float32)
        mask = rng.random((100, own.mask_size)) < 0.6 if masked else None
        rows = np.empty((100, 4 + own.mask_size), np.float32)
        own.encoder().write(obs, rows, mask)
        wanted, outputs, remembered = AgentPlayer(agent).act(rows, None, remembered)
        _, found, numbers = policy.player.act(rows, None, numbers)
        assert outputs is not None
        np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(
            policy(obs, mask=mask, memory=memory), own.decoder()(found if wanted.dtype == np.float32 else wanted)
        )
        assert policy(obs, mask=mask, memory=policy.memory(100)).shape == (100, *(own.action.shape or ()))
    for actions in (policy(obs, mask=mask, memory=memory), policy(obs, mask=mask, memory=memory, sampled=True)):
        assert all(own.action.contains(action) for action in actions)


def test_constants_are_those_of_the_algorithm() -> None:
    assert networks.FORBIDDEN == heads.FORBIDDEN and networks.CLIP == normalize.CLIP
    x = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    assert networks.to_bfloat16(x.numpy()).tolist() == x.bfloat16().float().tolist()


def test_products_of_bfloat16(tmp_path: Path) -> None:
    own = made.own_spaces(made.ACTIONS["clipped"])
    agent = made.saved(tmp_path, own, "separate", precision="bf16")
    policy = ppo_fast.load(tmp_path)
    obs = np.random.default_rng(0).uniform(-5, 5, (100, 4)).astype(np.float32)
    wanted = AgentPlayer(agent).act(obs, None, ())[0]
    assert isinstance(policy.player, NumpyPlayer)
    np.testing.assert_allclose(policy.player.act(obs, None, ())[0], wanted, atol=2e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("action", made.ACTIONS)
def test_sampled_actions_follow_the_policy_and_the_seed(action: str, tmp_path: Path) -> None:
    """Of NumPy and of the Agent: the same ones from the same seed."""
    own = made.own_spaces(made.ACTIONS[action])
    agent = made.saved(tmp_path, own, "separate")
    obs = np.tile(np.array([1, -1, 2, 0], np.float32), (4000, 1))
    first, again = (ppo_fast.load(tmp_path, seed=3)(obs, sampled=True) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, ppo_fast.load(tmp_path, seed=4)(obs, sampled=True))
    player = AgentPlayer(agent)
    of_agent = player.act(obs, player.draw(np.random.default_rng(3), 4000), ())[0]
    np.testing.assert_allclose(first, own.decoder()(of_agent), rtol=1e-5, atol=1e-5)
    assert len(np.unique(first.reshape(4000, -1), axis=0)) > 1


@pytest.mark.parametrize("observation", [made.BOX, made.NESTED, spaces.Discrete(4, start=2), spaces.Box(-1, 1, ())])
def test_observations_of_every_kind_one_and_many(observation: spaces.Space, tmp_path: Path) -> None:
    """One by one, as a batch, as a list, with lists and Python's numbers, as tensors; encoded as in training."""
    own = made.own_spaces(made.ACTIONS["clipped"], observation)
    agent = made.saved(tmp_path, own, "separate")
    policy = ppo_fast.load(tmp_path)
    assert policy.observation_space == observation and policy.action_space == own.action
    several = made.drawn(observation, 5)
    rows = made.flat(observation, several)
    wanted = own.decoder()(AgentPlayer(agent).act(rows, None, ())[0])
    np.testing.assert_allclose(policy(made.batched(several)), wanted, rtol=1e-5, atol=1e-5)
    for obs, action in zip(several, wanted, strict=True):
        found = policy(obs)
        assert own.action.contains(found) and found.dtype == own.action.dtype
        np.testing.assert_allclose(found, action, rtol=1e-5, atol=1e-5)
        in_tensors = policy(tensors(obs))
        assert isinstance(in_tensors, torch.Tensor) and in_tensors.tolist() == found.tolist()
        assert np.array_equal(policy(lists(obs)), found)
    if isinstance(observation, spaces.Dict):
        assert np.array_equal(policy(several), policy(made.batched(several)))
    assert policy(tensors(made.batched(several))).shape == wanted.shape


def tensors(obs: Any) -> Any:
    """An observation with tensors in it, or numbers as tensors."""
    if isinstance(obs, dict):
        return {key: tensors(part) for key, part in obs.items()}
    return tuple(map(tensors, obs)) if isinstance(obs, tuple) else torch.as_tensor(obs)


def lists(obs: Any) -> Any:
    """An observation in Python's own numbers."""
    if isinstance(obs, dict):
        return {key: lists(part) for key, part in obs.items()}
    return tuple(map(lists, obs)) if isinstance(obs, tuple) else obs.tolist()


def test_actions_have_the_type_of_their_space(tmp_path: Path) -> None:
    kinds = {"discrete": np.int64, "multi": np.ndarray, "mapped": np.ndarray}
    for name, kind in kinds.items():
        own = made.own_spaces(made.ACTIONS[name])
        made.saved(tmp_path / name, own, "separate")
        action = ppo_fast.load(tmp_path / name)([0.0, 1.0, 2.0, 3.0])
        assert type(action) is kind and own.action.contains(action) and action.dtype == own.action.dtype
    assert (ppo_fast.load(tmp_path / "mapped")(np.zeros(4))[0] >= 100) and policy_env(tmp_path / "mapped") == "Made-v0"


def policy_env(folder: Path) -> str:
    policy = ppo_fast.load(folder)
    assert policy.flags["hidden_sizes"] == [16, 16] and not {"probe", "spaces"} & policy.flags.keys()
    return policy.env_id


def test_hidden_columns_are_hidden(tmp_path: Path) -> None:
    own = made.own_spaces(made.ACTIONS["discrete"], masked=True, hidden=(1, 3))
    made.saved(tmp_path, own, "separate")
    policy = ppo_fast.load(tmp_path)
    obs = np.random.default_rng(0).uniform(-5, 5, (50, 4))
    other = obs.copy()
    other[:, (1, 3)] = 0
    assert np.array_equal(policy(obs), policy(other)) and len(np.unique(policy(obs))) > 1
    assert set(policy(obs, mask=np.tile([0, 1, 0], (50, 1)))) == {6}


def test_masks_in_every_form(tmp_path: Path) -> None:
    own = made.own_spaces(made.ACTIONS["multi"], masked=True)
    made.saved(tmp_path, own, "separate")
    policy = ppo_fast.load(tmp_path)
    parts = ([0, 1], [0, 0, 1], [1, 0, 0, 0], [1, 1])
    obs = np.zeros(4, np.float32)
    only = [[2, 2], [0, -3]]
    whole = np.concatenate(parts)
    for mask in (whole, torch.tensor(whole), parts, whole.astype(bool), whole.tolist()):
        action = policy(obs, mask=mask)
        assert np.delete(action.ravel(), 3).tolist() == [2, 2, 0] and action.shape == np.shape(only)
    some = policy(np.zeros((2, 4)), mask=[whole, None])
    assert some[0].ravel()[:3].tolist() == [2, 2, 0] and np.array_equal(some[1], policy(obs))
    with pytest.raises(ValueError, match=r"the action mask .* none of 2 \+ 3 \+ 4 \+ 2 = 11 actions"):
        policy(obs, mask=[1, 0])


def test_masks_inside_observations(tmp_path: Path) -> None:
    parts = {"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (2,))}
    masks = made.Masks("observation", (3,))
    own = made.OwnSpaces(spaces.Dict(parts), made.ACTIONS["discrete"], masks, 3)
    made.saved(tmp_path, own, "separate")
    policy = ppo_fast.load(tmp_path)
    for allowed in range(3):
        mask = np.eye(3, dtype=np.int8)[allowed]
        assert policy({"action_mask": mask, "x": np.ones(2, np.float32)}) == 5 + allowed
    with pytest.raises(ValueError, match="mask: it stands in the observations"):
        policy({"action_mask": mask, "x": np.ones(2, np.float32)}, mask=mask)


def test_what_is_remembered(tmp_path: Path) -> None:
    """One by one as in a batch, forgotten where an episode ends."""
    own = made.own_spaces(made.ACTIONS["clipped"])
    made.saved(tmp_path, own, "lstm")
    policy = ppo_fast.load(tmp_path)
    assert policy.remembers
    obs = np.random.default_rng(0).uniform(-5, 5, (6, 2, 4))
    done = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [0, 0], [0, 0]], bool)
    together = policy.memory(2)
    alone = [policy.memory(), policy.memory()]
    actions = []
    for step in range(6):
        actions.append(policy(obs[step], memory=together))
        for i, memory in enumerate(alone):
            np.testing.assert_allclose(policy(obs[step, i], memory=memory), actions[-1][i], rtol=1e-4, atol=1e-6)
            memory.forget(done[step, i])
        together.forget(torch.tensor(done[step]) if step % 2 else done[step])
    fresh = policy.memory(2)
    after = policy(obs[4], memory=fresh)
    np.testing.assert_allclose(after[0], actions[4][0], rtol=1e-4, atol=1e-6)
    assert np.abs(after[1] - actions[4][1]).max() > 1e-3
    together.forget()
    assert np.array_equal(policy(obs[4], memory=together), after)


def test_a_loop_with_a_memory_serves_policies_without_one(tmp_path: Path) -> None:
    made.saved(tmp_path, made.own_spaces(made.ACTIONS["discrete"]), "separate")
    policy = ppo_fast.load(tmp_path)
    memory = policy.memory()
    assert policy(np.ones(4), memory=memory) == policy(np.ones(4)) and not policy.remembers
    memory.forget()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    made.saved(tmp_path / "plain", made.own_spaces(made.ACTIONS["discrete"]), "separate")
    made.saved(tmp_path / "lstm", made.own_spaces(made.ACTIONS["discrete"]), "lstm")
    made.saved(tmp_path / "nested", made.own_spaces(made.ACTIONS["discrete"], made.NESTED), "separate")
    plain, lstm, nested = (ppo_fast.load(tmp_path / name) for name in ("plain", "lstm", "nested"))
    (one,) = made.drawn(made.NESTED, 1)
    cases = {
        "not in its space Box.*of the shape \\(3,\\)": lambda: plain(np.ones(3)),
        "row 0: .*not in its space Box.*of the shape \\(3,\\)": lambda: plain(np.ones((2, 3))),
        "not in its space Box.*of the type": lambda: plain("left"),
        "not in its space Box.*of the type dict": lambda: plain({}),
        "the observation holds NaN": lambda: plain([0, np.nan, 0, 0]),
        "the policy says NaN: observation 1 holds NaN": lambda: plain([[0, 0, 0, 0], [0, np.nan, 0, 0]]),
        "trained without action masks": lambda: plain(np.ones(4), mask=[1, 0, 0]),
        "memory: this policy acts on what it remembers": lambda: lstm(np.ones(4)),
        "memory: it is for 1 environments, and 3 are observed": lambda: lstm(np.ones((3, 4)), memory=lstm.memory()),
        "memory: done is for \\(3,\\), the memory for 2": lambda: lstm.memory(2).forget([0, 1, 0]),
        "without the key 'gear'": lambda: nested({"speed": np.ones((2, 2))}),
        "whose part 'gear' is not in its space": lambda: nested({**one, "gear": 2}),
        "row 1: .*whose part 'gear' is not in": lambda: nested([one, {**one, "gear": 2}]),
    }
    for line, call in cases.items():
        with pytest.raises(ValueError, match=line) as told:
            call()
        assert "\n" not in str(told.value), line


def test_there_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "empty").mkdir()
    for name in ("half.safetensors", "empty", "nowhere", "latest"):
        with pytest.raises(ValueError, match=r"\Arun: [^\n]+\Z"):
            ppo_fast.load(name if name == "latest" else tmp_path / name, run_root=tmp_path / "empty")


# ---------------------------------------------------------------- of real runs


def episodes(policy: Any, env_id: str, number: int, seed: int) -> list[tuple[float, int]]:
    """Returns and lengths of a policy's own loop, in the episodes that evaluate plays."""
    env = gymnasium.make(env_id)
    found = []
    for own_seed in spread_seeds(seed + EVAL_SEED, number):
        obs, info = env.reset(seed=own_seed)
        memory = policy.memory()
        total, length, done = 0.0, 0, False
        while not done:
            action = policy(obs, mask=info.get("action_mask"), memory=memory)
            assert env.action_space.contains(action)
            obs, reward, terminated, truncated, info = env.step(action)
            total, length, done = total + float(reward), length + 1, terminated or truncated
        found.append((total, length))
    env.close()
    return found


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that remembers, with one-hot observations, and masks in the info."""
    root = tmp_path_factory.mktemp("runs")
    flags = {**TINY, "env_id": "Taxi-v4", "hidden_sizes": (8,), "lstm_hidden_size": 8, "eval_episodes": 0}
    train_lstm.train(train_lstm.Args(run_root=str(root), **flags))
    return next(root.iterdir())


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose actions are mapped to bounds, and that is not shown all."""
    root = tmp_path_factory.mktemp("runs")
    flags = {**TINY, "env_id": "odd_envs:Dial-v0", "hide": (1,), "norm_obs": True}
    program.train(program.Args(run_root=str(root), **flags))
    return next(root.iterdir())


@pytest.mark.parametrize("name", ["run", "remembering", "masked", "mapped"])
def test_a_loop_of_ones_own_plays_what_evaluate_plays(name: str, request: pytest.FixtureRequest, capsys: Any) -> None:
    folder = request.getfixturevalue(name)
    policy = ppo_fast.load(folder)
    assert isinstance(policy.player, NumpyPlayer)
    wanted = evaluate.evaluate(evaluate.Args(run=str(folder), policy="greedy", episodes=5, backend="sync"))["greedy"]
    returns, lengths = zip(*episodes(policy, policy.env_id, 5, 5), strict=True)
    assert (min(returns), max(returns)) == pytest.approx((wanted["min_return"], wanted["max_return"]), rel=1e-5)
    assert (
        np.mean(returns) == pytest.approx(wanted["mean_return"], rel=1e-5) and np.mean(lengths) == wanted["mean_length"]
    )


def test_every_file_of_a_run_gives_its_policy(run: Path, remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a file, a checkpoint, "latest"; a checkpoint goes through the Agent and is played in NumPy, too."""
    for folder in (run, remembering):
        policy = ppo_fast.load(folder)
        checkpoint = max((folder / "checkpoints").glob("checkpoint-*.pt"))
        obs = np.random.default_rng(0).uniform(-0.2, 0.2, (500, *(policy.observation_space.shape or ())))
        wanted = policy(obs, memory=policy.memory(500))
        others = [str(folder), folder / "policy.safetensors", checkpoint]
        for other in [*(ppo_fast.load(file) for file in others), ppo_fast.load(run_root=folder.parent)]:
            assert np.array_equal(other(obs, memory=other.memory(500)), wanted)
            assert other.env_id == policy.env_id and other.observation_space == policy.observation_space
            assert isinstance(other.player, NumpyPlayer)


def altered(folder: Path, target: Path, **facts: Any) -> Path:
    """A copy of a policy with other facts; None takes one away."""
    weights, known = load_policy(folder)
    return save_policy(target, weights, {key: x for key, x in (known | facts).items() if x is not None})


def test_files_of_earlier_versions_ask_the_environment(run: Path, remembering: Path, tmp_path: Path) -> None:
    for i, folder in enumerate((run, remembering)):
        wanted = ppo_fast.load(folder)
        with pytest.warns(UserWarning, match="doesn't say what .* observes, as earlier versions wrote it"):
            policy = ppo_fast.load(altered(folder, tmp_path / str(i), spaces=None, probe=None))
        assert policy.observation_space == wanted.observation_space and policy.action_space == wanted.action_space
        obs = np.random.default_rng(0).uniform(-0.2, 0.2, (500, *(policy.observation_space.shape or ())))
        assert np.array_equal(policy(obs, memory=policy.memory(500)), wanted(obs, memory=wanted.memory(500)))


def test_the_probe_finds_another_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the Agent plays, and acts as it did; once the program has been changed back, it is said."""
    own = made.own_spaces(made.ACTIONS["clipped"])
    with monkeypatch.context() as changed:
        changed.setattr(mlp, "tanh", torch.relu)
        agent = made.saved(tmp_path, own, "separate")
        policy = ppo_fast.load(tmp_path)
        assert isinstance(policy.player, AgentPlayer)
        obs = np.random.default_rng(0).uniform(-5, 5, (100, 4)).astype(np.float32)
        assert np.array_equal(policy(obs), own.decoder()(AgentPlayer(agent).act(obs, None, ())[0]))
    with pytest.warns(UserWarning, match="computes other actions now than when the policy was saved"):
        ppo_fast.load(tmp_path)


def test_another_distribution_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a Gaussian that is squashed: outputs are the same, actions are not."""
    own = made.own_spaces(made.ACTIONS["clipped"])
    for method in ("mode", "sample"):
        with monkeypatch.context() as changed:
            plain = getattr(heads.GaussianHead, method)
            changed.setattr(heads.GaussianHead, method, lambda *args, plain=plain: plain(*args).tanh())
            made.saved(tmp_path / method, own, "separate")
            assert isinstance(ppo_fast.load(tmp_path / method).player, AgentPlayer)


def test_networks_of_ones_own_are_played_by_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of another name, whose Agent has other layers; and one that doesn't say what it says."""

    class Agent(program.Agent):
        def __init__(self, envs: Any, args: Any, generator: Any = None) -> None:
            super().__init__(envs, args, generator)
            assert envs.num_envs == args.num_envs and envs.columns == {} and envs.device.type == "cpu"
            self.extra = torch.nn.Linear(4, 4)

        def inputs(self, obs: torch.Tensor) -> torch.Tensor:
            return self.extra(obs)

    module: Any = type(sys)("ppo_fast.train_wider")
    module.Args, module.Agent = program.Args, Agent
    monkeypatch.setitem(sys.modules, "ppo_fast.train_wider", module)
    own = made.own_spaces(made.ACTIONS["discrete"])
    monkeypatch.setattr(program, "Agent", Agent)
    agent, args = made.agent_of(own, "separate")
    obs = np.random.default_rng(0).uniform(-5, 5, (100, 4)).astype(np.float32)
    wanted = own.decoder()(AgentPlayer(agent).act(obs, None, ())[0])
    for name, facts in {"probed": {}, "not": {"probe": None}}.items():
        made.write(tmp_path / name, own, agent, args, "separate", program="ppo_fast.train_wider", **facts)
        before = torch.get_rng_state()
        policy = ppo_fast.load(tmp_path / name, seed=1)
        assert isinstance(policy.player, AgentPlayer) and np.array_equal(policy(obs), wanted)
        assert torch.equal(torch.get_rng_state(), before)
        assert len(np.unique(policy(np.tile(obs[:1], (500, 1)), sampled=True))) > 1


def test_a_fault_in_ones_own_program_shows_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; how messages of ours were made of one another is not shown."""
    source = Path(program.__file__).read_text()
    own = made.own_spaces(made.ACTIONS["discrete"])
    agent, args = made.agent_of(own, "separate")
    made.write(tmp_path / "run", own, agent, args, "separate", program="my_faulty", probe=None)
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.chdir(code)
    for fault in ('raise ValueError("SIZE must be even")', "import no_such_module", "1 / 0"):
        (code / "my_faulty.py").write_text(f"{source}\n{fault}\n")
        importlib.invalidate_caches()
        with pytest.raises(ValueError, match=r"^run: ") as caught:
            ppo_fast.load(tmp_path / "run")
        assert fault in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValueError, match="neither a run folder") as caught:
        ppo_fast.load(tmp_path / "nowhere")
    assert caught.value.__cause__ is None and "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_a_copy_of_a_program_is_played_without_importing_it(run: Path, tmp_path: Path) -> None:
    obs = np.random.default_rng(0).uniform(-0.2, 0.2, (100, 4))
    policy = ppo_fast.load(altered(run, tmp_path, program="my_own_train"))
    assert np.array_equal(policy(obs), ppo_fast.load(run)(obs)) and "my_own_train" not in sys.modules


def test_strange_files_are_one_line(run: Path, tmp_path: Path) -> None:
    known = load_policy(run)[1]
    wide = {**known["spaces"]["observation"], "shape": [10**6, 10**6]}
    three = {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}
    cases = [
        ({"program": "os", "probe": None}, "os, which is no training program"),
        ({"spaces": {**known["spaces"], "observation": wide}}, "a space of the shape"),
        ({"spaces": {**known["spaces"], "action_bounds": "no"}}, "unknown masks or action_bounds"),
        ({"spaces": "x"}, "spaces: TypeError"),
        (
            {"spaces": {**known["spaces"], "action": three}},
            "not fit",
        ),
        ({"hidden_sizes": [64, 32], "probe": None}, "does not fit"),
    ]
    for i, (facts, said) in enumerate(cases):
        path = altered(run, tmp_path / str(i), **facts)
        with pytest.raises(ValueError, match=rf"\Arun: [^\n]*{said}[^\n]*\Z"):
            ppo_fast.load(path)
    for i, probe in enumerate(("x", {}, {**known["probe"], "obs": {"shape": [1], "dtype": "<f4", "base64": "!"}})):
        assert ppo_fast.load(altered(run, tmp_path / f"probe{i}", probe=probe))(np.zeros(4)) in (0, 1)


LIGHT = """
import json, sys, time
start = time.perf_counter()
import ppo_fast
policy = ppo_fast.load(sys.argv[1])
action = policy([0.0, 0.1, 0.0, -0.1])
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "tyro", "rich", "wandb", "matplotlib") if name in sys.modules]
ours = [name for name in sys.modules if name.startswith("ppo_fast.")]
training = [name for name in ours if any(word in name for word in ("train", "session", "engine", "checkpoint"))]
print(json.dumps([int(action), heavy, training, seconds]))
"""


def test_it_is_light(run: Path) -> None:
    """No torch, nothing of training; and how long it takes is printed."""
    done = subprocess.run([sys.executable, "-c", LIGHT, str(run)], capture_output=True, text=True, check=True)
    action, heavy, training, seconds = json.loads(done.stdout)
    assert action in (0, 1) and heavy == training == []
    policy = ppo_fast.load(run)
    obs = np.zeros(4, np.float32)
    policy(obs)
    start = time.perf_counter()
    for _ in range(2000):
        policy(obs)
    each = (time.perf_counter() - start) / 2000
    print(f"import and load {seconds:.2f} s; {each * 1e6:.0f} µs a call")
    assert each < 0.005
