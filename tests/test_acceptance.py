"""benchmarks.acceptance: what doesn't hold is told and an exit status; what is read from a run is really in it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import acceptance
from ppo_fast import train
from ppo_fast.run import cli

AGREES = "  losses ...\nthe two paths agree"
PROFILE = "  device idle                    1.20 ms   7.5 %\n  the host waits for the device {} times an iteration"


def runs(monkeypatch: pytest.MonkeyPatch, **instead: Any) -> list[str]:
    """Replaces the processes by what they would say; returns their flags."""
    seen: list[str] = []

    def ran(words: str, folder: str) -> dict[str, Any]:
        seen.append(words)
        kind = "verify" if "--verify" in words else "profile" if "--profile" in words else "train"
        said = {"verify": AGREES, "profile": PROFILE.format(1), "train": ""} | instead
        if kind == "train":
            path = Path(folder) / "run"
            path.mkdir()
            (path / "result.json").write_text(json.dumps({"eval/mean_return": instead.get("mean", 500.0)}))
        bad = kind == "verify" and "diverges" in said["verify"] and "Pendulum" in words
        return {"flags": words, "exit_status": 4 if bad else 0, "seconds": 1.0, "said": said[kind]}

    monkeypatch.setattr(acceptance, "ran", ran)
    return seen


def test_all_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = runs(monkeypatch)
    record = acceptance.run(acceptance.Args(cuda=False, out=tmp_path))
    assert record["exit_status"] == 0 and "all holds" in capsys.readouterr().out
    assert set(record["verified"]) == set(acceptance.VARIANTS) - {"tf32"}
    assert len(seen) == len(acceptance.VARIANTS) - 1 + 2 and all("--no-cuda" in words for words in seen)
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    assert kept["profiled"]["waits"] == 1.0 and kept["profiled"]["idle_percent"] == 7.5


@pytest.mark.parametrize(
    ("instead", "gpu", "failed"),
    [
        ({"verify": "error: the fast path diverges in parameters"}, False, "continuous"),
        ({"profile": PROFILE.format(2.33)}, True, "profile"),
        ({"profile": "Traceback"}, False, "profile"),
        ({"mean": 474.0}, False, "training"),
    ],
)
def test_what_does_not_hold_is_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    instead: dict[str, Any],
    gpu: bool,
    failed: str,
) -> None:
    runs(monkeypatch, **instead)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    record = acceptance.run(acceptance.Args(out=tmp_path))
    assert record["exit_status"] == 1 and f"\ndoes not hold: {failed}\n" in capsys.readouterr().out


def test_a_cpu_may_look_at_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs(monkeypatch, profile="  the host looks at a tensor's value 1.2e+02 times an iteration")
    assert acceptance.run(acceptance.Args(cuda=False, out=tmp_path))["exit_status"] == 0


def test_unknown_variants_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"^--variants: no 'x'; there are discrete, "):
        acceptance.check(acceptance.Args(variants=("x",)))


def test_the_variants_are_flags_of_the_program() -> None:
    for words in acceptance.VARIANTS.values():
        cli.parse(train.Args, f"{acceptance.SIZES} {words}".split(), "test").check()


def test_a_process_that_fails_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = acceptance.ran("--num-steps 0", str(tmp_path))
    assert found["exit_status"] == 2 and found["said"].startswith("error: --num-steps") and found["seconds"] > 0
    monkeypatch.setattr(acceptance, "LIMIT", 0.05)
    assert acceptance.ran("", str(tmp_path))["exit_status"] == -1


@pytest.mark.thorough
def test_on_this_machine(tmp_path: Path) -> None:
    args = acceptance.Args(variants=("discrete",), updates=2, out=tmp_path)
    record = acceptance.run(dataclasses.replace(args, cuda=False))
    assert record["exit_status"] == 0 and record["profiled"]["waits"] is not None
