"""Play what a run has learned: figures over whole episodes, a video, a window.

    python -m ppo_fast.evaluate                                    the newest run below runs/
    python -m ppo_fast.evaluate runs/<run> --episodes 200
    python -m ppo_fast.evaluate runs/<run>/checkpoints/best.pt --policy greedy
    python -m ppo_fast.evaluate runs/<run> --video
    python -m ppo_fast.evaluate runs/<run> --render human

The episodes are played on Gymnasium's own environment, also where training used the tensor one. With the backend, the
seed and the number of episodes of the training run, the figures are those of its result.json, exactly.

A policy file names the program that trained it, whose Args and Agent are used: it is imported, and so is the module of
the environment, where its id names one, but neither from inside a run folder, unless with --trust.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
import tyro

from ppo_fast import envs as environments, names
from ppo_fast.engine import process
from ppo_fast.envs import Environments, handed, spaces_json
from ppo_fast.run import cli, film as films, modules, play, randomness, saved_policy
from ppo_fast.run.cli import Range
from ppo_fast.run.flags import plain_args
from ppo_fast.run.guest import guest
from ppo_fast.run.run_flags import env_view
from ppo_fast.run.saved_policy import Policy, rebuild_agent, rebuild_flags
from ppo_fast.run.streams import OutputLost, say, show

RESAMPLES = 2000  # of the bootstrap
WINDOW_EPISODES = 3  # that are shown in a window, unless --episodes says another number
EPISODES = 100  # that are played otherwise
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")  # any of them says that a window has somewhere to go


@dataclasses.dataclass
class Args:
    """What to play, and how."""

    run: Annotated[str, tyro.conf.Positional] = "latest"
    """run folder, checkpoint or policy file, or `latest`"""
    run_root: str = "runs"
    """folder that `latest` looks in"""
    episodes: Annotated[int | None, Range(1)] = None
    """number of episodes, one an environment; 100, and 3 in a window, unless given"""
    policy: Literal["both", "greedy", "sampled"] = "both"
    """the most likely actions, actions drawn from the policy, or both one after the other"""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """keywords for the environment beside those of the run, which they change: --env-kwargs max_episode_steps=1000"""
    max_steps: Annotated[int | None, Range(1)] = None
    """steps of an episode, at most; the run's --eval-max-steps unless given"""
    seconds: Annotated[float | None, Range(0, above=True)] = None
    """seconds of playing, at most; the run's --eval-seconds unless given"""
    backend: str | None = None
    """tensor, entry_point, sync or async; unless given, sync: Gymnasium's own environment, where there is one"""
    trust: bool = False
    """import the environment's module wherever it lies, even in a run folder"""
    seed: Annotated[int | None, Range(0, 2**31)] = None
    """of the episodes and the sampling, kept apart from the training's; the run's own unless given"""
    cuda: bool = True
    """use a CUDA device where there is one"""
    video: bool = False
    """write a greedy episode into the run folder's videos/ (extra `video`)"""
    render: Literal["off", "human"] = "off"
    """human: watch episodes in a window instead"""
    json: bool = False
    """print one JSON object and nothing else"""

    def check(self) -> None:
        """Raise ValueError naming the first flag whose value cannot work."""
        cli.check_ranges(self)
        if self.backend is not None and self.backend not in environments.BACKENDS:
            raise ValueError(f"--backend: must be {cli.one_of(environments.BACKENDS)}, got {self.backend!r}")
        if self.render == "human" and (self.video or self.json):
            raise ValueError(f"--render: a window comes without --{'video' if self.video else 'json'}; run it twice")


def load(args: Args) -> Policy:
    """Read what `args.run` names, as `saved_policy.load` does."""
    return saved_policy.load(args.run, Path(args.run_root))


def make_envs(
    args: Args, flags: Any, device: torch.device, number: int, render_mode: str | None = None
) -> Environments:
    """Fresh environments of the run: Gymnasium's own unless another backend is asked for or it has none.

    Only Gymnasium's own can draw, so `render_mode` asks for it.
    """
    view = env_view(vars(flags))
    has_own = "sync" in environments.available_backends(flags.env_id)
    if render_mode is not None:
        if not has_own:
            raise ValueError(f"--env-id: {flags.env_id} has no single environment that could draw itself")
        return environments.make(flags.env_id, number, device, "sync", render_mode=render_mode, **view)
    backend = args.backend or ("sync" if has_own else "auto")
    return environments.make(flags.env_id, number, device, backend, **view)


