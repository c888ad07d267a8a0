"""benchmarks.peers: the order of rounds, the ratios, and the processes it talks to, with contenders made here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.work import Work

WORK = Work(num_envs=64, num_steps=128, iterations=10)


def rows(*names: str) -> list[peers.Contender]:
    """Contenders by name; ppo_fast's start with "ppo_fast"."""
    return [peers.Contender(name, f"contenders.{name}", WORK, ours=name.startswith("ppo_fast")) for name in names]


def contender_module(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> peers.Contender:
    """A contender whose module has this source, and that a child process can import."""
    (folder / "made_contender.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return peers.Contender("made", "made_contender", WORK, ours=False)


def test_work_is_what_the_comparison_promises() -> None:
    assert (WORK.batch_size, WORK.minibatch_size, WORK.measured_steps) == (8192, 2048, 81920)
    assert (WORK.update_epochs, WORK.num_minibatches, WORK.hidden) == (4, 4, (64, 64))


def test_work_survives_the_command_line() -> None:
    assert Work.from_json(WORK.to_json()) == WORK


def test_rounds_alternate_their_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    order = []

    def fake(row: peers.Contender, timeout: float) -> dict:
        order.append(row.name)
        return {"sps": float(len(order))}

    monkeypatch.setattr(peers, "run_contender", fake)
    found = peers.measure_rounds(rows("a", "b", "c"), rounds=3, seconds=1.0)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    # Whatever the order, a contender's reports are in round order.
    assert [report["sps"] for report in found["b"]] == [2.0, 5.0, 8.0]
    assert "round 3/3" in capsys.readouterr().out


def test_ratios_are_taken_within_a_round() -> None:
    # The machine halves its speed in round 2: the ratio of medians would not notice that the peer was hit harder.
    ours = [{"sps": 400.0}, {"sps": 200.0}, {"sps": 500.0}]
    peer = [{"sps": 100.0}, {"sps": 40.0}, {"sps": 100.0}]
    assert peers.paired_ratios(ours, peer) == [4.0, 5.0, 5.0]
    summary = peers.summarize(rows("ppo_fast", "sb3"), {"ppo_fast": ours, "sb3": peer})
    assert summary["sps"]["ppo_fast"] == {"median": 400.0, "min": 200.0, "max": 500.0}
    assert summary["ratios"] == {"ppo_fast / sb3": {"median": 5.0, "min": 4.0, "max": 5.0, "rounds": [4.0, 5.0, 5.0]}}


def test_every_row_of_ours_meets_every_peer() -> None:
    found = {name: [{"sps": 1.0}] for name in ("ppo_fast a", "ppo_fast b", "sb3", "sbx")}
    ratios = peers.summarize(rows(*found), found)["ratios"]
    assert set(ratios) == {f"{ours} / {peer}" for ours in ("ppo_fast a", "ppo_fast b") for peer in ("sb3", "sbx")}


def test_table_shows_contenders_and_ratios() -> None:
    reports = {name: [{"sps": sps, "device": "cpu"}] for name, sps in (("ppo_fast 64x128", 250000.0), ("sb3", 50000.0))}
    text = peers.table(peers.summarize(rows(*reports), reports), reports)
    assert "250,000" in text and "ppo_fast 64x128 / sb3" in text and " 5.00" in text


def test_missing_peer_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None if package == "sbx" else object())
    found = peers.contenders(peers.Args(ours_envs=1024, ours_steps=32))
    assert [row.name for row in found] == ["ppo_fast 64x128", "ppo_fast 1024x32", "sb3 64x128"]
    assert found[1].work.batch_size == 1024 * 32
    said = capsys.readouterr().out
    assert "sbx is not installed" in said and 'pip install -e ".[bench]"' in said and "sb3" not in said


def test_only_the_peers_asked_for_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: object())
    assert [row.name for row in peers.contenders(peers.Args(peers="sbx"))] == ["ppo_fast 64x128", "sbx 64x128"]


