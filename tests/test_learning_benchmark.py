"""benchmarks.learning: seeds, records of finished runs, figures over seeds, and what it does with a failed run."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import learning
from ppo_fast.run import presets

DRAW = learning.draw
TASK = learning.Task("CartPole-v1", 1000, "tensor", (490.0, 6.0))


def leave_run_folder(root: Path, name: str, greedy: float, returns: list[float | None]) -> Path:
    """A run folder as training leaves it, with one row every 100 steps."""
    folder = root / name
    folder.mkdir(parents=True)
    result = {"eval/mean_return": greedy, "eval/sampled_mean_return": greedy - 10, "eval/episodes": 100}
    (folder / "result.json").write_text(json.dumps(result | {"sps": 5000.0, "global_step": 1000}))
    config = {"versions": {"torch": "2"}, "threads": 1, "execution": "eager"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"global_step": 100 * (i + 1), "charts/episodic_return": x} for i, x in enumerate(returns)]
    lines = [{k: v for k, v in row.items() if v is not None} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class FakeTraining:
    """Stands in for subprocess.run: leaves a run folder whose greedy return is 100 times the seed, or fails."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.calls: list[list[str]] = []
        self.failing = failing

    def __call__(self, words: list[str], **options: Any) -> subprocess.CompletedProcess:
        """The call."""
        self.calls.append(words)
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        flags = dict(zip(words[3::2], words[4::2], strict=False))
        seed = int(flags["--seed"])
        root = Path(words[words.index("--run-root") + 1])
        name = f"{flags['--env-id']}__train__{seed}__{len(list(root.iterdir()))}"
        leave_run_folder(root, name, 100.0 * seed, [10.0 * seed] * 10)
        # A run that breaks down has left a folder, too.
        status = 3 if seed in self.failing else 0
        return subprocess.CompletedProcess(words, status, "", "error: NaN in the value loss" if status else "")


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> learning.Args:
    # A second each; other tests have the real ones.
    monkeypatch.setattr(learning, "draw", lambda *_: None)
    monkeypatch.setattr(learning.intervals, "bootstrap_interval", lambda *_: (0.0, 1.0))
    return learning.Args(
        seeds="1-3",
        env_id=("CartPole-v1",),
        jobs=1,
        total_timesteps=1000,
        run_root=tmp_path / "runs",
        out=tmp_path / "results",
    )


def fake(monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...] = ()) -> FakeTraining:
    training = FakeTraining(failing)
    monkeypatch.setattr(learning.subprocess, "run", training)
    return training


