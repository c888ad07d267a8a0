"""Programs called from Python, in a process that goes on: what they take, and what they leave of it."""

import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_fast import evaluate, replay
from ppo_fast.envs.seeds import seed_process
from ppo_fast.run import checkpoint
from ppo_fast.train import Args, train

ITERATION = 32  # steps
RECORDED = 25 * ITERATION  # enough for a run whose functions are replayed


def small(root: Path, **flags: Any) -> Args:
    values: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "num_minibatches": 2}
    values |= {"update_epochs": 1, "hidden_sizes": (8,), "eval_episodes": 2, "quiet": True, "compile": "off"}
    return Args(**{**values, "run_root": str(root), **flags})


def weights(root: Path, **flags: Any) -> torch.Tensor:
    """What a run has learned."""
    train(small(root, **flags))
    [path] = root.glob("*/checkpoints/best.pt") or root.glob("*/checkpoints/*.pt")
    return checkpoint.load(path)["ranks"][0]["tensors"]["theta"]


@pytest.fixture
def registered() -> Iterator[Callable[[type], str]]:
    """Registers an environment, until the test is over."""
    before = set(gymnasium.registry)

    def register(kind: type) -> str:
        gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, disable_env_checker=True)
        return f"{kind.__name__}-v0"

    yield register
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


class Steady(gymnasium.Env):
    """Episodes of five steps."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.obs(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self.obs(), float(action), self.steps == 5, False, {}

    def obs(self) -> np.ndarray:
        return self.np_random.random(2, np.float32)


# ---------------------------------------------------------------- what they take


def test_numbers_of_numpy_and_torch_paths_and_lists_are_taken_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"num_envs": np.int64(4), "gamma": np.float32(0.5), "learning_rate": torch.tensor(1e-3)}
    given |= {"hidden_sizes": [np.int64(8), 8], "norm_obs": np.bool_(True), "total_timesteps": 64.0}
    given |= {"exp_name": np.str_("x"), "save_interval": np.uint8(1), "seed": np.array(3)}
    train(small(tmp_path, run_root=tmp_path, **given))
    [run] = tmp_path.iterdir()
    assert train(Args(resume=run, total_timesteps=np.int64(96), quiet=True))["global_step"] == 96  # type: ignore[arg-type]
    args: Any = {"run": run, "episodes": np.int64(2), "json": np.bool_(True)}
    assert evaluate.evaluate(evaluate.Args(**args))["greedy"]["episodes"] == 2
    capsys.readouterr()


# ---------------------------------------------------------------- what does not change their numbers


@contextmanager
def set_to(value: Any, get: Callable[[], Any], put: Callable[[Any], object]) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def product_precision(value: str) -> AbstractContextManager:
    """By torch's newer name for it, beside which the older one can't be read."""
    onednn: Any = torch.backends.mkldnn
    return set_to(value, lambda: onednn.matmul.fp32_precision, lambda x: setattr(onednn.matmul, "fp32_precision", x))


CALLERS: dict[str, Callable[[], AbstractContextManager]] = {
    "float64": lambda: set_to(torch.float64, torch.get_default_dtype, torch.set_default_dtype),
    "bfloat16": lambda: set_to(torch.bfloat16, torch.get_default_dtype, torch.set_default_dtype),
    "a default device": lambda: set_to("meta", lambda: None, torch.set_default_device),
    "within a device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "fast products": lambda: set_to("medium", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "fast products by another name": lambda: product_precision("bf16"),
    "strict NumPy": lambda: np.errstate(all="raise"),
    "used generators": lambda: set_to(9, lambda: 8, seed_process),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return weights(tmp_path_factory.mktemp("expected"), compile="auto", total_timesteps=RECORDED, norm_obs=True)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_run_has_the_same_numbers_whatever_its_caller_has_set(
    caller: str, expected: torch.Tensor, tmp_path: Path
) -> None:
    with CALLERS[caller]():
        standing = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), np.geterr()
        found = weights(tmp_path, compile="auto", total_timesteps=RECORDED, norm_obs=True)
        assert standing == (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), np.geterr())
    assert torch.equal(found, expected)


# ---------------------------------------------------------------- what they leave


class Meddler(Steady):
    """Changes of its process what libraries change, and more."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        os.environ["A_VARIABLE_OF_THE_ENVIRONMENT"] = "1"
        os.environ.pop("KEPT", None)
        os.environ["CHANGED"] = "after"
        warnings.simplefilter("ignore")
        logging.root.addHandler(logging.NullHandler())
        logging.root.setLevel(logging.ERROR)
        logging.disable(logging.INFO)
        sys.excepthook = threading.excepthook = sys.unraisablehook = sys.exit = print  # type: ignore[assignment]
        sys.setrecursionlimit(4321)
        gc.set_threshold(123)
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        seed_process(7)
        return super().reset(seed=seed)