def figures_of(episodes: play.Episodes, seed: int) -> dict[str, float | int]:
    """Mean, standard deviation, minimum, maximum, length, count, and a 95 % interval of the mean by bootstrap."""
    returns = episodes.returns.cpu().numpy()
    count = len(returns)
    low = high = math.nan
    if count > 1:
        means = np.random.default_rng(seed).choice(returns, (RESAMPLES, count)).mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
    return {**episodes.figures(""), "mean_return_low": float(low), "mean_return_high": float(high)}


def as_many_as_may_be(args: Args, flags: Any, device: torch.device, number: int) -> Environments:
    """So many environments or, where there may not be as many at a time, as the training had."""
    try:
        return make_envs(args, flags, device, number)
    except environments.EnvironmentFault:
        if number <= flags.num_envs:
            raise
    return make_envs(args, flags, device, flags.num_envs)


def play_with(
    agent: Any, policy: str, envs: Environments, seed: int, episodes: int, limits: play.Limits
) -> dict[str, dict[str, float | int]]:
    """Figures of the greedy or the sampled policy or "both", played as a training program's last evaluation does.

    Long playing says on stderr how far it is, every few seconds.
    """
    generator = torch.Generator(envs.device).manual_seed(seed)
    ways = {"greedy": partial(play.greedy, agent), "sampled": partial(play.sampled, agent, generator)}
    play_on_one_thread = process.with_threads(play.play_in_rounds, 1)
    figures = {}
    for name, begin in ways.items():
        if policy in (name, "both"):
            own_limits = limits.half() if policy == "both" and name == "greedy" else limits
            own_limits = dataclasses.replace(own_limits, tell=partial(_tell, name, episodes))
            played = play_on_one_thread(envs, begin, seed + play.EVAL_SEED, episodes, own_limits)
            figures[name] = figures_of(played, seed)
    return figures


def limits_of(args: Args, flags: Any) -> play.Limits:
    """What bounds the playing: flags of this program, else the run's."""
    steps = args.max_steps or flags.eval_max_steps
    seconds = args.seconds or flags.eval_seconds
    return play.Limits(steps, time.monotonic() + seconds)


def _tell(policy: str, episodes: int, over: int, step: int) -> None:
    text = f"{policy}: {min(over, episodes)} of {episodes} episodes are over, the others at step {step:,}"
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def film(args: Args, flags: Any, agent: Any, device: torch.device, seed: int, folder: Path) -> Path:
    """Write a greedy episode to folder/videos/ and return its path. ValueError("--video: ...") if it can't be."""
    try:
        envs = make_envs(args, flags, device, 1, render_mode="rgb_array")
        folder = folder / "videos"
        folder.mkdir(exist_ok=True)
        changed = "".join(f"-{name}={value}" for name, value in args.env_kwargs.items())  # another task, another film
        name = re.sub(r"[^\w.=-]", "_", f"evaluate-seed{seed}{changed}")[:100]
        return films.record(envs, agent, seed, folder / f"{name}.mp4")
    except OSError as problem:
        raise ValueError(f"--video: can't write to {folder}: {problem.strerror or problem}") from problem
    except (ValueError, environments.EnvironmentFault) as problem:
        raise ValueError(f"--video: {_without_flag(str(problem))}") from problem


def watch(args: Args, flags: Any, agent: Any, seed: int) -> None:
    """Play episodes in a window at their own speed, a line each; Ctrl-C ends it."""
    if sys.platform == "linux" and not any(name in os.environ for name in SCREENS):
        raise ValueError("--render: there is no screen here; --video writes an mp4 instead")
    policy = "sampled" if args.policy == "sampled" else "greedy"
    try:
        envs = make_envs(args, flags, torch.device("cpu"), 1, render_mode="human")
        for i in range(args.episodes or WINDOW_EPISODES):
            figures = play_with(agent, policy, envs, seed + i, 1, play.Limits())[policy]
            said = f"return {figures['mean_return']:.2f}  length {figures['mean_length']:.0f}"
            say(f"episode {i + 1}  {said}")
        envs.close()
    except OutputLost:
        raise
    except Exception as problem:  # pygame, GLFW and MuJoCo each have their own
        raise ValueError(f"--render: no window: {_without_flag(names.first_line(problem))}") from problem


def _without_flag(text: str) -> str:
    """A message without the flag that it begins with, which is one of another program."""
    return re.sub(r"^--[a-z-]+: ", "", text)


