"""Play what a run has learned: figures over whole episodes, a video, a window.

    python -m ppo_fast.evaluate                                    the newest run below runs/
    python -m ppo_fast.evaluate runs/<run> --episodes 200
    python -m ppo_fast.evaluate runs/<run>/checkpoints/best.pt --policy greedy
    python -m ppo_fast.evaluate runs/<run> --video
    python -m ppo_fast.evaluate runs/<run> --render human

The episodes are played on Gymnasium's own environment, also where training used the tensor one. With the backend, the
seed and the number of episodes of the training run, the figures are those of its result.json, exactly.

A policy file names the program that trained it, whose Args and Agent are used; only programs of ppo_fast are imported,
and the module of the environment, where its id names one.
"""

import dataclasses
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro

from ppo_fast import envs as environments
from ppo_fast.algorithm import networks
from ppo_fast.engine import capture
from ppo_fast.run import checkpoint, cli, play
from ppo_fast.run.cli import Range

POLICY, CHECKPOINTS = "policy.safetensors", "checkpoints/checkpoint-*.pt"
PROGRAM = re.compile(r"ppo_fast\.train(_\w+)?")
RESAMPLES = 2000
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
    backend: str | None = None
    """tensor, entry_point, sync or async; unless given, sync: Gymnasium's own environment, where there is one"""
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


class Policy(NamedTuple):
    """Weights and where they come from."""

    folder: Path  # of the run, or the one that the file lies in
    path: Path
    weights: dict[str, torch.Tensor]  # of a state_dict; from a checkpoint "theta" and "agent.<buffer>"
    facts: dict[str, Any]  # the flags of the run, and its "program"


def load(args: Args) -> Policy:
    """Read what `args.run` names: of a run folder its policy file, or its newest checkpoint if that is newer.

    Raises:
        ValueError: "run: ..." in one line when there is nothing usable.
    """
    path = newest(Path(args.run_root)) if args.run == "latest" else Path(args.run)
    try:
        if path.is_file() and path.suffix == ".safetensors":
            return Policy(path.parent, path, *checkpoint.load_policy(path))
        if (path / POLICY).is_file() and age(path / POLICY) >= max(map(age, path.glob(CHECKPOINTS)), default=0):
            return Policy(path, path / POLICY, *checkpoint.load_policy(path))
        if not path.exists():
            raise ValueError(f"run: {path} is neither a run folder, a checkpoint, a policy file nor 'latest'")
        found = checkpoint.resolve(str(path), Path(args.run_root))
        payload = found.payload
        facts = {**payload["flags"], "program": payload["program"]}
        return Policy(found.run, found.path, payload["ranks"][0]["tensors"], facts)
    except KeyError as problem:
        raise ValueError(f"run: {path} holds no {problem}: no checkpoint of a training program") from problem
    except OSError as problem:
        raise ValueError(f"run: {path}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise ValueError(f"run: {str(problem).removeprefix('--resume: ').removeprefix('run: ')}") from problem


def age(path: Path) -> int:
    """When a file was written, in nanoseconds."""
    return path.stat().st_mtime_ns


def newest(root: Path) -> Path:
    """The run folder below `root` that wrote a policy or a checkpoint last."""
    files = [*root.glob(f"*/{POLICY}"), *root.glob(f"*/{CHECKPOINTS}")]
    if not files:
        raise ValueError(f"run: no run with a policy or a checkpoint below {root}; name one, or set --run-root")
    last = max(files, key=lambda path: (age(path), str(path)))
    return last.parent.parent if last.suffix == ".pt" else last.parent


def rebuild_flags(policy: Policy) -> tuple[Any, Any]:
    """The program that trained the policy and its Args, as they were. ValueError("run: ...") if that can't be."""
    name = policy.facts.get("program", "ppo_fast.train")
    if not isinstance(name, str) or not PROGRAM.fullmatch(name):
        raise ValueError(f"run: {policy.path} was trained by {name!r}, which is no program of ppo_fast")
    try:
        program = importlib.import_module(name)
    except ModuleNotFoundError as problem:
        raise ValueError(f"run: {policy.path} was trained by {name}, which is not here") from problem
    fields = {field.name for field in dataclasses.fields(program.Args)}
    known = {key: value for key, value in policy.facts.items() if key in fields}
    # JSON has lists only.
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    if "env_id" not in known:
        raise ValueError(f"run: {policy.path} does not say which environment it is for")
    try:
        flags = program.Args(**known)
        flags.check()
    except (ValueError, TypeError) as problem:
        raise ValueError(f"run: {policy.path} holds flags that can't be used: {problem}") from problem
    return program, flags


def rebuild_agent(program: Any, flags: Any, policy: Policy, envs: Any) -> Any:
    """The agent with its weights and statistics, laid out in memory as in training, so that it computes the same."""
    agent = program.Agent(envs, flags).to(envs.device)
    theta, weights = networks.flatten_parameters(agent), policy.weights
    try:
        if "theta" in weights:
            theta.copy_(weights["theta"])
            weights = {**agent.state_dict(), **{name: weights[f"agent.{name}"] for name in buffers_of(agent)}}
        agent.load_state_dict(weights)
    except (RuntimeError, KeyError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise ValueError(f"run: {policy.path} does not fit {flags.env_id}: {reason}") from problem
    return agent.eval()


def buffers_of(agent: torch.nn.Module) -> list[str]:
    """The names of the statistics that belong to an agent's state."""
    return [name for name, _ in agent.named_buffers() if name in agent.state_dict()]


def make_envs(args: Args, flags: Any, device: torch.device, number: int, **options: Any) -> Any:
    """Fresh environments of the run: Gymnasium's own unless another backend is asked for or it has none.

    Only Gymnasium's own can draw, so `options` ask for it.
    """
    own = "sync" in environments.available_backends(flags.env_id)
    if options and not own:
        raise ValueError(f"--env-id: {flags.env_id} has no single environment that could draw itself")
    backend = args.backend if args.backend and not options else "sync" if own else "auto"
    return environments.make(flags.env_id, number, device, backend, **options)


def figures_of(episodes: play.Episodes, seed: int) -> dict[str, float | int]:
    """Mean, standard deviation, minimum, maximum, length, count, and a 95 % interval of the mean by bootstrap."""
    values = episodes.returns.cpu().numpy()
    draws = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975)) if len(values) > 1 else (float("nan"), float("nan"))
    return episodes.figures("") | {"mean_return_low": float(low), "mean_return_high": float(high)}