def process() -> dict[str, Any]:
    """What the process is like."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "loggers": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.exit),
        "signals": {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "limits": (sys.getrecursionlimit(), gc.get_threshold(), gc.isenabled()),
        "threads": torch.get_num_threads(),
        "products": (torch.get_float32_matmul_precision(), matmul.fp32_precision),
        "sums": matmul.allow_bf16_reduced_precision_reduction,
        "cudnn": (cudnn.deterministic, cudnn.benchmark),
        "types": (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "streams": (sys.stdin, sys.stdout, sys.stderr, os.getcwd()),
    }


def test_a_run_leaves_its_process_as_it_was(
    registered: Callable[[type], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    env_id = registered(Meddler)
    before = process()
    train(small(tmp_path / "meddler", env_id=env_id))
    assert process() == before
    train(small(tmp_path / "film", capture_video=True))
    assert process() == before
    with pytest.raises(ValueError, match=r"^--backend"):
        train(small(tmp_path, env_id=env_id, backend="tensor"))
    assert process() == before
    with pytest.raises(FloatingPointError):
        train(small(tmp_path / "broken", env_id=env_id, learning_rate=1e38, total_timesteps=320))
    assert process() == before
    [crash] = tmp_path.glob("broken/*/crash-*.pt")
    replay.replay(checkpoint.load(crash))
    assert process() == before
    evaluate.evaluate(evaluate.Args(run_root=str(tmp_path / "meddler"), episodes=2))
    assert process() == before
    capsys.readouterr()


class Waiting(Steady):
    """Stops the training at its first reset until it is told to go on."""

    begun = threading.Event()
    may_go_on = threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.begun.set()
        assert self.may_go_on.wait(60)
        return super().reset(seed=seed)


def test_a_second_one_beside_it_is_refused_and_changes_nothing(
    registered: Callable[[type], str], tmp_path: Path
) -> None:
    env_id = registered(Waiting)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(small(tmp_path / "first", env_id=env_id))))
    thread.start()
    try:
        assert Waiting.begun.wait(60)
        for program in (lambda: train(small(tmp_path / "second")), lambda: evaluate.evaluate(evaluate.Args())):
            with pytest.raises(RuntimeError, match=r"^\w+: ppo_fast is at work in this process already; wait, .*$"):
                program()
    finally:
        Waiting.may_go_on.set()
        thread.join()
    assert results[0]["global_step"] == 64 and not (tmp_path / "second").exists()
    Waiting.may_go_on.set()
    assert torch.equal(weights(tmp_path / "again", env_id=env_id), weights(tmp_path / "once more", env_id=env_id))


def test_a_forked_process_may_train_while_its_parent_does(registered: Callable[[type], str], tmp_path: Path) -> None:
    """A fork copies the lock as it is."""

    class Forking(Steady):
        status = -1

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
            if Forking.status < 0:
                Forking.status = in_a_fork(lambda: train(small(tmp_path / "child", num_envs=1, num_minibatches=1)))
            return super().reset(seed=seed)

    train(small(tmp_path / "parent", env_id=registered(Forking)))
    assert Forking.status == 0


def in_a_fork(function: Callable[[], object]) -> int:
    """The exit status of a forked process that calls the function: 0 where it returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which is used
        child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
