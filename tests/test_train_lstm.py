"""train_lstm.py: what it remembers, step by step, and that everything around a program works for it too."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.vector import AutoresetMode
from iterations import CPU, Built, built, run, small
from scripted_envs import scripted
from torch import Tensor

from ppo_fast import evaluate, train_lstm as program
from ppo_fast.engine import speed
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.flat import flatten
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run.tracking import read_metrics
from ppo_fast.train_lstm import Args, Batch, Carry, Noise

pytestmark = [  # of the compiler's own
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

# Kinds of run that take different ways through the trunk, the environments or the engine.
VARIANTS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "normalised": {"norm_obs": True, "norm_reward": True, "lr_schedule": "kl"},
    "cut into sequences": {"num_steps": 12, "sequence_length": 4},
    "continuous": {"env_id": "Pendulum-v1"},
    "multi-discrete": {"env_id": "odd_envs:TwoDials-v0"},
    "masks": {"env_id": "odd_envs:Forbids-v0"},
    "host": {"backend": "sync"},
    "junk rows": {"env_id": "odd_envs:NextStep-v0", "num_steps": 20},
    "uneven": {"num_envs": 13, "num_steps": 10},
    "a sequence a minibatch": {"num_envs": 4},
}


def flags(name: str = "discrete", **more: Any) -> Args:
    plain = {"norm_obs": False, "norm_reward": False, "lr_schedule": "linear", "clip_vloss": True}
    return small(Args, lstm_hidden_size=8, hidden_sizes=(8,), **(plain | VARIANTS[name] | more))


def advantages_of(run: Built, args: Args) -> tuple[Any, Batch]:
    """The rollout that was collected last, and what the updates learn from."""
    engine: Any = run.engine
    rollouts = engine._rollouts[0]
    rollout, carry = rollouts.rollout, rollouts.carry
    prepared: Any = program.Executables(run.agent.value, None, None, None, None)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return rollout, program.advantages(args, run.agent, run.learner, rollout, carry, prepared)


# What is remembered.


@pytest.mark.parametrize("mode", ["eager", "recorded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_before_an_update_the_policy_is_the_one_that_acted(name: str, mode: Any) -> None:
    """Ratios are 1: the sequences, replayed from what was remembered, are the steps as they were made."""
    args = flags(name, update_epochs=2)
    made = built(args, mode)
    for _ in range(4):  # the memory is handed on, and from the third one on functions are replayed
        made.iteration.collect()
        _, batch = advantages_of(made, args)
        log_prob, _, value = made.agent(batch.obs, batch.action, batch.first, batch.hidden, batch.cell)
        valid = torch.ones_like(batch.first) if batch.valid is None else batch.valid
        assert (log_prob - batch.log_prob)[valid].abs().max() < 2e-6
        assert (value - batch.value)[valid].abs().max() < 2e-6
        made.iteration.learn()


@pytest.mark.parametrize("name", ["discrete", "host", "junk rows"])
def test_an_episode_begins_with_nothing_remembered(name: str) -> None:
    args = flags(name, num_steps=40)
    made = built(args)
    made.iteration.collect()
    rollout, _ = advantages_of(made, args)
    forgets = program.forgotten(rollout)
    after = torch.cat([torch.ones_like(forgets[:1]), forgets[:-1]])
    assert forgets.sum() > 5
    for memory in (rollout.hidden, rollout.cell):
        assert torch.equal((memory == 0).all(-1), after)


def test_the_memory_is_handed_on_from_rollout_to_rollout() -> None:
    made = built(flags(num_steps=4, env_id="Pendulum-v1"))
    made.iteration.collect()
    engine: Any = made.engine
    carry = engine._rollouts[0].carry
    left = carry.hidden.clone(), carry.cell.clone()
    made.iteration.learn()
    assert torch.equal(carry.hidden, left[0]) and torch.equal(carry.cell, left[1])  # a bootstrap moves nothing
    made.iteration.collect()
    rollout = engine._rollouts[0].rollout
    assert left[0].abs().min() > 0
    assert torch.equal(rollout.hidden[0], left[0]) and torch.equal(rollout.cell[0], left[1])


def test_a_time_limit_is_valued_with_all_of_the_episode_remembered() -> None:
    """The advantages of a plain loop over one environment after the other, which steps the LSTM for itself."""
    args = flags(num_envs=3, num_steps=30, num_minibatches=1, env_id="odd_envs:NextStep-v0", gamma=0.9)
    made = built(args)
    made.iteration.collect()
    rollout, batch = advantages_of(made, args)
    agent = made.agent
    engine: Any = made.engine
    carry = engine._rollouts[0].carry
    assert rollout.valid is not None and (rollout.truncated & ~rollout.terminated).any()
    for n in range(args.num_envs):
        hidden, cell = torch.zeros(1, 8), torch.zeros(1, 8)
        values, next_values = [], []
        for t in range(args.num_steps):
            obs = rollout.obs[t, n][None]
            after = agent.lstm.step(agent.features(obs), hidden, cell)
            values.append(agent.critic(after[0]).item())
            beyond = agent.lstm.step(agent.features(rollout.final_obs[t, n][None]), *after)
            next_values.append(agent.critic(beyond[0]).item())
            ended = rollout.terminated[t, n] or rollout.truncated[t, n] or not rollout.valid[t, n]
            hidden, cell = (torch.zeros(1, 8), torch.zeros(1, 8)) if ended else after
        torch.testing.assert_close(carry.hidden[n][None], hidden)
        wanted = [0.0] * args.num_steps
        following = 0.0
        for t in reversed(range(args.num_steps)):
            terminated, truncated = bool(rollout.terminated[t, n]), bool(rollout.truncated[t, n])
            delta = rollout.reward[t, n].item() + args.gamma * (not terminated) * next_values[t] - values[t]
            following = delta + args.gamma * args.gae_lambda * (not (terminated or truncated)) * following
            wanted[t] = following
        found = batch.advantage[n]
        valid = rollout.valid[:, n]
        torch.testing.assert_close(found[valid], torch.tensor(wanted)[valid], rtol=1e-5, atol=1e-5)


def whole_episodes(mode: AutoresetMode | None, steps: int) -> list[Tensor]:
    """The advantages of each scripted environment, junk rows left out, up to the end of its last whole episode."""
    envs = scripted(mode, n=6)
    args = replace(flags(), num_envs=6, num_steps=steps, norm_obs=False)
    torch.manual_seed(0)
    agent = program.Agent(envs, args, torch.Generator().manual_seed(0))
    obs = envs.reset(seed=0)[0].clone()
    carry = Carry(envs.state, obs, *agent.initial_memory(6))
    learner: Any = program.new_learner(program.flatten_parameters(agent), 1e-3)
    prepared: Any = program.Executables(agent.value, None, None, None, None)  # pyright: ignore[reportArgumentType]
    noise = Noise(torch.full((steps, 6), 0.5), torch.zeros(steps, 6))
    with torch.no_grad():
        after, rollout = program.collect(agent, envs, carry, noise)
        batch = program.advantages(args, agent, learner, rollout, after, prepared)
    advantage = program.in_rollout(batch.advantage, 6)
    done = rollout.terminated | rollout.truncated
    valid = torch.ones_like(done) if rollout.valid is None else rollout.valid
    found = []
    for n in range(6):
        last = int(done[:, n].nonzero().max()) + 1
        found.append(advantage[:last, n][valid[:last, n]])
    return found


def test_every_autoreset_mode_gives_the_same_advantages() -> None:
    next_step = whole_episodes(AutoresetMode.NEXT_STEP, 40)
    assert sum(map(len, next_step)) > 100
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED, None):
        for short, long in zip(next_step, whole_episodes(mode, 40), strict=True):
            assert torch.equal(short, long[: len(short)])


# The loss, beside a loop over single steps of single environments in float64.


def random_batch(made: Built, args: Args, draw: torch.Generator) -> Batch:
    """Numbers that no rollout gave, with beginnings of episodes and junk at random places."""
    rows, length = args.num_envs, args.num_steps

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    obs = normal(rows, length, 4)
    action = torch.randint(0, 2, (rows, length), generator=draw)
    first = torch.rand(rows, length, generator=draw) < 0.2
    valid = torch.rand(rows, length, generator=draw) < 0.8
    hidden, cell = normal(rows, 8).tanh(), normal(rows, 8)
    with torch.no_grad():
        log_prob, _, value = made.agent(obs, action, first, hidden, cell)
    log_prob = log_prob + 0.3 * normal(rows, length)
    columns = (log_prob, normal(rows, length), normal(rows, length), value + 0.3 * normal(rows, length))
    return Batch(obs, action, *columns, valid, first, hidden, cell)


def loss_by_loop(made: Built, args: Args, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """PPO's loss in float64, and its gradients."""
    agent: Any = program.Agent(made_envs(args), args).double()
    agent.load_state_dict(made.agent.state_dict())
    for parameter in agent.parameters():
        parameter.requires_grad_()
    policy, value_error, entropies = [], [], []
    for m in range(len(batch.obs)):
        hidden, cell = batch.hidden[m].double(), batch.cell[m].double()
        for t in range(batch.obs.shape[1]):
            if batch.first[m, t]:
                hidden, cell = torch.zeros_like(hidden), torch.zeros_like(cell)
            x = batch.obs[m, t].double()
            for layer in agent.layers.layers:
                x = (layer.weight @ x + layer.bias).tanh()
            numbers = agent.lstm.input.weight @ x + agent.lstm.input.bias + agent.lstm.recurrent.weight @ hidden
            o, i, f, g = numbers.split(8)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            if not batch.valid[m, t]:  # pyright: ignore[reportOptionalSubscript]
                continue
            (actor,), (critic,) = agent.actor.layers, agent.critic.layers
            log_probs = (actor.weight @ hidden + actor.bias).log_softmax(-1)
            value = (critic.weight @ hidden + critic.bias)[0]
            ratio = (log_probs[batch.action[m, t]] - batch.log_prob[m, t].double()).exp()
            advantage = batch.advantage[m, t].double()
            policy.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            old, target = batch.value[m, t].double(), batch.returns[m, t].double()
            near = old + (value - old).clamp(-0.2, 0.2)
            value_error.append(0.5 * torch.max((value - target) ** 2, (near - target) ** 2))
            entropies.append(-(log_probs.exp() * log_probs).sum())
    means = [torch.stack(x).mean() for x in (policy, value_error, entropies)]
    loss = means[0] + args.vf_coef * means[1] - args.ent_coef * means[2]
    return loss, list(torch.autograd.grad(loss, list(agent.parameters())))


