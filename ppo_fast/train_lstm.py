"""PPO with a memory, an LSTM, for environments that don't show everything; otherwise as train.py.

    python -m ppo_fast.train_lstm --env-id ppo_fast/RepeatPrevious-v0
    python -m ppo_fast.train_lstm --env-id CartPole-v1 --seed 3 --track --wandb-mode offline

What the policy remembers, `hidden` and `cell`, is kept beside the observation: the rollout holds what was remembered
before each step. After the last step of an episode, by termination or truncation, it is set to 0. An update passes
through whole sequences of steps again, from what was remembered at their first step.

The algorithm is written eagerly, in the order in which it happens: collect, advantages, loss, descend, epochs, learn;
`train` at the end loops over collect and learn. How these functions run (recorded, compiled, in CUDA graphs, on
threads, in several processes) is the engine's business; `make_iteration` hands them over (docs/engine.md). It runs all
of it under torch.no_grad, but for `loss`.

Letters: T steps, N envs, B = T·N, M rows of any batch, L steps of a sequence, R = B / L sequences, S observation shape,
D numbers of an observation, A action dimensions, P parameters, H units of the LSTM, F outputs of the policy network.

Two flags of the learner steer an iteration on the device, so that the host need not wait to read them. `sound`: no NaN
or infinity so far, in any process, in observations, rewards, values, the numbers that `loss` logs, or a gradient; while
it is off the normalisers change nothing. `active`: updates are made; it goes off with `sound` and at --target-kl, and
while it is off adam_ and adapt_ change nothing. Both are set anew in every iteration. After one that was not sound the
session leaves a crash file; then it stops or, with --on-nan rollback, puts everything back as in the last checkpoint,
the count of iterations too, and goes on from there with half the learning rate.

Under torchrun each process has its own environments, its own sequences of every minibatch and a seed of its own.
`train` has two sets of flags: `args` of all processes together, which say how many iterations there are, and how the
learning rate falls; and `own`, this process's share, which `setup` and `make_iteration` and all that they call are
given as `args`: N and B are those of one process there.
These are summed over the processes (`reduce`): the gradient and the numbers that `loss` logs, before they come to
`descend`; the sums behind the advantages' mean and deviation; the normalisers' statistics; whether a number was not
finite. So parameters, KL, `sound` and `active` are equal everywhere.
Of what an iteration logs the session adds up the `sums` of all processes and averages the `means`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ppo_fast import envs as environments
from ppo_fast.algorithm import heads, lstm, mlp, normalize, ppo
from ppo_fast.algorithm.adam import Learner, adam_, adapt_, clip_gradient, new_learner
from ppo_fast.algorithm.episodes import episode_stats
from ppo_fast.algorithm.statistics import Means, Metrics, Statistics
from ppo_fast.engine import process, ranks
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.flat import flatten_parameters
from ppo_fast.engine.iteration import Iteration, train_state
from ppo_fast.run import cli, recipe
from ppo_fast.run.callback import OnIteration
from ppo_fast.run.flags import Alias, Range, check_ranges
from ppo_fast.run.guest import guest
from ppo_fast.run.run_flags import RunFlags
from ppo_fast.run.session import Session
from ppo_fast.run.settle import settle
from ppo_fast.run.stopwatch import Stopwatch
from ppo_fast.run.verification import compare_paths


@dataclass
class Args(RunFlags):
    """The flags of the algorithm; names and meaning are CleanRL's where it has them."""

    has_presets: ClassVar[bool] = False  # those were found without a memory
    by_kind: ClassVar[recipe.Recipe | None] = recipe.MEMORY
    """What replaces those of the defaults below that the user has not named, by the kind of environment."""
    learning_rate: Annotated[float, Range(0), Alias("--lr")] = 1e-3
    """Adam's learning rate at the start"""
    num_envs: Annotated[int, Range(1)] = 16
    """N, parallel environments, all processes together"""
    num_steps: Annotated[int, Range(1)] = 128
    """T, steps of each environment between two updates"""
    anneal_lr: bool = True
    """--no-anneal-lr turns linear into constant; it has no effect on kl"""
    lr_schedule: Literal["linear", "constant", "kl"] = "linear"
    """of the learning rate: linearly to 0, constant, or up and down so that approx_kl stays near desired_kl"""
    desired_kl: Annotated[float, Range(0, above=True)] = 0.01
    """approx_kl of an epoch's last minibatch that --lr-schedule kl aims at"""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """discount γ"""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """λ of generalised advantage estimation"""
    sequence_length: Annotated[int | None, Range(1)] = None
    """L, steps that a gradient reaches back, a divisor of num_steps; the whole rollout unless given"""
    num_minibatches: Annotated[int, Range(1)] = 4
    """minibatches an epoch; all sequences are used, sizes differ by at most one sequence"""
    update_epochs: Annotated[int, Range(1)] = 8
    """K, passes over each rollout"""
    norm_adv: bool = True
    """normalise advantages in each minibatch"""
    adv_std_min: Annotated[float, Range(0)] = 0.0
    """norm_adv divides by this at least, so that errors of the values stay small where nothing is rewarded"""
    norm_obs: bool = True
    """normalise observations by their running mean and variance"""
    norm_reward: bool = True
    """scale rewards by the running deviation of the discounted return"""
    clip_coef: Annotated[float, Range(0, above=True)] = 0.2
    """ε of the clipped surrogate"""
    clip_vloss: bool = False
    """clip the value loss as well"""
    ent_coef: Annotated[float, Range(0)] = 0.001
    """weight of the entropy bonus"""
    vf_coef: Annotated[float, Range(0)] = 0.5
    """weight of the value loss"""
    max_grad_norm: Annotated[float, Range(0, above=True)] = 0.5
    """largest 2-norm of the gradient"""
    target_kl: Annotated[float | None, Range(0, above=True)] = None
    """stop the epochs of an iteration once approx_kl of an epoch's last minibatch is above this"""
    hidden_sizes: Annotated[tuple[int, ...], Range(1)] = (64,)
    """units of the tanh layers before the LSTM"""
    lstm_hidden_size: Annotated[int, Range(1)] = 64
    """H, units of the LSTM"""
    log_std_init: Annotated[float, Range(-20, 20)] = 0.5
    """log standard deviation of a continuous policy at the start"""

    @property
    def batch_size(self) -> int:
        """B, environment steps of one iteration."""
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        """Iterations of the run, rounded down as CleanRL does."""
        return self.total_timesteps // self.batch_size

    @property
    def steps_of_sequence(self) -> int:
        """L, steps of a sequence."""
        return self.sequence_length or self.num_steps

    @property
    def num_sequences(self) -> int:
        """R, sequences of a rollout."""
        return self.batch_size // self.steps_of_sequence

    def check(self) -> None:
        """Raise ValueError naming the first flag whose value cannot work."""
        check_ranges(self)
        if self.num_steps % self.steps_of_sequence:
            raise ValueError(f"--sequence-length: {self.num_steps} steps can't be cut into sequences of so many")
        if self.num_minibatches > self.num_sequences:
            raise ValueError(f"--num-minibatches: at most {self.num_sequences} can be filled, with a sequence each")
        if self.num_iterations < 1:
            raise ValueError(f"--total-timesteps: one iteration is {self.batch_size} steps (num_envs x num_steps)")


