"""The one piece of work that every contender of `benchmarks.peers` does, and how a contender's process reports on it.

A contender is a module with `measure(work: Work) -> dict`. It runs in a process of its own, takes the work as JSON on
its command line and prints one JSON line, last on stdout: `{"sps", "seconds", "steps", "device", "versions"}`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata


@dataclass(frozen=True)
class Work:
    """PPO on CartPole-v1: the sizes and coefficients that all contenders are given."""

    num_envs: int
    num_steps: int
    iterations: int
    """iterations measured, after the first one, which compiles and warms up"""
    cuda: bool = False
    seed: int = 1
    num_minibatches: int = 4
    update_epochs: int = 4
    hidden: tuple[int, ...] = (64, 64)
    """tanh layers of the actor, and the same again of the critic; with `lstm` one layer of both"""
    lstm: int = 0
    """units of an LSTM that actor and critic share; 0 is none"""
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5

    @property
    def batch_size(self) -> int:
        """Samples of one iteration, B = T * N."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Samples of one update, M."""
        return self.batch_size // self.num_minibatches

    @property
    def measured_steps(self) -> int:
        """Environment steps in the measured part."""
        return self.batch_size * self.iterations

    def to_json(self) -> str:
        """One line, as a contender's process takes it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Work":
        """The inverse of `to_json`."""
        fields = json.loads(line)
        return cls(**{**fields, "hidden": tuple(fields["hidden"])})


def report(work: Work, sps: float, seconds: float, device: str, packages: tuple[str, ...]) -> dict:
    """What a contender's process prints: env steps per second of the measured part, its seconds, device, versions."""
    versions = {package: metadata.version(package) for package in packages}
    return {"sps": sps, "seconds": seconds, "steps": work.measured_steps, "device": device, "versions": versions}


def main(measure: Callable[[Work], dict]) -> None:
    """Body of a contender's `__main__`: read the work from the command line, measure, print the JSON line."""
    line = json.dumps(measure(Work.from_json(sys.argv[1])))
    # A line of its own, whatever was printed before it without a newline.
    print("\n" + line, flush=True)
