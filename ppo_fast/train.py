"""PPO for vector observations: discrete, multi-discrete and continuous actions, any gymnasium environment.

    python -m ppo_fast.train --num-envs 64
    python -m ppo_fast.train --env-id Acrobot-v1 --seed 3 --track --wandb-mode offline

All of it is written eagerly; the block *Executables* compiles or captures it. Letters: T steps, N envs, B = T·N,
M minibatch, S observation shape, A action dimensions, P parameters.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.func import functional_call

from ppo_fast import capture, checkpoint, cli, envs as environments, networks, play, ppo, profiling, speed, verify
from ppo_fast.cli import Range
from ppo_fast.console import Console
from ppo_fast.episodes import episode_stats
from ppo_fast.health import Health
from ppo_fast.interrupt import StopSignal
from ppo_fast.report import Report
from ppo_fast.tracking import Run

Rows = tuple[Tensor, ...]


@dataclass
class Args(cli.RunFlags):
    """The flags of the algorithm; names and meaning are CleanRL's where it has them."""

    env_id: str = "CartPole-v1"
    """gymnasium id; `module:Env-v0` imports the module first"""
    backend: str = "auto"
    """how the environments run: auto, tensor, entry_point, sync or async"""
    total_timesteps: Annotated[int, Range(1)] = 500_000
    """environment steps, all environments together"""
    learning_rate: Annotated[float, Range(0)] = 2.5e-3
    """Adam's learning rate at the start"""
    num_envs: Annotated[int, Range(1)] = 64
    """N, parallel environments"""
    num_steps: Annotated[int, Range(1)] = 64
    """T, steps of each environment between two updates"""
    anneal_lr: bool = True
    """lower the learning rate linearly to 0"""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """discount γ"""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """λ of generalised advantage estimation"""
    num_minibatches: Annotated[int, Range(1)] = 4
    """minibatches an epoch; all rows are used, sizes differ by at most one row"""
    update_epochs: Annotated[int, Range(1)] = 3
    """K, passes over each rollout"""
    norm_adv: bool = True
    """normalise advantages in each minibatch"""
    clip_coef: Annotated[float, Range(0, above=True)] = 0.2
    """ε of the clipped surrogate"""
    clip_vloss: bool = True
    """clip the value loss as well"""
    ent_coef: Annotated[float, Range(0)] = 0.01
    """weight of the entropy bonus"""
    vf_coef: Annotated[float, Range(0)] = 0.5
    """weight of the value loss"""
    max_grad_norm: Annotated[float, Range(0, above=True)] = 0.5
    """largest 2-norm of the gradient"""
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    """stop the epochs of an iteration once approx_kl is above this"""

    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64, 64)
    """units of the hidden tanh layers"""
    shared_backbone: bool = False
    """one network with a policy and a value head, instead of two networks"""

    @property
    def batch_size(self) -> int:
        """B, environment steps of one iteration."""
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        """Iterations of the run, rounded down as CleanRL does."""
        return self.total_timesteps // self.batch_size

    def check(self) -> None:
        """Raise ValueError naming the first flag whose value cannot work."""
        cli.check_ranges(self)
        if self.num_minibatches > self.batch_size:
            raise ValueError(f"--num-minibatches: at most {self.batch_size} (num_envs x num_steps) can be filled")
        if self.num_iterations < 1:
            raise ValueError(f"--total-timesteps: one iteration is {self.batch_size} steps (num_envs x num_steps)")