class Agent(nn.Module):
    """Actor and critic: layers, an LSTM, and a head for each of the two.

    Observations are (..., *S), float32, as they come, and beside them stands what is remembered before them, `hidden`
    and `cell`, (..., H) each: (N, ...) in `act`, (T + 1, N, ...) in `value`. `forward` is given sequences, (M, L, *S).
    Any nn.Module of float32 parameters may take the layers' place, as long as it treats each row by itself (no
    BatchNorm), since the engine works on parts of a batch. `--precision` concerns mlp.MLP alone.
    A Dict observation arrives flat, its entries in the order of gymnasium's flatten: by their sorted keys, if the space
    was made of a dict. envs.columns["policy"] is the slice of the entry "policy", for obs[..., envs.columns["policy"]];
    it fits what `inputs` gives as well, since only the mask at the end is missing there.
    Buffers are saved with the policy unless they are registered with persistent=False: those belong to the environments
    of this process, like the running return of normalize.Rewards.
    """

    def __init__(self, envs: environments.Environments, args: Args, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.obs_shape = envs.single_observation_space.shape
        self.mask_size = envs.mask_size  # last numbers of an observation that say which actions are allowed; mostly 0
        self.head = heads.make_head(envs.single_action_space, args.log_std_init)
        self.normalize_obs = None
        self.normalize_reward = None
        sizes = [math.prod(self.obs_shape) - self.mask_size, *args.hidden_sizes]
        if args.norm_obs:
            self.normalize_obs = normalize.Observations(sizes[0])
        if args.norm_reward:
            self.normalize_reward = normalize.Rewards(args.num_envs, args.gamma)
        dtype = torch.bfloat16 if args.precision == "bf16" else None
        self.layers = mlp.MLP(sizes, math.sqrt(2), generator, activate_last=True, dtype=dtype)
        self.lstm = lstm.LSTM(sizes[-1], args.lstm_hidden_size, generator)
        self.actor = mlp.MLP([args.lstm_hidden_size, self.head.outputs], 0.01, generator, dtype=dtype)
        self.critic = mlp.MLP([args.lstm_hidden_size, 1], 1.0, generator, dtype=dtype)

    def initial_memory(self, num_envs: int) -> tuple[Tensor, Tensor]:
        """What is remembered before an episode, hidden and cell: (N, H) each."""
        nothing = self.lstm.recurrent.weight.new_zeros(num_envs, self.lstm.size)
        return nothing, nothing.clone()

    def inputs(self, obs: Tensor) -> Tensor:
        """The numbers in an observation, without the action mask that may stand at its end: (..., *S) -> (..., D)."""
        flat = obs.flatten(obs.ndim - len(self.obs_shape)) if len(self.obs_shape) > 1 else obs
        return flat[..., : -self.mask_size] if self.mask_size else flat

    def features(self, obs: Tensor) -> Tensor:
        """What the LSTM sees: normalised, and through the layers before it."""
        x = self.inputs(obs)
        if self.normalize_obs is not None:
            x = self.normalize_obs(x)  # by the statistics as they stand; `learn` changes them
        return self.layers(x)

    def policy(self, obs: Tensor, hidden: Tensor) -> Tensor:
        """Logits, or means of a Gaussian, (..., F); what the environment forbids has no probability."""
        outputs = self.actor(hidden)
        return heads.masked(outputs, obs[..., -self.mask_size :]) if self.mask_size else outputs

    def value(self, obs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """V of an observation and of what is remembered before it: (..., *S) -> (...)."""
        hidden, cell = self.lstm.step(self.features(obs), hidden, cell)
        return self.critic(hidden).squeeze(-1)

    def value_after(self, next_obs: Tensor, obs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """V of the observation that follows obs, once obs is remembered too."""
        hidden, cell = self.lstm.step(self.features(obs), hidden, cell)
        return self.value(next_obs, hidden, cell)

    def act(
        self, obs: Tensor, noise: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions (N, ...), drawn with noise or, without it, the most likely ones; the policy's outputs (N, F); and
        what is remembered from now on."""
        hidden, cell = self.lstm.step(self.features(obs), hidden, cell)
        outputs = self.policy(obs, hidden)
        action = self.head.mode(outputs) if noise is None else self.head.sample(outputs, noise)
        return action, outputs, hidden, cell

    def forward(
        self, obs: Tensor, action: Tensor, first: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of sequences: log-probability of actions, entropy of the policy, and V, each (M, L).

        Args:
            obs, action: (M, L, ...).
            first: (M, L) bool, where an episode begins.
            hidden, cell: (M, H) before the first step of each sequence.
        """
        obs = obs.transpose(0, 1)  # the LSTM takes a step of all sequences after the other
        hiddens = self.lstm(self.features(obs), first.T, hidden, cell)  # (L, M, H)
        log_prob, entropy = self.head.log_prob_entropy(self.policy(obs, hiddens), action.transpose(0, 1))
        return log_prob.T, entropy.T, self.critic(hiddens).squeeze(-1).T


class Carry(NamedTuple):
    """What one rollout hands on to the next."""

    env: tuple[Tensor, ...]  # state of a tensor environment, each (N, ...); () where environments run on the host
    obs: Tensor  # (N, *S) on which the next action is chosen
    hidden: Tensor  # (N, H) remembered before it
    cell: Tensor  # (N, H)


class Noise(NamedTuple):
    """The random numbers of a rollout, drawn before it, so that `collect` is a function of what it is given."""

    action: Tensor  # (T, N, ...)
    env: Tensor  # (T, N, ...); of no use to environments on the host, which draw their own


class Rollout(NamedTuple):
    """What T steps of N environments gave."""

    obs: Tensor  # (T, N, *S) float32
    hidden: Tensor  # (T, N, H) float32, what was remembered before the observation
    cell: Tensor  # (T, N, H) float32
    action: Tensor  # (T, N) int64, (T, N, A) int64 or (T, N, A) float32, as drawn: only the environment clips it
    log_prob: Tensor  # (T, N) float32 of the action, by the policy that drew it
    reward: Tensor  # (T, N) float32, as the environment gave it
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    final_obs: Tensor  # (T, N, *S) float32, what the step led to: obs of the next row or, at an episode's end, its last
    valid: Tensor | None  # (T, N) bool, False for junk, which a NEXT_STEP environment's reset leaves; None: no junk


class Batch(NamedTuple):
    """The sequences an update draws from, or one minibatch of them."""

    obs: Tensor  # (R, L, *S)
    action: Tensor  # (R, L) or (R, L, A)
    log_prob: Tensor  # (R, L)
    advantage: Tensor  # (R, L)
    returns: Tensor  # (R, L)
    value: Tensor  # (R, L) before the updates
    valid: Tensor | None  # (R, L) bool; None where all steps are valid
    first: Tensor  # (R, L) bool, where an episode begins
    hidden: Tensor  # (R, H) remembered before the first step
    cell: Tensor  # (R, H)


class Episodes(NamedTuple):
    """Of the episodes that go on: what they gave so far."""

    returns: Tensor  # (N,) float64
    lengths: Tensor  # (N,) int64


class Executables(NamedTuple):
    """What the engine made of functions of this file, with their first arguments filled in by `make_iteration`."""

    value: Callable[[Tensor, Tensor, Tensor], Tensor]  # (obs, hidden, cell): Agent.value
    shuffled: Callable[[Batch, Tensor], Batch]  # (batch, order)
    # (minibatch): `loss` and backward; the gradient (P,) of all parameters, and the numbers that `loss` logs. Both are
    # means over the valid steps of all processes.
    gradient: Callable[[Batch], tuple[Tensor, Statistics]]
    descend: Callable[[Learner, Tensor, Tensor], Tensor]  # (learner, gradient, logged)
    reduce: Callable[[Tensor], Tensor] | None  # sum over the processes of torchrun; None for a single one


def collect(agent: Agent, envs: environments.Environments, carry: Carry, noise: Noise) -> tuple[Carry, Rollout]:
    """T steps of N environments: where they stand then, and what they gave."""
    state, obs, hidden, cell = carry
    steps = []
    for action_noise, env_noise in zip(noise.action.unbind(), noise.env.unbind(), strict=True):
        action, outputs, next_hidden, next_cell = agent.act(obs, action_noise, hidden, cell)
        state, step = envs.advance(state, action, env_noise)
        result = (step.reward, step.terminated, step.truncated, step.final_obs, step.valid)
        steps.append((obs, hidden, cell, action, outputs, *result))
        # After an end obs is the first one of the next episode. NEXT_STEP environments have a junk row before it: its
        # obs is the old episode's last, its action is ignored, its step leads to the reset.
        obs = step.obs
        forgets = forgotten(step)[:, None]
        hidden = torch.where(forgets, 0.0, next_hidden)
        cell = torch.where(forgets, 0.0, next_cell)
    all_obs, hiddens, cells, actions, all_outputs, *results = ppo.stacked(steps)  # (T, N, ...) each
    log_prob = agent.head.log_prob(all_outputs, actions)  # of what they were drawn from, all at once
    return Carry(state, obs, hidden, cell), Rollout(all_obs, hiddens, cells, actions, log_prob, *results)


def forgotten(step: environments.Step | Rollout) -> Tensor:
    """Where nothing of a step is remembered: an episode ended with it, or it was junk, after which one begins."""
    done = step.terminated | step.truncated
    return done if step.valid is None else done | ~step.valid


def advantages(
    args: Args, agent: Agent, learner: Learner, rollout: Rollout, after: Carry, prepared: Executables
) -> Batch:
    """What the updates learn from. `after` is what follows after the rollout."""
    values = prepared.value(  # (T + 1, N)
        torch.cat([rollout.obs, after.obs[None]]),
        torch.cat([rollout.hidden, after.hidden[None]]),
        torch.cat([rollout.cell, after.cell[None]]),
    )
    value, next_value = values[:-1], values[1:]
    numbers = (rollout.obs, rollout.final_obs, rollout.reward, values)
    learner.sound.copy_(ppo.all_finite(*numbers, reduce=prepared.reduce))
    learner.active.copy_(learner.sound)

    reward, done = rollout.reward, rollout.terminated | rollout.truncated
    if agent.normalize_reward is not None:
        reward = agent.normalize_reward.update_(reward, done, rollout.valid, learner.sound, prepared.reduce)
    # An end of an episode stops the sum of gae. Terminated: the value of what follows is 0, which gae sees to.
    # Truncated: it is that of the episode's last observation, final_obs, with all of the episode remembered, not of the
    # next row, another episode's first.
    # How: a CPU evaluates final_obs of the truncated rows alone; their number varies, so by the plain
    # agent.value_after, whose arguments are in `rows`. A GPU evaluates that of all rows and takes the truncated ones:
    # to know their number the host would have to wait.
    timed_out = rollout.truncated & ~rollout.terminated
    rows = (rollout.final_obs, rollout.obs, rollout.hidden, rollout.cell)
    next_value = ppo.successor_values(agent.value_after, rows, timed_out, next_value)
    # A junk row stands behind an end, so it reaches no other row; in the loss it is masked.
    advantage, returns = ppo.gae(
        reward, value, next_value, rollout.terminated, rollout.truncated, args.gamma, args.gae_lambda
    )
    forgets = forgotten(rollout)
    first = torch.cat([torch.zeros_like(forgets[:1]), forgets[:-1]])  # in row 0 what is remembered is 0 there already
    columns = (rollout.obs, rollout.action, rollout.log_prob, advantage, returns, value, rollout.valid, first)
    length = args.steps_of_sequence
    sequences = [None if x is None else in_sequences(x, length) for x in columns]
    # What was remembered before the first step of each.
    hidden, cell = rollout.hidden[::length].flatten(0, 1), rollout.cell[::length].flatten(0, 1)
    return Batch._make([*sequences, hidden, cell])


def in_sequences(x: Tensor, length: int) -> Tensor:
    """A column of a rollout (T, N, ...) cut into sequences of this length: (R, L, ...)."""
    return x.unflatten(0, (-1, length)).transpose(1, 2).flatten(0, 1)


def in_rollout(x: Tensor, num_envs: int) -> Tensor:
    """The same back again: (R, L) -> (T, N)."""
    return x.unflatten(0, (-1, num_envs)).transpose(1, 2).flatten(0, 1)


def shuffled(args: Args, reduce: Callable[[Tensor], Tensor] | None, batch: Batch, order: Tensor) -> Batch:
    """The batch in this order (R,), its advantages normalised within each minibatch, as `epochs` will cut it, over the
    valid steps of all processes."""
    batch = Batch._make(None if x is None else x[order] for x in batch)
    if args.norm_adv:
        normal = ppo.normalize_minibatches(batch.advantage, args.num_minibatches, batch.valid, reduce, args.adv_std_min)
        batch = batch._replace(advantage=normal)
    return batch


def loss(agent: Agent, args: Args, minibatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's loss on one minibatch (M sequences), and the numbers to log of it, which appear as losses/<name>.

    The loss and each number has to be a mean over the valid steps (ppo.masked_mean: 0 where there are none), because
    minibatches are worked through in parts.
    """
    log_prob, entropy, value = agent(minibatch.obs, minibatch.action, minibatch.first, minibatch.hidden, minibatch.cell)
    log_ratio = log_prob - minibatch.log_prob
    ratio = log_ratio.exp()
    policy_loss = ppo.policy_loss(ratio, minibatch.advantage, args.clip_coef, minibatch.valid)
    value_clip = args.clip_coef if args.clip_vloss else None
    value_loss = ppo.value_loss(value, minibatch.value, minibatch.returns, value_clip, minibatch.valid)
    entropy = ppo.masked_mean(entropy, minibatch.valid)
    statistics = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "old_approx_kl": ppo.approx_kl(log_ratio.detach(), "k1", minibatch.valid),
        "approx_kl": ppo.approx_kl(log_ratio.detach(), "k3", minibatch.valid),
        "clipfrac": ppo.clip_fraction(ratio.detach(), args.clip_coef, minibatch.valid),
    }
    return policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy, statistics


def descend(args: Args, learner: Learner, gradient: Tensor, logged: Tensor) -> Tensor:
    """Clip the gradient (P,) of all parameters together and take one step of Adam, in place; returns the norm before
    clipping.

    After a NaN or infinity in the gradient or among the logged numbers no parameter, no rate and no statistics of
    observations change any more in this iteration. What the session does then is `--on-nan`'s business.
    """
    gradient, norm = clip_gradient(gradient, args.max_grad_norm)
    learner.sound.logical_and_(torch.cat([logged, norm[None]]).isfinite().all())
    learner.active.logical_and_(learner.sound)
    adam_(learner, gradient)  # does nothing unless learner.active
    return norm


def epochs(
    args: Args, learner: Learner, batch: Batch, generator: torch.Generator, prepared: Executables
) -> dict[str, Tensor]:
    """K passes over the batch in shuffled minibatches; the mean of what was logged, over the updates for which `active`
    was on before them."""
    means = Means()
    sizes = ppo.even_sizes(args.num_sequences, args.num_minibatches)
    for epoch in range(args.update_epochs):
        order = torch.randperm(args.num_sequences, generator=generator, device=generator.device)
        for minibatch in ppo.split(prepared.shuffled(batch, order), sizes):  # every sequence once
            active = learner.active.float()  # 0 after a stop: then this update has no effect, and no weight
            gradient, logged = prepared.gradient(minibatch)  # loss, backward
            grad_norm = prepared.descend(learner, gradient, logged.numbers)  # clip, Adam
            means.add(logged, weight=active, grad_norm=grad_norm)
        approx_kl = logged["approx_kl"]  # of the epoch's last minibatch, before its update
        is_first_update = epoch == 0 and len(sizes) == 1  # its KL compares the policy with itself: 0 up to rounding
        if args.lr_schedule == "kl" and not is_first_update:
            # A policy that is sure of itself hardly changes, whatever the rate; its memory would break at a large one.
            adapt_(learner, approx_kl, args.desired_kl, high=2 * args.learning_rate)  # nothing unless learner.active
        if args.target_kl is not None:
            learner.active.logical_and_(approx_kl <= args.target_kl)
            # To look at `active` the host would have to wait for a GPU: there the other updates run, without effect.
            # (Without --target-kl they do so everywhere, after a number that was not finite.)
            if not learner.active.is_cuda and not learner.active:
                break
    return means.mean()


def learn(
    args: Args,
    agent: Agent,
    learner: Learner,
    rollout: Rollout,
    after: Carry,
    episodes: Episodes,
    generator: torch.Generator,
    prepared: Executables,
) -> tuple[Batch, Metrics]:
    """Advantages, epochs, and what is logged of the iteration; moves learner, normalisers and `episodes` on."""
    batch = advantages(args, agent, learner, rollout, after, prepared)
    losses = epochs(args, learner, batch, generator, prepared)
    losses["explained_variance"] = ppo.explained_variance(batch.value, batch.returns, batch.valid)
    if agent.normalize_obs is not None:
        # After the updates, so that the policy which was updated is the one that acted: its first ratio is 1.
        agent.normalize_obs.update_(agent.inputs(rollout.obs), rollout.valid, learner.sound, prepared.reduce)

    done = rollout.terminated | rollout.truncated
    ended = episode_stats(rollout.reward, done, rollout.valid, *episodes)
    episodes.returns.copy_(ended.carry_return)
    episodes.lengths.copy_(ended.carry_length)
    means = {f"losses/{name}": x for name, x in losses.items()}
    means["charts/learning_rate"] = learner.learning_rate  # with "kl" the adapted one
    # The session knows these five. A further number to log of an iteration belongs into `means`, as a tensor ().
    sums = {
        "returns": ended.return_sum,  # of the episodes that ended
        "lengths": ended.length_sum,
        "episodes": ended.count,
        "steps": torch.ones_like(done).sum() if rollout.valid is None else rollout.valid.sum(),
        "broken": ~learner.sound,
    }
    return batch, Metrics(means, sums)


def make_iteration(
    args: Args, envs: environments.Environments, agent: Agent, learner: Learner, engine: Engine
) -> Iteration:
    """One iteration in two halves, iteration.collect() and iteration.learn(), as the engine runs them."""
    generator = engine.generator(args.seed)  # of actions and minibatches
    obs = envs.reset(seed=args.seed)[0].clone()
    carry = Carry(envs.state, obs, *agent.initial_memory(args.num_envs))
    episodes = Episodes(
        returns=torch.zeros(args.num_envs, dtype=torch.float64, device=engine.device),
        lengths=torch.zeros(args.num_envs, dtype=torch.int64, device=engine.device),
    )

    # Here functions are handed to the engine: collect, a few steps at a time, or where environments run on the host
    # Agent.act alone, which collect then calls; Agent.value; shuffled; loss with its backward pass; descend.
    # First, --compile says how each of them runs:
    #   off    "eager", as written
    #   on     "compiled": torch.compile makes kernels of its operations
    #   auto   compiled, where a run is so long that it pays; else on a CPU "recorded", its operations written down once
    #          and replayed without Python; eager on a GPU, and in a run of a few iterations
    # What each gives differs by rounding alone, from which long runs may part. In every mode the threads of a CPU share
    # the rows of those that have rows.
    # Second, on a GPU and unless --compile is off (in auto's "eager", too), the whole of learn_half is captured once,
    # as a CUDA graph, and replayed, and so is collect_half unless environments run on the host. Then the Python in them
    # runs during the capture only, and may not depend on a value. On a CPU all the rest is ordinary Python.
    # A function that is handed over may write only into tensors among its arguments, those in `learner` included. It
    # may read tensors of the agent, which others change in place; Python values, as in args, are those of its first
    # call.
    rollouts = engine.rollouts(collect, agent, envs, carry, args.num_steps)
    prepared = Executables(
        value=engine.in_parts(Agent.value, agent),
        shuffled=engine.function(shuffled, args, engine.reduce),
        gradient=engine.gradient(loss, agent, args, learner.theta),
        descend=engine.function(descend, args),
        reduce=engine.reduce,
    )

    def collect_half() -> None:
        action_noise = agent.head.draw_noise((args.num_steps, args.num_envs), generator)
        # Calls `collect`, moves `carry` on in place and leaves what it gave as rollouts.rollout.
        rollouts.collect(Noise(action_noise, envs.draw_noise(args.num_steps)))

    def learn_half() -> Metrics:
        rollout = rollouts.rollout
        batch, metrics = learn(args, agent, learner, rollout, carry, episodes, generator, prepared)
        # What --verify compares, and a crash file holds, beside the rollout.
        engine.show(advantage=in_rollout(batch.advantage, args.num_envs))
        return metrics

    def restart(seed: int | None) -> None:
        obs.copy_(envs.restart() if seed is None else envs.reset(seed=seed)[0])
        carry.hidden.zero_()
        carry.cell.zero_()

    state = train_state(agent, learner, carry, carry_return=episodes.returns, carry_length=episodes.lengths)
    generators = [generator] if envs.generator is None else [generator, envs.generator]
    # After --resume or a rollback, tensor environments (envs.pure) go on from their state, which is part of `carry`;
    # those on the host begin new episodes.
    return engine.iteration(
        collect_half, learn_half, state, generators, restart=None if envs.pure else restart, seed=args.seed
    )


def setup(args: Args, device: torch.device) -> tuple[environments.Environments, Agent, Learner]:
    """Environments, agent and learner, by the flags alone. The learner's theta is a flat vector of the agent's
    parameters, which are views of it from now on: what moves the one moves the other."""
    envs = environments.make(args.env_id, args.num_envs, device, args.backend, **args.env_options)
    environments.refuse_images(envs, args.env_id)  # the networks here are for vectors
    agent = Agent(envs, args, torch.Generator().manual_seed(args.seed)).to(device)
    return envs, agent, new_learner(flatten_parameters(agent), args.learning_rate)


def scheduled_rate(args: Args, iteration: int) -> float:
    """The learning rate of an iteration, counted from 0: constant, or falling linearly, to 0 after the last one."""
    if args.lr_schedule == "linear" and args.anneal_lr:
        return args.learning_rate * (1.0 - iteration / args.num_iterations)
    return args.learning_rate


@guest
def train(
    args: Args,
    watch: Stopwatch | None = None,
    on_iteration: OnIteration | None = None,
    **handed: Unpack[environments.Own],
) -> dict[str, Any]:
    """Train, evaluate, leave a run folder; returns what result.json holds. A flag that can't work is a ValueError.

    `on_iteration` is called after every iteration: see ppo_fast/run/callback.py. `envs` and `wrappers` are environments
    of the caller's own, not registered: see ppo_fast/envs/handed.py.
    """
    args, beginning = settle(args, handed)  # --resume, preset or recipe applied; and where the run begins
    args.check()
    device = process.prepare(args)
    if args.verify:
        return compare_paths(args, setup, make_iteration, device)
    with ranks.init(device) as group, Session(args, group, beginning, watch, on_iteration) as run:
        own = run.share(args)  # num_envs divided by the number of processes, a seed of its own, all else as in args
        envs, agent, learner = setup(own, group.device)
        group.broadcast_(learner.theta)  # all start from the first process's parameters
        plan = run.start(envs, agent)  # opens the run folder, and decides by the flags how functions are to run
        engine = Engine(own, group, plan.mode)  # "eager", "recorded" or "compiled"
        iteration = make_iteration(own, envs, agent, learner, engine)
        for i in run.iterations(iteration):
            # With "kl" `epochs` adapts the rate, and a rollback (--on-nan) has halved the checkpoint's. Otherwise it
            # has halved rate_factor, which is 1 at the start.
            if args.lr_schedule != "kl":
                learner.learning_rate.fill_(scheduled_rate(args, i) * run.rate_factor)
            with run.environment_faults(iteration):  # one that dies is started again, or the run is saved and stops
                iteration.collect()
                metrics = iteration.learn()
                run.record(iteration, metrics)
        return run.finish(envs, agent, iteration)


if __name__ == "__main__":
    cli.run(train, Args, __doc__, Stopwatch.since_process_start())
