"""No run folder runs code of its own: where the module lies that a file's environment names."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_resume import tiny
from victims import REPOSITORY, only_run

import ppo_fast
from ppo_fast import evaluate
from ppo_fast.replay import replay
from ppo_fast.run import checkpoint, modules
from ppo_fast.run.policy import load_policy, save_policy
from ppo_fast.train import Args, train

EVIL = """
from pathlib import Path
import gymnasium
Path({mark!r}).touch()
gymnasium.registry.pop("Evil-v0", None)
gymnasium.register("Evil-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv", max_episode_steps=20)
"""
STEP = 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of CartPole, on the host as that of Evil-v0 will be."""
    root = tmp_path_factory.mktemp("whole")
    train(tiny(root, save_interval=1, backend="sync"))
    return only_run(root)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, which is on Python's path as for `python -m`; modules imported meanwhile are forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("runs", "evil", "mine", "shared", "package"):
            del sys.modules[name]


def share(whole: Path, run: Path, env_id: str) -> Path:
    """A copy of the run whose files name another environment."""
    shutil.copytree(whole, run)
    weights, facts = load_policy(run)
    save_policy(run, weights, {**facts, "env_id": env_id})
    (run / "config.json").write_text((run / "config.json").read_text().replace("CartPole-v1", env_id))
    for path in (run / "checkpoints").iterdir():
        payload = checkpoint.load(path)
        payload["flags"]["env_id"] = env_id
        checkpoint.write(path, payload)
    return run


def write_module(path: Path, mark: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EVIL.format(mark=str(mark)))
    return path


# the module, the file it lies in, and the run folder
INSIDE = {
    "beside the files of a run": ("runs.shared.evil", "runs/shared/evil.py", "runs/shared"),
    "a package in a run folder": ("runs.shared.evil", "runs/shared/evil/__init__.py", "runs/shared"),
    "deeper in a run folder": ("runs.shared.a.b.evil", "runs/shared/a/b/evil.py", "runs/shared"),
    "in another run folder": ("runs.other.evil", "runs/other/evil.py", "runs/shared"),
    "beside run folders": ("shared.evil", "shared/evil.py", "shared/run"),
    "in a folder that is no package": ("mine.evil", "mine/evil.py", "runs/shared"),
    "in a package around the run": ("package.evil", "package/evil.py", "package/run"),
}


def plant(here: Path, case: tuple[str, str, str], whole: Path) -> tuple[Path, str, Path]:
    """The shared run, the environment it names, and the file that appears when its code runs."""
    module, file, run = case
    mark = here / "mark"
    shared = share(whole, here / run, f"{module}:Evil-v0")
    write_module(here / file, mark)
    if file.startswith("runs/other"):
        (here / "runs/other/metrics.jsonl").touch()
    if file.startswith("package"):
        (here / "package/__init__.py").touch()
    return shared, f"{module}:Evil-v0", mark


@pytest.mark.parametrize("case", INSIDE.values(), ids=INSIDE)
def test_it_is_not_imported(case: tuple[str, str, str], here: Path, whole: Path) -> None:
    run, env_id, mark = plant(here, case, whole)
    module = env_id.split(":")[0]
    said = rf"the module {module!r} of its environment is [^\n]*; if you know that code, --trust imports it\Z"
    with pytest.raises(ValueError, match=rf"\Arun: [^\n]*{said}"):
        evaluate.evaluate(evaluate.Args(run=str(run), episodes=1))
    for spec in (str(run), "latest"):
        with pytest.raises(ValueError, match=rf"\A--resume: can't go on from [^\n]*{said}"):
            train(Args(resume=spec, run_root=str(run.parent), quiet=True))
    assert not mark.exists()


def test_a_policy_that_is_loaded_needs_no_environment_and_an_older_one_may_not_ask(here: Path, whole: Path) -> None:
    run, env_id, mark = plant(here, INSIDE["beside the files of a run"], whole)
    assert ppo_fast.load(run)([0.0] * 4) in (0, 1) and not mark.exists()
    weights, facts = load_policy(run)
    save_policy(run, weights, {**facts, "spaces": None})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "spaces": None}))
    with pytest.raises(ValueError, match=r"\Arun: [^\n]* inside a run folder; [^\n]*trust=True imports it\Z"):
        ppo_fast.load(run)
    with pytest.raises(ValueError, match=r"below nowhere; name one, or set run_root\Z"):
        ppo_fast.load(run_root="nowhere")
    assert not mark.exists()
    with pytest.warns(UserWarning, match="doesn't say what"):
        assert ppo_fast.load(run, trust=True).env_id == env_id and mark.exists()