class Agent(nn.Module):
    """Actor and critic: two networks, or one backbone with two heads. Observations are (..., *S)."""

    def __init__(self, envs: Any, args: Args, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.obs_shape = envs.single_observation_space.shape
        self.head = networks.make_head(envs.single_action_space)
        sizes = [math.prod(self.obs_shape), *args.hidden_sizes]
        self.backbone, dtype = None, torch.bfloat16 if args.precision == "bf16" else None
        if args.shared_backbone:
            self.backbone = networks.MLP(sizes, math.sqrt(2), generator, activate_last=True, dtype=dtype)
            sizes = sizes[-1:]
        self.actor = networks.MLP([*sizes, self.head.outputs], 0.01, generator, dtype=dtype)
        self.critic = networks.MLP([*sizes, 1], 1.0, generator, dtype=dtype)

    def features(self, obs: Tensor) -> Tensor:
        """Input of actor and critic: (M, D)."""
        x = obs.flatten(obs.ndim - len(self.obs_shape)) if len(self.obs_shape) > 1 else obs
        return x if self.backbone is None else self.backbone(x)

    def value(self, obs: Tensor) -> Tensor:
        """V(s): (M, *S) -> (M,)."""
        return self.critic(self.features(obs)).squeeze(-1)

    def act(self, obs: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions (N, ...), drawn with noise or, without it, the most likely ones; and their log-probabilities (N,)."""
        outputs = self.actor(self.features(obs))
        action = self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)
        return action, self.head.log_prob_entropy(outputs, action)[0]

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy of the policy, and V: each (M,)."""
        features = self.features(obs)
        log_prob, entropy = self.head.log_prob_entropy(self.actor(features), action)
        return log_prob, entropy, self.critic(features).squeeze(-1)


class Rollout(NamedTuple):
    """What T steps of N environments gave."""

    obs: Tensor  # (T, N, *S)
    action: Tensor  # (T, N) or (T, N, A)
    log_prob: Tensor  # (T, N)
    reward: Tensor  # (T, N)
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    final_obs: Tensor  # (T, N, *S) true successor of each step
    valid: Tensor  # (T, N) bool, False for junk reset rows


class Batch(NamedTuple):
    """The rows an update draws from, or one minibatch of them."""

    obs: Tensor  # (B, *S)
    action: Tensor  # (B,) or (B, A)
    log_prob: Tensor  # (B,)
    advantage: Tensor  # (B,)
    returns: Tensor  # (B,)
    value: Tensor  # (B,)
    valid: Tensor | None  # (B,) bool; None where all rows are valid


def new_rollout(args: Args, envs: Any, agent: Agent) -> Rollout:
    """The rollout's tensors, allocated once on the device; every row valid."""
    obs, number, flag = (agent.obs_shape, torch.float32), ((), torch.float32), ((), torch.bool)
    columns = [obs, (agent.head.action_shape, agent.head.action_dtype), number, number, flag, flag, obs, flag]
    size = (args.num_steps, args.num_envs)
    return Rollout(*(torch.ones(*size, *shape, dtype=dtype, device=envs.device) for shape, dtype in columns))


def collect(
    agent: Agent, envs: environments.TensorVectorEnv, state: Rows, obs: Tensor, noise: Rows
) -> tuple[Rows, Tensor, Rows]:
    """Steps of a tensor environment: a pure function of state, obs (N, *S) and noise, (C, N, ...) each, for C steps.

    Returns the state and observation to go on from, and the first seven tensors of a Rollout, (C, N, ...).
    """
    steps = []
    for action_noise, env_noise in zip(noise[0].unbind(), noise[1].unbind(), strict=True):
        action, log_prob = agent.act(obs, action_noise)
        state, next_obs, reward, terminated, truncated, final_obs = envs.step_state(state, action, env_noise)
        steps.append((obs, action, log_prob, reward, terminated, truncated, final_obs))
        obs = next_obs
    return state, obs, tuple(torch.stack(column) for column in zip(*steps, strict=True))


def collect_from_host(act: Callable, agent: Agent, envs: Any, obs: Tensor, noise: Tensor, rollout: Rollout) -> Tensor:
    """T steps of a host environment into the rollout; returns the observation (N, *S) to go on from."""
    for t, action_noise in enumerate(noise.unbind()):
        action, log_prob = act(agent, obs, action_noise)
        next_obs, reward, terminated, truncated, info = envs.step(action)
        row = (obs, action, log_prob, reward, terminated, truncated, info["final_obs"], info["valid"])
        for column, x in zip(rollout, row, strict=True):
            column[t] = x
        obs = next_obs
    return obs


def advantages(agent: Agent, args: Args, rollout: Rollout, value: Tensor, valid: Tensor | None) -> Rows:
    """Advantages, returns (T, N) and the explained variance () from the rollout and V of its T + 1 observations."""
    cut, next_value = rollout.truncated & ~rollout.terminated, value[1:]
    if value.is_cuda:
        next_value = torch.where(cut, agent.value(rollout.final_obs), next_value)
    else:  # where the host may look, only the few truncated rows cost a forward pass
        rows = cut.nonzero(as_tuple=True)
        next_value = next_value.index_put(rows, agent.value(rollout.final_obs[rows]))
    flags = (rollout.terminated, rollout.truncated)
    advantage, returns = ppo.gae(rollout.reward, value[:-1], next_value, *flags, args.gamma, args.gae_lambda)
    return advantage, returns, ppo.explained_variance(value[:-1], returns, valid)


def loss(parameters: dict[str, Tensor], agent: Agent, args: Args, batch: Batch) -> tuple[Tensor, Tensor]:
    """PPO's loss on one minibatch (M rows) and the statistics STATISTICS[:-1]."""
    log_prob, entropy, value = functional_call(agent, parameters, (batch.obs, batch.action))
    log_ratio = log_prob - batch.log_prob
    ratio = log_ratio.exp()
    valid = batch.valid
    advantage = ppo.normalize_advantage(batch.advantage, valid) if args.norm_adv else batch.advantage
    policy_loss = ppo.policy_loss(ratio, advantage, args.clip_coef, valid)
    value_clip = args.clip_coef if args.clip_vloss else None
    value_loss = ppo.value_loss(value, batch.value, batch.returns, value_clip, valid)
    entropy = ppo.masked_mean(entropy, valid)
    kls = [ppo.approx_kl(log_ratio, estimator, valid) for estimator in ("k1", "k3")]
    clipped = ppo.clip_fraction(ratio, args.clip_coef, valid)
    statistics = torch.stack([policy_loss, value_loss, entropy, *kls, clipped])
    return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, statistics


STATISTICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "grad_norm")
LOSSES = (f"losses/{name}" for name in (*STATISTICS, "explained_variance"))
METRICS = (*LOSSES, "charts/episodic_return", "charts/episodic_length", "steps")


def update(agent: Agent, args: Args, learner: ppo.Learner, batch: Batch, index: Tensor) -> Tensor:
    """Loss, backward, clip and Adam on the rows `index` (M,) of the batch; returns STATISTICS as one tensor."""
    minibatch = Batch._make(rows if rows is None else rows[index] for rows in batch)
    shapes = {name: parameter.shape for name, parameter in agent.named_parameters()}
    parameters = networks.unflatten(learner.theta, shapes)
    gradients, _, statistics = ppo.value_and_gradients(loss, parameters, agent, args, minibatch)
    gradient, norm = ppo.clip_gradient(networks.flatten(gradients), args.max_grad_norm)
    ppo.adam_(learner, gradient, only_if_active=args.target_kl is not None)
    return torch.cat([statistics, norm[None]])


def learn(args: Args, update: Callable[[Batch, Tensor], Tensor], batch: Batch, active: Tensor, draw: Any) -> Tensor:
    """K epochs of shuffled minibatches; returns the mean of STATISTICS over the updates made, on the device."""
    sizes = list(ppo.minibatch_sizes(args.batch_size, args.num_minibatches))
    active.fill_(True)
    rows, made = [], []
    for _ in range(args.update_epochs):
        for index in torch.randperm(args.batch_size, generator=draw, device=draw.device).split(sizes):
            made.append(active.float())
            rows.append(update(batch, index))
        if args.target_kl is not None:
            active.logical_and_(rows[-1][STATISTICS.index("approx_kl")] <= args.target_kl)
            if not active.is_cuda and not active:  # a GPU would stall on a look: there the other updates do nothing
                break
    weight = torch.stack(made)[:, None]
    return (torch.stack(rows) * weight).sum(0) / weight.sum()


def make_iteration(args: Args, envs: Any, agent: Agent, learner: ppo.Learner, fast: bool) -> capture.Phases:
    """One iteration in two phases, the second of which returns METRICS as one device tensor.

    *Executables*: the one block where anything is compiled or captured; `fast` asks for it.
    """
    wrap, small = capture.compiled if fast else capture.eager, args.num_envs < capture.FEW_ENVS
    fused_act, fused_collect = wrap(Agent.act, small), wrap(collect, small)
    fused_value, fused_update = wrap(Agent.value), wrap(update)
    on_device, device = isinstance(envs, environments.TensorVectorEnv), envs.device
    chunk = capture.CHUNK if fast and device.type == "cpu" else args.num_steps

    draw = torch.Generator(device).manual_seed(args.seed)
    rollout, obs = new_rollout(args, envs, agent), envs.reset(seed=args.seed)[0].clone()
    valid = rollout.valid if envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP else None
    zeros = torch.zeros(args.num_envs, dtype=torch.float64, device=device)
    carry = (zeros, zeros.long())  # return and length so far of the running episodes
    estimate = torch.zeros_like(rollout.reward)  # kept for --verify

    def collect_phase() -> None:
        noise = agent.head.draw_noise((args.num_steps, args.num_envs), draw)
        if not on_device:
            obs.copy_(collect_from_host(fused_act, agent, envs, obs.clone(), noise, rollout))
            return
        env_noise = envs.draw_noise(args.num_steps)
        for part in (slice(t, t + chunk) for t in range(0, args.num_steps, chunk)):
            state, next_obs, rows = fused_collect(agent, envs, envs.state, obs, (noise[part], env_noise[part]))
            capture.assign((*envs.state, obs), (*state, next_obs))
            capture.assign((x[part] for x in rollout[:-1]), rows)

    def learn_phase() -> Tensor:
        value = fused_value(agent, torch.cat([rollout.obs, obs[None]]))
        advantage, returns, explained = advantages(agent, args, rollout, value, valid)
        estimate.copy_(advantage)
        columns = (rollout.obs, rollout.action, rollout.log_prob, advantage, returns, value[:-1], valid)
        batch = Batch._make(x if x is None else x.flatten(0, 1) for x in columns)
        statistics = learn(args, partial(fused_update, agent, args, learner), batch, learner.active, draw)
        ended = episode_stats(rollout.reward, rollout.terminated | rollout.truncated, valid, *carry)
        capture.assign(carry, (ended.carry_return, ended.carry_length))
        means = (ended.return_sum / ended.count, ended.length_sum / ended.count)  # NaN where no episode ended
        return torch.cat([statistics, *(x[None] for x in (explained, *means, rollout.valid.sum()))])

    state = learner._asdict() | {f"rollout.{name}": x for name, x in rollout._asdict().items()} | {"obs": obs}
    state |= {"carry_return": carry[0], "carry_length": carry[1], "advantage": estimate}
    state |= {f"env{i}": x for i, x in enumerate(envs.state)} if on_device else {}
    generators = [draw, envs.generator] if on_device else [draw]
    one_thread = not fast and args.batch_size <= capture.FEW_ROWS * args.num_minibatches
    phases = capture.Phases(collect_phase, learn_phase, state, generators, one_thread)
    if fast:
        phases = phases.ready(device, graph_collect=on_device)
    if not on_device:  # trying it out has moved it
        obs.copy_(envs.reset(seed=args.seed)[0])
    return phases


def setup(args: Args, device: torch.device) -> tuple[Any, Agent, ppo.Learner]:
    """Environments, agent and learner. The flags alone decide them: equal flags give equal ones."""
    envs = environments.make(args.env_id, args.num_envs, device, args.backend)
    agent = Agent(envs, args, torch.Generator().manual_seed(args.seed)).to(device)
    return envs, agent, ppo.new_learner(networks.flatten_parameters(agent), args.learning_rate)


def train(args: Args, watch: capture.Stopwatch | None = None) -> dict[str, Any]:
    """Train, evaluate, leave a run folder; returns what result.json holds. A flag that can't work is a ValueError."""
    watch = watch or capture.Stopwatch()
    args.check()
    device = capture.prepare(args)
    if args.verify:
        return compare_paths(args, device)
    envs, agent, learner = setup(args, device)
    parameters, total = sum(p.numel() for p in agent.parameters()), args.num_iterations * args.batch_size
    fast, wording = capture.decide(args, device, parameters)
    facts = asdict(args) | {"batch_size": args.batch_size, "num_iterations": args.num_iterations}
    facts |= {"parameters": parameters, "backend_used": envs.backend, "execution": wording}
    facts |= capture.versions(device, args.cuda)
    console = Console(total, args.quiet, f"ppo_fast {args.env_id}")
    with console, Run.from_flags(facts, console.message) as run, StopSignal() as stop:
        report = Report(console, run, Health(total, agent.head.max_entropy), facts)
        watch.lap("startup")
        if fast:
            console.phase("compiling")
        iteration = make_iteration(args, envs, agent, learner, fast)
        watch.lap("compile")
        result = loop(args, iteration, learner, report, stop)
        watch.lap("train")
        checkpoint.save_policy(run.folder, agent.state_dict(), facts)
        if args.eval_episodes and "stopped" not in result:
            console.phase("evaluating")
            backend = "sync" if envs.backend == "async" else envs.backend  # not a process for each of 100 episodes
            fresh = environments.make(args.env_id, args.eval_episodes, device, backend)
            result |= capture.eager(play.evaluate, one_thread=True)(fresh, agent, args.seed)
        if args.capture_video:
            filmed = environments.make(args.env_id, 1, device, "sync", render_mode="rgb_array")
            play.record(filmed, agent, args.seed, run.subfolder("videos") / "greedy.mp4")
        watch.lap("eval")
        result["speed"] = speed.of_run(args, envs, agent, iteration, result, watch.seconds)
        if args.profile:
            report.say(profiling.profile(lambda: iteration().tolist(), run.folder, device).lines)
        watch.lap("report")
        result["seconds"] = watch.seconds
        report.finish(result, speed.lines(result["speed"]))
    envs.close()
    return result


def compare_paths(args: Args, device: torch.device) -> dict[str, Any]:
    """`--verify`: the fast path beside the eager fp32 one, from equal state and noise; exit status 4 if they part."""
    fast = make_iteration(args, *setup(args, device), fast=True)
    exact = replace(args, precision="fp32")
    eager = make_iteration(exact, *setup(exact, device), fast=False)
    holds = verify.compare(fast, eager, args.verify, print, METRICS, capture.ROUNDING[args.precision])
    return {"verified": holds, "exit_status": 0 if holds else 4}


def loop(args: Args, iteration: capture.Phases, learner: Any, report: Report, stop: StopSignal) -> dict[str, Any]:
    """The training loop: anneal, iterate, read the metrics once, log."""
    started, global_step, first, result = time.perf_counter(), 0, 0.0, {}
    for i in range(args.num_iterations):
        rate = args.learning_rate * (1.0 - i / args.num_iterations if args.anneal_lr else 1.0)
        learner.learning_rate.fill_(rate)
        row = dict(zip(METRICS, iteration().tolist(), strict=True))  # the iteration's only look at the device
        global_step += int(row.pop("steps"))
        result = {"global_step": global_step, "sps": global_step / (time.perf_counter() - started)}
        result["first_iteration_seconds"] = first = first or time.perf_counter() - started
        report.log(row | {"global_step": global_step, "charts/SPS": result["sps"], "charts/learning_rate": rate})
        if stop.requested:
            return result | {"stopped": stop.name, "exit_status": stop.exit_status}
    return result


if __name__ == "__main__":
    cli.run(train, Args, __doc__, capture.Stopwatch.since_process_start())
