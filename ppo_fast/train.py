"""PPO for vector observations: discrete, multi-discrete and continuous actions, any gymnasium environment.

    python -m ppo_fast.train --num-envs 64
    python -m ppo_fast.train --env-id Acrobot-v1 --seed 3 --track --wandb-mode offline

All of it is written eagerly; the block *Executables* compiles, records or captures it. Letters: T steps, N envs,
B = T·N, M minibatch, S observation shape, A action dimensions, P parameters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from ppo_fast import envs as environments
from ppo_fast.algorithm import networks, normalize, ppo
from ppo_fast.algorithm.episodes import episode_stats
from ppo_fast.engine import capture, crew, distributed, graphs
from ppo_fast.run import cli, session
from ppo_fast.run.cli import Range

Rows = tuple[Tensor, ...]


@dataclass
class Args(cli.RunFlags):
    """The flags of the algorithm; names and meaning are CleanRL's where it has them."""

    learning_rate: Annotated[float, Range(0)] = 2.5e-3
    """Adam's learning rate at the start"""
    num_envs: Annotated[int, Range(1)] = 64
    """N, parallel environments, all processes together"""
    num_steps: Annotated[int, Range(1)] = 64
    """T, steps of each environment between two updates"""
    anneal_lr: bool = True
    """--no-anneal-lr is --lr-schedule constant"""
    lr_schedule: Literal["linear", "constant", "kl"] = "linear"
    """of the learning rate: linearly to 0, constant, or up and down so that approx_kl stays near desired_kl"""
    desired_kl: Annotated[float, Range(0, above=True)] = 0.01
    """approx_kl of an update that --lr-schedule kl aims at"""
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
    norm_obs: bool = False
    """normalise observations by their running mean and variance"""
    norm_reward: bool = False
    """scale rewards by the running deviation of the discounted return"""
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
    log_std_init: Annotated[float, Range(-20, 20)] = 0.0
    """log standard deviation of a continuous policy at the start"""
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
    """Actor and critic: two networks, or one backbone with two heads. Observations are (..., *S), as they come."""

    def __init__(self, envs: Any, args: Args, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.obs_shape, self.mask_size = envs.single_observation_space.shape, envs.mask_size
        self.head = networks.make_head(envs.single_action_space, args.log_std_init)
        sizes = [math.prod(self.obs_shape) - self.mask_size, *args.hidden_sizes]
        self.normalize_obs = normalize.Observations(sizes[0]) if args.norm_obs else None
        self.normalize_reward = normalize.Rewards(args.num_envs, args.gamma) if args.norm_reward else None
        self.backbone, dtype = None, torch.bfloat16 if args.precision == "bf16" else None
        if args.shared_backbone:
            self.backbone = networks.MLP(sizes, math.sqrt(2), generator, activate_last=True, dtype=dtype)
            sizes = sizes[-1:]
        self.actor = networks.MLP([*sizes, self.head.outputs], 0.01, generator, dtype=dtype)
        self.critic = networks.MLP([*sizes, 1], 1.0, generator, dtype=dtype)

    def inputs(self, obs: Tensor) -> Tensor:
        """The numbers in an observation, without the action mask that may stand at its end: (M, D)."""
        x = obs.flatten(obs.ndim - len(self.obs_shape)) if len(self.obs_shape) > 1 else obs
        return x[..., : -self.mask_size] if self.mask_size else x

    def features(self, obs: Tensor) -> Tensor:
        """Input of actor and critic."""
        x = self.inputs(obs)
        x = x if self.normalize_obs is None else self.normalize_obs(x)
        return x if self.backbone is None else self.backbone(x)

    def policy(self, obs: Tensor, features: Tensor) -> Tensor:
        """Logits, or means of a Gaussian; what the environment forbids has no probability."""
        outputs = self.actor(features)
        return networks.masked(outputs, obs[..., -self.mask_size :]) if self.mask_size else outputs

    def value(self, obs: Tensor) -> Tensor:
        """V(s): (M, *S) -> (M,)."""
        return self.critic(self.features(obs)).squeeze(-1)

    def act(self, obs: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions (N, ...), drawn with noise or, without it, the most likely ones; and what the policy said, (N, H)."""
        outputs = self.policy(obs, self.features(obs))
        return self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise), outputs

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy of the policy, and V: each (M,)."""
        features = self.features(obs)
        log_prob, entropy = self.head.log_prob_entropy(self.policy(obs, features), action)
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
    kinds = [obs, (agent.head.action_shape, agent.head.action_dtype), number, number, flag, flag, obs, flag]
    size = (args.num_steps, args.num_envs)
    return Rollout(*(torch.ones(*size, *shape, dtype=dtype, device=envs.device) for shape, dtype in kinds))


def columns(agent: Agent, steps: list[Rows]) -> list[Tensor]:
    """The columns of a Rollout from its steps; log π, of all at once, from what the policy said in its place."""
    found = [torch.stack(column) for column in zip(*steps, strict=True)]
    return [*found[:2], agent.head.log_prob(found[2], found[1]), *found[3:]]


def collect(agent: Agent, envs: environments.TensorVectorEnv, state: Rows, rollout: Rows, noise: Rows) -> None:
    """C steps of a tensor environment, in place: a function of state, the observation (N, *S) last, and noise, (C, N,
    ...) each, which moves the state on and writes the first seven columns of a Rollout, (C, N, ...)."""
    (*now, obs), steps = state, []
    for action_noise, env_noise in zip(noise[0].unbind(), noise[1].unbind(), strict=True):
        action, outputs = agent.act(obs, action_noise)
        now, next_obs, *results, final_obs = envs.step_state(tuple(now), action, env_noise)
        steps.append((obs, action, outputs, *results, final_obs))
        obs = next_obs
    capture.assign((*state, *rollout), (*now, obs, *columns(agent, steps)))


def collect_from_host(act: Callable, agent: Agent, envs: Any, group: int, obs: Tensor, rows: Rows) -> Iterator[None]:
    """T steps of one group of host environments, in place: moves obs on and writes a Rollout; rows are noise and the
    columns of that, (T, n, ...). It yields while the group steps, so that the policy can act for another."""
    now, steps = obs, []
    for action_noise in rows[0].unbind():
        action, outputs = act(agent, now, action_noise)
        envs.step_async(action, group)
        yield
        next_obs, *results, info = envs.step_wait(group)
        steps.append((now, action, outputs, *results, info["final_obs"], info["valid"]))
        now = next_obs
    capture.assign((obs, *rows[1:]), (now, *columns(agent, steps)))


def collect_on_device(collect: Callable, agent: Agent, envs: Any, state: Rows, rollout: Rows, noise: Rows) -> None:
    """T steps of a tensor environment into the rollout in place, CHUNK at a time."""
    for *rows, action_noise, env_noise in zip(*(x.split(capture.CHUNK) for x in (*rollout, *noise)), strict=True):
        collect(agent, envs, state, tuple(rows), (action_noise, env_noise))


def advantages(
    agent: Agent, args: Args, rollout: Rollout, value: Tensor, valid: Tensor | None, **shared: Any
) -> tuple[Batch, Tensor]:
    """The batch and the explained variance () from the rollout and V of its T + 1 observations."""
    reward, flags = rollout.reward, (rollout.terminated, rollout.truncated)
    value, next_value = value[:-1], value[1:]
    if agent.normalize_reward is not None:
        reward = agent.normalize_reward.update_(reward, flags[0] | flags[1], valid, **shared)
    cut = rollout.truncated & ~rollout.terminated
    if value.is_cuda:
        next_value = torch.where(cut, agent.value(rollout.final_obs), next_value)
    else:  # where the host may look, only the few truncated rows cost a forward pass
        few = cut.nonzero(as_tuple=True)
        next_value = next_value.index_put(few, agent.value(rollout.final_obs[few]))
    advantage, returns = ppo.gae(reward, value, next_value, *flags, args.gamma, args.gae_lambda)
    rows = (rollout.obs, rollout.action, rollout.log_prob, advantage, returns, value, valid)
    batch = Batch._make(x if x is None else x.flatten(0, 1) for x in rows)
    return batch, ppo.explained_variance(value, returns, valid)


def loss(parameters: dict[str, Tensor], agent: Agent, args: Args, batch: Batch) -> tuple[Tensor, Tensor]:
    """PPO's loss on one minibatch (M rows) and the statistics STATISTICS[:-1]."""
    log_prob, entropy, value = networks.call(agent, parameters, batch.obs, batch.action)
    log_ratio = log_prob - batch.log_prob
    ratio, valid = log_ratio.exp(), batch.valid
    policy_loss = ppo.policy_loss(ratio, batch.advantage, args.clip_coef, valid)
    value_loss = ppo.value_loss(value, batch.value, batch.returns, args.clip_coef if args.clip_vloss else None, valid)
    entropy = ppo.masked_mean(entropy, valid)
    kls = [ppo.approx_kl(log_ratio.detach(), estimator, valid) for estimator in ("k1", "k3")]
    clipped = ppo.clip_fraction(ratio.detach(), args.clip_coef, valid)
    statistics = torch.stack([policy_loss, value_loss, entropy, *kls, clipped])
    return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, statistics


STATISTICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "grad_norm")
LOSSES = (*(f"losses/{name}" for name in (*STATISTICS, "explained_variance")), "charts/learning_rate")
METRICS = (*LOSSES, "returns", "lengths", "episodes", "steps", "broken")  # means, then sums over processes


def shuffled(args: Args, reduce: Callable | None, batch: Batch, order: Tensor) -> Batch:
    """The batch in this order (B,), its advantages normalised within each minibatch, over the rows of all processes."""
    batch = Batch._make(x if x is None else x[order] for x in batch)
    if args.norm_adv:
        normal = ppo.normalize_minibatches(batch.advantage, args.num_minibatches, batch.valid, reduce)
        batch = batch._replace(advantage=normal)
    return batch


def gradient(agent: Agent, args: Args, theta: Tensor, rows: Batch, share: float | Tensor) -> Tensor:
    """Forward and backward on a share of a minibatch: what it adds to the gradient and STATISTICS[:-1], (P + 6,)."""
    gradients, _, statistics = ppo.value_and_gradients(loss, networks.parameters_of(agent, theta), agent, args, rows)
    return torch.cat([networks.flatten(gradients), statistics]) * share


def step(args: Args, learner: ppo.Learner, found: Rows) -> Tensor:
    """Clip and Adam with the sum of what `gradient` found; returns STATISTICS. NaN and infinity move nothing."""
    total, size = sum(found[1:], found[0]), len(STATISTICS) - 1
    direction, norm = ppo.clip_gradient(total[:-size], args.max_grad_norm)
    statistics = torch.cat([total[-size:], norm[None]])
    learner.sound.logical_and_(statistics.isfinite().all())
    learner.active.logical_and_(learner.sound)
    ppo.adam_(learner, direction, only_if_active=True)
    return statistics


def update(
    args: Args, learner: ppo.Learner, ranks: distributed.Ranks, find: Callable, apply: Callable, parts: list[Batch]
) -> Tensor:
    """Loss, backward, clip and Adam on one minibatch, whose parts may be found side by side; returns STATISTICS."""
    shares = ppo.shares(parts, ranks.world_size, ranks.sum_)
    found = find([(learner.theta, *each) for each in zip(parts, shares, strict=True)])
    return apply(args, learner, found if ranks.world_size == 1 else [ranks.sum_(torch.stack(found).sum(0))])


def learn(
    args: Args, shuffle: Callable, update: Callable, batch: Batch, learner: ppo.Learner, draw: Any, parts: int = 1
) -> Tensor:
    """K epochs of shuffled minibatches; returns the mean of STATISTICS over the updates made, on the device."""
    rows, made, active = [], [], learner.active
    for _ in range(args.update_epochs):
        whole = shuffle(batch, torch.randperm(args.batch_size, generator=draw, device=draw.device))
        pieces = iter(ppo.split(whole, ppo.minibatch_sizes(args.batch_size, args.num_minibatches, parts)))
        for minibatch in zip(*[pieces] * parts, strict=True):
            made.append(active.float())
            rows.append(update(list(minibatch)))
        approx_kl = rows[-1][STATISTICS.index("approx_kl")]
        if args.lr_schedule == "kl" and len(rows) > 1:  # before the first update it is 0, or a rounding
            ppo.adapt_(learner.learning_rate, approx_kl, args.desired_kl)
        if args.target_kl is not None:
            active.logical_and_(approx_kl <= args.target_kl)
            if not active.is_cuda and not active:  # a GPU would stall on a look: there the other updates do nothing
                break
    weight = torch.stack(made)[:, None]
    return (torch.stack(rows) * weight).sum(0) / weight.sum().clamp(min=1)


def make_iteration(
    args: Args, envs: Any, agent: Agent, learner: ppo.Learner, fast: bool, ranks: distributed.Ranks | None = None
) -> capture.Phases:
    """One iteration in two phases, the second of which returns METRICS as one device tensor."""
    # Executables: the one block where anything is compiled, recorded or captured; `fast` asks for the first or last.
    ranks = ranks or distributed.Ranks(envs.device)
    device, on_device = ranks.device, isinstance(envs, environments.TensorVectorEnv)
    wrap = graphs.Compiled if fast else graphs.Recorded if capture.records(args, device) else graphs.plain
    threads = crew.Crew(device, wrap is not graphs.plain, started=not fast)
    parts = len(threads.sizes(args.batch_size // args.num_minibatches, crew.FEW_ROWS))
    alone, find = ranks.world_size == 1, partial(gradient, agent, args)
    whole = alone and parts == 1  # then an update is one graph
    pieces = (crew.in_turn(find), step) if whole else (threads.side_by_side(wrap(find)), wrap(step))
    fused_act, fused_value = wrap(Agent.act), threads.side_by_side(wrap(Agent.value))
    fused_collect = threads.side_by_side(partial(collect_on_device, wrap(collect)))
    fused_shuffle = partial(wrap(shuffled) if alone else shuffled, args, None if alone else ranks.sum_)
    fused_update = partial(wrap(update) if whole else update, args, learner, ranks, *pieces)

    draw = torch.Generator(device).manual_seed(args.seed)
    rollout, obs = new_rollout(args, envs, agent), envs.reset(seed=args.seed)[0].clone()
    valid = rollout.valid if envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP else None
    carry = tuple(torch.zeros_like(rollout.reward[0], dtype=kind) for kind in (torch.float64, torch.int64))
    estimate = torch.zeros_like(rollout.reward)  # kept for --verify
    lanes = partial(crew.lanes, threads.sizes(args.num_envs, crew.FEW_ENVS))
    own = [*zip(lanes(0, (*envs.state, obs)), lanes(1, rollout[:-1]), strict=True)] if on_device else []

    def collect_phase() -> None:
        noise = agent.head.draw_noise((args.num_steps, args.num_envs), draw)
        if on_device:
            noises = lanes(1, (noise, envs.draw_noise(args.num_steps)))
            fused_collect([(agent, envs, *lane, both) for lane, both in zip(own, noises, strict=True)])
        else:
            environments.take_turns(partial(collect_from_host, fused_act, agent, envs), envs, obs, (noise, *rollout))

    def learn_phase() -> Tensor:
        value = torch.cat(fused_value([(agent, x) for x in torch.cat([rollout.obs, obs[None]]).tensor_split(parts)]))
        broken = ranks.sum_((~capture.all_finite(rollout.obs, rollout.reward, value)).double())
        capture.assign((learner.sound, learner.active), (broken == 0, broken == 0))
        shared = {"sound": learner.sound, "reduce": ranks.sum_}
        batch, explained = advantages(agent, args, rollout, value, valid, **shared)
        estimate.copy_(batch.advantage.view_as(estimate))
        statistics = learn(args, fused_shuffle, fused_update, batch, learner, draw, parts)
        if agent.normalize_obs is not None:  # after the updates: they are of the policy that acted
            agent.normalize_obs.update_(agent.inputs(rollout.obs), valid, **shared)
        episodes = episode_stats(rollout.reward, rollout.terminated | rollout.truncated, valid, *carry)
        capture.assign(carry, (episodes.carry_return, episodes.carry_length))
        sums = (*episodes[:3], rollout.valid.sum(), ~learner.sound)
        return torch.cat([statistics, torch.stack([x.double() for x in (explained, learner.learning_rate, *sums)])])

    state = learner._asdict() | {f"rollout.{name}": x for name, x in rollout._asdict().items()} | {"obs": obs}
    state |= {"carry_return": carry[0], "carry_length": carry[1], "advantage": estimate}
    state |= {f"agent.{name}": x for name, x in agent.named_buffers()}
    state |= {f"env{i}": x for i, x in enumerate(envs.state)} if on_device else {}
    generators = [draw, envs.generator] if on_device else [draw]
    begin = None if on_device else lambda seed: obs.copy_(envs.restart() if seed is None else envs.reset(seed=seed)[0])
    one_thread = wrap is not graphs.plain or args.batch_size <= capture.EAGER_ROWS * args.num_minibatches
    phases = capture.Phases(collect_phase, learn_phase, state, generators, threads, one_thread, begin)
    return phases.ready(device, args.seed) if fast or capture.captures(args, device) else phases


def setup(args: Args, device: torch.device) -> tuple[Any, Agent, ppo.Learner]:
    """Environments, agent and learner. The flags alone decide them: equal flags give equal ones."""
    envs = environments.make(args.env_id, args.num_envs, device, args.backend, **args.env_options)
    agent = Agent(envs, args, torch.Generator().manual_seed(args.seed)).to(device)
    return envs, agent, ppo.new_learner(networks.flatten_parameters(agent), args.learning_rate)


def train(args: Args, watch: capture.Stopwatch | None = None) -> dict[str, Any]:
    """Train, evaluate, leave a run folder; returns what result.json holds. A flag that can't work is a ValueError."""
    args, origin = session.settle(args)
    args.check()
    device = capture.prepare(args)
    if args.verify:
        return session.compare_paths(args, setup, make_iteration, METRICS, device)
    with distributed.init(device) as ranks, session.Session(args, ranks, origin, watch) as run:
        envs, agent, learner = setup(share := run.share(args), ranks.device)  # its share of the environments
        ranks.broadcast_(learner.theta)
        fast = run.start(envs, agent)
        iteration = make_iteration(share, envs, agent, learner, fast, ranks)
        for i in run.iterations(iteration):
            if args.lr_schedule != "kl":
                left = 1.0 - i / args.num_iterations if args.lr_schedule == "linear" and args.anneal_lr else 1.0
                learner.learning_rate.fill_(args.learning_rate * run.rate_factor * left)
            run.record(iteration, METRICS)
        return run.finish(envs, agent, iteration)


if __name__ == "__main__":
    cli.run(train, Args, __doc__, capture.Stopwatch.since_process_start())