@pytest.mark.parametrize("case", INSIDE.values(), ids=INSIDE)
def test_who_trusts_it_or_types_it_imports_it(
    case: tuple[str, str, str], here: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, env_id, mark = plant(here, case, whole)
    evaluate.evaluate(evaluate.Args(run=str(run), episodes=1, trust=True))
    module = env_id.split(":")[0]
    assert mark.exists() and f"imports {module} from {here.resolve() / case[1]}" in capsys.readouterr().err
    sys.modules.pop(module)
    train(Args(resume=str(run), env_id=env_id, quiet=True, total_timesteps=STEP * 7))
    sys.modules.pop(module)
    train(Args(resume=str(run), trust=True, quiet=True, total_timesteps=STEP * 8))
    sys.modules.pop(module)
    with pytest.raises(ValueError, match=r"--trust imports it"):  # that somebody trusted it once is not kept
        train(Args(resume=str(run), quiet=True, total_timesteps=STEP * 9))


def test_a_run_folder_is_no_working_folder(
    here: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mark = share(whole, here / "run", "evil:Evil-v0"), here / "mark"
    write_module(run / "evil.py", mark)
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match="inside a run folder"):
        evaluate.evaluate(evaluate.Args(run=".", episodes=1))
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(run))
    with pytest.raises(ValueError, match="inside a run folder"):
        evaluate.evaluate(evaluate.Args(run=str(run), episodes=1))
    assert not mark.exists()


def test_a_link_to_it_is_no_way_around(here: Path, whole: Path) -> None:
    run, mark = share(whole, here / "run", "evil:Evil-v0"), here / "mark"
    os.symlink(write_module(run / "evil.py", mark), here / "evil.py")
    with pytest.raises(ValueError, match="inside a run folder"):
        evaluate.evaluate(evaluate.Args(run=str(run), episodes=1))
    assert not mark.exists()


@pytest.mark.parametrize("file", ["mine.py", "mine/__init__.py", "mine/arena.py"])
def test_modules_of_the_working_folder_are_imported(
    file: str, here: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "mine.arena" if "arena" in file else "mine"
    write_module(here / file, here / "mark")
    if "arena" in file:
        (here / "mine/__init__.py").touch()
    run = share(whole, here / "runs" / "run", f"{module}:Evil-v0")
    evaluate.evaluate(evaluate.Args(run=str(run), episodes=1))
    assert f"imports {module} from" in capsys.readouterr().err
    train(Args(resume=str(run), quiet=True, total_timesteps=STEP * 7))


def test_a_module_on_a_path_of_ones_own_is_imported(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for place in (tmp_path_factory.mktemp("elsewhere"), here / "src"):
        mark = place / "mark"
        write_module(place / "mine.py", mark)
        monkeypatch.syspath_prepend(str(place))
        run = share(whole, here / "runs" / place.name, "mine:Evil-v0")
        evaluate.evaluate(evaluate.Args(run=str(run), episodes=1))
        assert mark.exists()
        sys.modules.pop("mine")


def test_installed_modules_and_missing_ones(here: Path) -> None:
    assert modules.check("CartPole-v1", here, False) == []
    [line] = modules.check("xml.dom.expatbuilder:X-v0", here, False)
    assert line.startswith("imports xml.dom.expatbuilder from ")
    for missing in ("no_such_module:X-v0", "xml.no_such.module:X-v0", ":X-v0", "..:X-v0", ".x:X-v0", "a b/../c:X-v0"):
        assert modules.check(missing, here, False) == []
    assert "xml.dom.expatbuilder" not in sys.modules  # it was only looked for


def test_a_crash_file_imports_nothing_of_its_folder_either(here: Path, whole: Path) -> None:
    run, mark = share(whole, here / "run", "CartPole-v1"), here / "mark"
    write_module(run / "evil.py", mark)
    saved = checkpoint.load(next((run / "checkpoints").glob("checkpoint-*")))
    flags = {**saved["flags"], "env_id": "run.evil:Evil-v0"}
    tensors = {**saved["ranks"][0]["tensors"], "rollout.reward": torch.zeros(flags["num_steps"], flags["num_envs"])}
    crash = {"program": saved["program"], "flags": flags, "tensors": tensors, "stream": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"^file: the module 'run.evil'"):
        replay({**crash, "finding": "x", "at": 2}, run)
    assert not mark.exists()


@pytest.mark.slow
def test_on_the_command_line(here: Path, whole: Path) -> None:
    run, _, mark = plant(here, INSIDE["beside the files of a run"], whole)
    words = [sys.executable, "-m", "ppo_fast.evaluate", str(run), "--episodes", "1"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=here, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "inside a run folder" in done.stderr
    assert not mark.exists()
    done = subprocess.run([*words, "--trust"], capture_output=True, text=True, cwd=here, env=env)
    assert done.returncode == 0 and mark.exists(), done.stderr