def made_envs(args: Args) -> Any:
    return program.setup(args, CPU)[0]


def check_losses(mode: Any, cases: int) -> None:
    args = flags(num_envs=3, num_steps=6, num_minibatches=1, clip_vloss=True)
    made = built(args, mode)
    engine = Engine(args, Ranks(CPU), mode)
    gradient = engine.gradient(program.loss, made.agent, args, made.learner.theta)
    draw = torch.Generator().manual_seed(0)
    for case in range(cases):
        theta = made.learner.theta
        theta.copy_(0.4 * torch.randn(theta.shape, generator=draw))
        batch = random_batch(made, args, draw)
        found, logged = gradient(batch)
        loss, wanted = loss_by_loop(made, args, batch)
        total = logged["policy_loss"] + args.vf_coef * logged["value_loss"] - args.ent_coef * logged["entropy"]
        assert abs(float(total) - loss.item()) < 1e-5 * max(1.0, abs(loss.item())), case
        flat = flatten(wanted)
        assert (found.double() - flat).norm() < 1e-5 * flat.norm(), case


@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_loss_and_gradient_are_those_of_a_loop_in_float64(mode: Any) -> None:
    check_losses(mode, 20)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "recorded", "compiled"])
def test_loss_and_gradient_in_a_thousand_cases(mode: Any) -> None:
    check_losses(mode, 1000)