@pytest.mark.parametrize(
    ("text", "seeds"), [("1-10", list(range(1, 11))), ("3", [3]), ("1,5,7", [1, 5, 7]), ("1-2, 9", [1, 2, 9])]
)
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert learning.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "1-", "-3", "1,1", "2-1", "1-3,2", "1.5"])
def test_wrong_seeds_name_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds: "):
        learning.parse_seeds(text)


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("--env-id", {"env_id": ("Hopper-v5",)}),
        ("--extra", {"extra": "--no-norm-obs"}),
        ("--variant", {"variant": "a/b"}),
        ("--jobs", {"jobs": -1}),
        ("--total-timesteps", {"total_timesteps": 0}),
    ],
)
def test_wrong_flags_are_named(flag: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{flag}: "):
        learning.check(learning.Args(**wrong))


def test_the_command_is_one_that_a_user_would_type() -> None:
    words = learning.command(TASK, 7, "--gamma 0.9")
    assert " ".join(words[:9]) == "python -m ppo_fast.train --env-id CartPole-v1 --seed 7 --total-timesteps 1000"
    assert " ".join(words[9:]) == "--backend tensor --quiet --gamma 0.9"


def test_every_task_is_an_environment_that_exists() -> None:
    from ppo_fast import envs

    for task in (task for suite in learning.SUITES.values() for task in suite):
        assert task.backend in envs.available_backends(task.env_id), task.env_id


def test_returns_at_fixed_steps() -> None:
    rows = [{"global_step": 100 * (i + 1), "charts/episodic_return": float(i)} for i in range(10)]
    assert learning.returns_at(rows, 1000, 5) == [0.5, 2.5, 4.5, 6.5, 8.5]
    # A row belongs to the stretch that its steps end in; a run that is rounded up or down loses none.
    assert learning.returns_at([{"global_step": 1010, "charts/episodic_return": 3.0}], 1000, 2) == [None, 3.0]
    # Iterations in which no episode ended say nothing, and are no zero.
    assert learning.returns_at([{"global_step": 10}, {"global_step": 20, "charts/episodic_return": 4.0}], 40, 2) == [
        4.0,
        None,
    ]


def test_figures_over_seeds() -> None:
    found = learning.figures([1.0, 2.0, 3.0, 100.0])
    assert (found["mean"], found["min"], found["max"], found["iqm"]) == (26.5, 1.0, 100.0, 2.5)
    assert found["std"] == pytest.approx(49.0, abs=0.1)
    low, high = found["iqm_interval"]
    assert 1.0 <= low < 2.5 < high <= 100.0
    one = learning.figures([5.0])
    assert (one["mean"], one["std"], one["iqm_interval"]) == (5.0, None, None)


def test_curves_over_seeds_skip_what_a_seed_does_not_have() -> None:
    mean, least, greatest = learning.over_seeds([[1.0, None, None], [3.0, 4.0, None]])
    assert (mean, least, greatest) == ([2.0, 4.0, None], [1.0, 4.0, None], [3.0, 4.0, None])


def test_a_suite_leaves_json_and_figure(args: learning.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    monkeypatch.setattr(learning, "draw", DRAW)
    learning.run(args)
    text = (args.out / "learning-classic.json").read_text()
    found = json.loads(text)["environments"]["CartPole-v1"]
    assert found["greedy"]["mean"] == 200.0 and found["sampled"]["mean"] == 190.0
    assert found["training_return_at_tenths"] == [pytest.approx(20.0)] * 10
    assert [run["seed"] for run in found["runs"]] == [1, 2, 3]
    assert str(args.run_root) not in text and sys.executable not in text  # of this machine alone
    assert (args.out / "learning-classic.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_done_again(args: learning.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    training = fake(monkeypatch)
    first = learning.run(args)
    assert len(training.calls) == 3
    args.seeds = "1-4"
    learning.run(args)
    assert len(training.calls) == 4  # seed 4 alone
    args.seeds = "1-3"
    assert learning.run(args) == first
    assert len(training.calls) == 4
    args.redo = True
    learning.run(args)
    assert len(training.calls) == 7


@pytest.mark.fitted
def test_a_changed_preset_or_command_is_another_run(args: learning.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    training = fake(monkeypatch)
    learning.run(args)
    monkeypatch.setitem(presets.PRESETS, "CartPole-v1", {"hidden_sizes": (32, 32)})
    learning.run(args)
    assert len(training.calls) == 6
    learning.run(args)  # a tuple that JSON keeps as a list is still the same preset
    assert len(training.calls) == 6
    args.total_timesteps = 2000
    learning.run(args)
    assert len(training.calls) == 9


@pytest.mark.fitted
def test_what_a_recipe_sets_is_kept_and_not_how_it_is_written() -> None:
    task = learning.Task("Pendulum-v1", 1000, "tensor", None)
    found = [learning.what_is_set(learning.command(task, seed, "--recipe --learning-rate 0.1")) for seed in (1, 2)]
    assert found[0] == found[1] and found[0]["norm_obs"] is True and found[0]["gamma"] == 0.95
    assert not {"learning_rate", "recipe", "seed", "flags_given", "exp_name"} & set(found[0])
    assert learning.what_is_set(learning.command(task, 1, "--no-preset")) == {}


def test_a_failed_run_is_told_and_tried_again(
    args: learning.Args, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, failing=(2,))
    found = learning.run(args)["environments"]["CartPole-v1"]
    assert found["failed"] == [{"seed": 2, "error": "exit status 3: error: NaN in the value loss"}]
    assert [run["seed"] for run in found["runs"]] == [1, 3]
    assert "1 failed" in capsys.readouterr().out
    training = fake(monkeypatch)
    assert learning.run(args)["environments"]["CartPole-v1"]["failed"] == []
    assert len(training.calls) == 1


def test_a_suite_of_failures_still_says_so(
    args: learning.Args, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, failing=(1, 2, 3))
    monkeypatch.setattr(sys, "argv", ["learning", "--seeds", "1-3", "--env-id", "CartPole-v1", "--jobs", "1"])
    monkeypatch.setattr(learning, "Args", lambda: args)
    monkeypatch.setattr(learning, "what_is_set", lambda _: {})  # reads flags by tyro, too
    monkeypatch.setattr("tyro.cli", lambda made, **_: args)
    with pytest.raises(SystemExit) as stop:
        learning.main()
    assert stop.value.code == 1
    assert "3 failed" in capsys.readouterr().out


def test_variants_have_files_of_their_own(args: learning.Args, monkeypatch: pytest.MonkeyPatch) -> None:
    training = fake(monkeypatch)
    learning.run(args)
    args.variant, args.extra = "raw", "--no-norm-obs"
    record = learning.run(args)
    assert len(training.calls) == 6 and "--no-norm-obs" in training.calls[-1]
    assert (args.out / "learning-classic-raw.json").exists()
    assert record["command"].endswith("--variant=raw --extra=--no-norm-obs --env-id CartPole-v1")


@pytest.mark.slow
def test_one_real_run(args: learning.Args) -> None:
    args.seeds, args.total_timesteps = "5", 8192
    found = learning.run(args)["environments"]["CartPole-v1"]
    assert found["failed"] == []
    (run,) = found["runs"]
    assert run["global_step"] == 8192 and run["episodes"] == 100 and run["threads"] == 1
    assert run["greedy"] > 9 and any(value is not None for value in found["curve"]["mean"])


def test_runs_side_by_side_ask_one_after_the_other_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """tyro, asked by two threads at once, ended a whole comparison without a word."""
    inside, most = 0, 0

    def slow(_: tuple[str, ...]) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return "{}"

    monkeypatch.setattr(learning, "_set_by", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(learning.what_is_set, [["python", "-m", "ppo_fast.train", "--seed", "1"]] * 4))
    assert found == [{}] * 4 and most == 1