def play_with(agent: Any, policy: str, envs: Any, seed: int) -> dict[str, dict[str, float | int]]:
    """Figures of the greedy or the sampled policy or "both", played as a training program's last evaluation does."""
    draw = torch.Generator(envs.device).manual_seed(seed)

    def greedy(obs: torch.Tensor) -> torch.Tensor:
        return agent.act(obs, None)[0]

    def sampled(obs: torch.Tensor) -> torch.Tensor:
        return agent.act(obs, agent.head.draw_noise(obs.shape[:1], draw))[0]

    ways = {"greedy": greedy, "sampled": sampled}
    run = capture.eager(play.play, one_thread=True)
    return {
        name: figures_of(run(envs, act, seed + play.EVAL_SEED), seed)
        for name, act in ways.items()
        if policy in (name, "both")
    }


def film(args: Args, flags: Any, agent: Any, device: torch.device, seed: int, folder: Path) -> Path:
    """Write a greedy episode to folder/videos/ and return its path. ValueError("--video: ...") if it can't be."""
    try:
        envs = make_envs(args, flags, device, 1, render_mode="rgb_array")
        folder = folder / "videos"
        folder.mkdir(exist_ok=True)
        return play.record(envs, agent, seed, folder / f"evaluate-seed{seed}.mp4")
    except OSError as problem:
        raise ValueError(f"--video: can't write to {folder}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise ValueError(f"--video: {re.sub('^--[a-z-]+: ', '', str(problem))}") from problem


def watch(args: Args, flags: Any, agent: Any, seed: int) -> None:
    """Play episodes in a window at their own speed, a line each; Ctrl-C ends it."""
    if sys.platform == "linux" and not any(name in os.environ for name in SCREENS):
        raise ValueError("--render: there is no screen here; --video writes an mp4 instead")
    policy = "sampled" if args.policy == "sampled" else "greedy"
    try:
        envs = make_envs(args, flags, torch.device("cpu"), 1, render_mode="human")
        for i in range(args.episodes or 3):
            figures = play_with(agent, policy, envs, seed + i)[policy]
            print(
                f"episode {i + 1}  return {figures['mean_return']:.2f}  length {figures['mean_length']:.0f}", flush=True
            )
        envs.close()
    except Exception as problem:  # pygame, GLFW and MuJoCo each have their own
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise ValueError(f"--render: no window: {re.sub('^--[a-z-]+: ', '', reason)}") from problem


def lines(result: dict[str, Any]) -> list[str]:
    """The result as it is printed."""
    said = [
        f"policy       {result['policy']}",
        f"environment  {result['env_id']}, backend {result['backend']}, seed {result['seed']}",
    ]
    for name in ("greedy", "sampled"):
        x = result.get(name)
        if x is None:
            continue
        interval = f"[{x['mean_return_low']:.2f}, {x['mean_return_high']:.2f}]" if x["episodes"] > 1 else "none"
        said.append(
            f"{name:<11}  {x['mean_return']:.2f} +- {x['std_return']:.2f} over {x['episodes']} episodes   "
            f"95 % interval of the mean {interval}   min {x['min_return']:.2f}   max {x['max_return']:.2f}   "
            f"length {x['mean_length']:.1f}"
        )
    return said + ([f"video        {result['video']}"] if "video" in result else [])


def evaluate(args: Args) -> dict[str, Any]:
    """Play the policy; returns what `--json` prints. A flag or a file that can't be used is a ValueError."""
    args.check()
    policy = load(args)
    program, flags = rebuild_flags(policy)
    if args.video:
        play.render_without_a_display()
    window = args.render == "human"
    on_gpu = args.cuda and not window and torch.cuda.is_available()
    precision = "fp32" if flags.precision == "tf32" and not on_gpu else flags.precision  # how it was trained, not what
    device = capture.prepare(dataclasses.replace(flags, cuda=on_gpu, precision=precision))
    seed = flags.seed if args.seed is None else args.seed
    envs = make_envs(args, flags, device, 1 if window else args.episodes or 100)
    agent = rebuild_agent(program, flags, policy, envs)
    if window:
        watch(args, flags, agent, seed)
        return {}
    result: dict[str, Any] = {"policy": str(policy.path), "env_id": flags.env_id, "backend": envs.backend, "seed": seed}
    if args.video:  # first: what can't be filmed is told before many episodes are played
        result["video"] = str(film(args, flags, agent, device, seed, policy.folder))
    result |= play_with(agent, args.policy, envs, seed)
    envs.close()
    strict = {key: without_nan(value) for key, value in result.items()}
    print(json.dumps(strict, indent=2) if args.json else "\n".join(lines(result)))
    return result


def without_nan(value: Any) -> Any:
    """None for the bounds of an interval that is none: strict JSON has no NaN."""
    return {key: None if x != x else x for key, x in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    cli.run(evaluate, Args, __doc__)