# What surrounds a program.


def trained(root: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    """A run folder and its result.json."""
    sizes: dict[str, Any] = {"num_envs": 8, "num_steps": 16, "total_timesteps": 1024, "lstm_hidden_size": 8}
    sizes |= {"hidden_sizes": (8,), "cuda": False, "compile": "off", "eval_episodes": 5, "quiet": True, "seed": 5}
    program.train(Args(run_root=str(root), **(sizes | more)))
    [folder] = root.iterdir()
    return folder, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", ["discrete", "continuous", "host", "multi-discrete"])
def test_a_run_is_played_again_exactly(name: str, tmp_path: Path) -> None:
    folder, result = trained(tmp_path, **VARIANTS[name], norm_obs=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["program"] == "ppo_fast.train_lstm" and config["exp_name"] == "train_lstm"
    assert len(read_metrics(folder)) == 8
    last = max((folder / "checkpoints").glob("checkpoint-*.pt"))
    for file in (folder, last):
        found = evaluate.evaluate(evaluate.Args(str(file), backend=config["backend_used"], episodes=5, cuda=False))
        assert found["greedy"]["mean_return"] == result["eval/mean_return"]
        assert found["sampled"]["mean_return"] == result["eval/sampled_mean_return"]


def test_play_remembers() -> None:
    """The greedy policy of an evaluation is the one of a loop that hands the memory on."""
    from ppo_fast.run.play import greedy

    args = flags("continuous")
    envs, agent, _ = program.setup(args, CPU)
    act = greedy(agent)
    memory = agent.initial_memory(args.num_envs)
    obs = envs.reset(seed=3)[0]
    with torch.no_grad():
        for step in range(5):
            wanted, _, *after = agent.act(obs, None, *memory)
            assert torch.equal(act(obs), wanted)
            forgetful = agent.act(obs, None, *agent.initial_memory(args.num_envs))[0]
            assert torch.equal(wanted, forgetful) == (step == 0)
            memory = tuple(after)
            obs = envs.step(wanted)[0].clone()


@pytest.mark.parametrize("name", ["discrete", "normalised", "continuous", "host", "junk rows"])
def test_recorded_is_eager_up_to_rounding(name: str) -> None:
    args = flags(name)
    args.total_timesteps = args.batch_size * 10
    slow, fast = built(args), built(args, "recorded")
    eager, recorded = run(slow, 5, args), run(fast, 5, args)
    assert fast.engine.report().as_they_are == []
    assert (recorded.theta - eager.theta).abs().max() < 2e-4
    assert (eager.theta[-1] - eager.theta[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_steps": 16, "sequence_length": 5}, "--sequence-length: 16 steps can't be cut into sequences of so many"),
        ({"num_envs": 2, "num_minibatches": 4}, "--num-minibatches: at most 2 can be filled, with a sequence each"),
    ],
)
def test_sequences_have_to_fit(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Args(**more).check()


def test_flops_by_hand() -> None:
    layers, memory, actor, critic = 4 * 64, 64 * 256 + 64 * 256, 64 * 2, 64 * 1
    by_step = 2 * (layers + memory + actor) + 2 * (layers + memory + critic)
    by_hand = by_step + 4 * (6 * (layers + memory + actor + critic) - 2 * layers)
    agent = program.setup(Args(num_envs=8, hidden_sizes=(64,), lstm_hidden_size=64), CPU)[1]
    found = speed.flops_per_step(agent, torch.randn(4, 4), torch.zeros(4, dtype=torch.int64), 4)
    assert found == by_hand


def test_a_preset_of_train_is_not_applied(tmp_path: Path) -> None:
    from ppo_fast.run.settle import settle

    args = Args(env_id="Hopper-v5", run_root=str(tmp_path))
    args.flags_given = frozenset()  # as the command line leaves it  # pyright: ignore[reportAttributeAccessIssue]
    assert settle(args)[0].num_envs == Args().num_envs