@pytest.mark.parametrize(
    ("flag", "args"),
    [
        ("--rounds", peers.Args(rounds=0)),
        ("--envs", peers.Args(envs=0)),
        ("--steps", peers.Args(steps=-1)),
        ("--seconds", peers.Args(seconds=float("nan"))),
        ("--ours-envs", peers.Args(ours_envs=1024)),
        ("--ours-envs, --ours-steps", peers.Args(ours_envs=1024, ours_steps=0)),
        ("--peers: sb4 unknown, choose from sb3, sbx", peers.Args(peers="sb3,sb4")),
    ],
)
def test_wrong_flags_are_named(flag: str, args: peers.Args) -> None:
    with pytest.raises(ValueError, match=f"^{flag}"):
        peers.check(args)


def test_wrong_flag_is_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--rounds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stderr) == (2, "--rounds: must be at least 1, got 0\n")


def test_report_is_the_last_line_a_contender_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import sys\nprint('chatter')\nprint(sys.argv[1])\n"
    row = contender_module(tmp_path, monkeypatch, body)
    assert peers.run_contender(row, timeout=60) == json.loads(WORK.to_json())


def test_failed_contender_stops_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = contender_module(tmp_path, monkeypatch, "raise SystemExit('no such device')")
    with pytest.raises(RuntimeError, match=r"made failed with status 1:\nno such device"):
        peers.run_contender(row, timeout=60)


def test_calibration_sizes_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "run_contender", lambda row, timeout: {"sps": 8192 * 4.0})
    row = peers.calibrated(rows("sb3")[0], seconds=15.0)
    assert row.work.iterations == 60
    monkeypatch.setattr(peers, "run_contender", lambda row, timeout: {"sps": 1.0})
    assert peers.calibrated(row, seconds=15.0).work.iterations == 2


def test_reader_is_warned_of_a_busy_machine_and_few_rounds() -> None:
    machine = {"load": [0.6, 0.0, 0.0], "OMP_NUM_THREADS": "1"}
    assert len(peers.warnings_for(peers.Args(rounds=4), machine)) == 3
    quiet = {"load": [0.4, 9.0, 9.0], "OMP_NUM_THREADS": None}
    assert peers.warnings_for(peers.Args(), quiet) == []


def test_whole_comparison_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"benchmarks.peer_ppo_fast": 500.0, "benchmarks.peer_sb3": 100.0, "benchmarks.peer_sbx": 80.0}
    monkeypatch.setattr(peers, "find_spec", lambda package: object())
    monkeypatch.setattr(
        peers, "run_contender", lambda row, timeout: {"sps": speeds[row.module], "device": "cpu", "versions": {}}
    )
    record = peers.run(peers.Args(rounds=5, out=tmp_path / "results"))
    (path,) = (tmp_path / "results").glob("peers-cpu-*.json")
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(record))
    assert written["summary"]["ratios"]["ppo_fast 64x128 / sb3 64x128"]["median"] == 5.0
    assert len(written["rounds"]["sbx 64x128"]) == 5
    assert written["machine"]["cores"] >= 1 and written["machine"]["processor"]


def test_ppo_fast_is_given_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import peer_ppo_fast
    from ppo_fast import train as program

    given = []

    def fake(args: program.Args) -> dict:
        given.append(args)
        return {"global_step": args.total_timesteps, "sps": 8192.0}

    monkeypatch.setattr(program, "train", fake)
    found = peer_ppo_fast.measure(WORK)
    assert (found["sps"], found["seconds"], found["steps"], found["device"]) == (8192.0, 10.0, 81920, "cpu")
    (args,) = given
    same = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "learning_rate", "gamma", "gae_lambda")
    same += ("clip_coef", "ent_coef", "vf_coef", "max_grad_norm", "seed")
    assert {name: getattr(args, name) for name in same} == {name: getattr(WORK, name) for name in same}
    assert (args.backend, args.compile, args.shared_backbone, args.anneal_lr) == ("tensor", "on", False, False)