def lines(result: dict[str, Any]) -> list[str]:
    """The result as it is printed."""
    given = "".join(f" {name}={value}" for name, value in result.get("env_kwargs", {}).items())
    said = [
        f"policy       {result['policy']}",
        f"environment  {result['env_id']}{given}, backend {result['backend']}, seed {result['seed']}",
    ]
    for name in ("greedy", "sampled"):
        if name in result:
            said.append(f"{name:<11}  {_in_words(result[name])}")
    if "video" in result:
        said.append(f"video        {result['video']}")
    return said


def _in_words(figures: dict[str, float | int]) -> str:
    """The figures of one way to act, in a line."""
    x = figures
    unfinished = x.get("unfinished")  # by --max-steps or --seconds
    interval = f"[{x['mean_return_low']:.2f}, {x['mean_return_high']:.2f}]" if x["episodes"] > 1 else "none"
    return (
        f"{x['mean_return']:.2f} +- {x['std_return']:.2f} over {x['episodes']} episodes   "
        f"95 % interval of the mean {interval}   min {x['min_return']:.2f}   max {x['max_return']:.2f}   "
        f"length {x['mean_length']:.1f}{f'   unfinished {unfinished}' if unfinished else ''}"
    )


@guest
def evaluate(args: Args, **own: Unpack[environments.Own]) -> dict[str, Any]:
    """Play the policy; returns what `--json` prints. A flag or a file that can't be used is a ValueError.

    `envs` and `wrappers` are environments of the caller's own, as train() takes them.
    """
    args = plain_args(args)
    args.check()
    policy = load(args)
    for note in policy.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    program, flags, imports = rebuild_flags(policy, args.trust)
    flags = dataclasses.replace(flags, env_kwargs={**flags.env_kwargs, **args.env_kwargs})
    found = handed.take(own, flags.env_id.removeprefix(handed.PREFIX), flags.env_kwargs)
    if found is not None:
        flags = dataclasses.replace(flags, env_id=found.env_id, num_envs=found.num_envs or flags.num_envs)
    try:
        imports += modules.check(flags.env_id, policy.folder, args.trust)
    except ValueError as problem:
        raise ValueError(f"run: {policy.path}: {problem}") from problem
    for note in imports:
        print(note, file=sys.stderr, flush=True)
    if args.video:
        films.render_without_a_display()
    window = args.render == "human"
    on_gpu = args.cuda and not window and torch.cuda.is_available()
    # tf32 is how the policy was trained, not what it is: a CPU plays it too.
    precision = "fp32" if flags.precision == "tf32" and not on_gpu else flags.precision
    device = process.prepare(dataclasses.replace(flags, cuda=on_gpu, precision=precision))
    seed = flags.seed if args.seed is None else args.seed
    with randomness.seeded(seed + play.EVAL_SEED):  # as a training program's last evaluation begins
        envs = as_many_as_may_be(args, flags, device, 1 if window else args.episodes or EPISODES)
        try:
            agent = rebuild_agent(program, flags, policy, envs)
        except ValueError as problem:
            if not args.env_kwargs:
                raise
            raise ValueError(f"--env-kwargs: {problem}") from problem
        if args.env_kwargs and not _is_for(policy, envs):
            print("note: these keywords make other spaces than the policy was trained on", file=sys.stderr, flush=True)
        if window:
            watch(args, flags, agent, seed)
            return {}
        result = results(args, policy, flags, agent, envs, seed)
    if args.json:
        show(json.dumps(names.jsonable(result), indent=2))
    else:
        say(*lines(result))
    return result


def _is_for(policy: Policy, envs: Environments) -> bool:
    """Whether environments have the spaces of a policy, or nobody knows them."""
    saved = policy.facts.get("spaces")
    if saved is None:
        return True
    own = spaces_json.from_json(saved)
    return (own.observation, own.action) == (envs.own_spaces.observation, envs.own_spaces.action)


def results(args: Args, policy: Policy, flags: Any, agent: Any, envs: Environments, seed: int) -> dict[str, Any]:
    """What `--json` prints of an agent that plays in these environments, which are closed here; films it, too."""
    found: dict[str, Any] = {"policy": str(policy.path), "env_id": flags.env_id, "backend": envs.backend, "seed": seed}
    if flags.env_kwargs:
        found["env_kwargs"] = dict(flags.env_kwargs)
    if args.video:  # first: what can't be filmed is told before many episodes are played
        found["video"] = str(film(args, flags, agent, envs.device, seed, policy.folder))
    found |= play_with(agent, args.policy, envs, seed, args.episodes or EPISODES, limits_of(args, flags))
    envs.close()
    return found


if __name__ == "__main__":
    cli.run(evaluate, Args, __doc__)
