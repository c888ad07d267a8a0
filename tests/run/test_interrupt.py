"""Signals that stop a run: in this process, and in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ppo_fast.run.interrupt import SIGNALS, StopSignal

REPOSITORY = Path(__file__).parents[2]


def start(script: str) -> subprocess.Popen:
    """Run `script` in a process that prints "ready" first."""
    head = "import os, signal, sys, time\nfrom ppo_fast.run.interrupt import StopSignal\n"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", head + textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(exit status, what it printed), within 5 s."""
    try:
        output, _ = process.communicate(timeout=5)
    finally:
        process.kill()
    return process.returncode, output


LOOP = """
    with StopSignal() as stop:
        print("ready")
        iterations = 0
        while not stop.requested:
            time.sleep(0.01)
            iterations += 1
    print("saved", stop.name)
    sys.exit(stop.exit_status)
"""


STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138, "SIGUSR2": 140, "SIGXCPU": 152}


@pytest.mark.parametrize(("signum", "status"), [(signal.Signals[name], STATUS[name]) for name in STATUS])
def test_one_signal_ends_the_loop_and_sets_the_status(signum: signal.Signals, status: int) -> None:
    process = start(LOOP)
    process.send_signal(signum)
    assert finish(process) == (status, f"saved {signum.name}\n")


def test_what_was_ignored_from_the_start_stays_ignored() -> None:
    """nohup ignores SIGHUP. SIGINT alone is listened to: a script's `&` ignores it, and Ctrl-C means the script."""
    process = start("""
    others = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    for signum in (*others, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    print("ready")
    sys.stdin.readline()
    with StopSignal() as stop:
        for signum in others:
            os.kill(os.getpid(), signum)
        deaf = not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    restored = [signal.getsignal(signum) is signal.SIG_IGN for signum in (*others, signal.SIGINT)]
    print(deaf, stop.name, all(restored))
    """)
    assert finish(process) == (0, "True SIGINT True\n")


BUSY = """
    with StopSignal() as stop:
        print("ready")
        while True:
            if stop.requested:
                print(stop.name)
                stop.signum = None
"""


def test_second_interrupt_leaves_at_once() -> None:
    process = start(BUSY)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGINT)
    # Python ends an unhandled KeyboardInterrupt by the signal itself, which a shell shows as 130.
    assert finish(process)[0] == -signal.SIGINT


def test_third_interrupt_ends_a_hung_clean_up() -> None:
    process = start("""
    with StopSignal() as stop:
        try:
            print("ready")
            while True:
                if stop.requested:
                    print("flag")
                    time.sleep(60)
        except KeyboardInterrupt:
            print("cleaning")
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
    """)
    assert process.stdout is not None
    for expected in ("flag\n", "cleaning\n"):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == expected
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == -signal.SIGINT


def test_other_signals_may_repeat() -> None:
    """Schedulers send SIGTERM more than once, and a Ctrl-C after it is the first one."""
    with StopSignal() as stop:
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), signum)
        assert stop.name == "SIGTERM" and stop.exit_status == 143


def test_second_interrupt_in_this_process() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("signum", SIGNALS)
def test_flag_name_and_earlier_handlers(signum: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopSignal() as stop:
        assert not stop.requested and stop.name is None and stop.exit_status == 0
        os.kill(os.getpid(), signum)
        assert stop.requested and stop.name == signum.name and stop.exit_status == 128 + signum
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stop.requested


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopSignal():
        _ = 1 / 0
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_nothing_is_installed_outside_the_main_thread() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    seen = []

    def run() -> None:
        with StopSignal() as stop:
            seen.extend([signal.getsignal(each) for each in SIGNALS])
            seen.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [*before, False]


def test_a_signal_during_a_write_does_not_tear_it(tmp_path: Path) -> None:
    process = start(f"""
    with StopSignal() as stop, open({str(tmp_path / "rows")!r}, "w", buffering=1) as file:
        print("ready")
        while not stop.requested:
            file.write("x" * 1000 + "\\n")
    """)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0
    assert {len(row) for row in (tmp_path / "rows").read_text().splitlines()} == {1000}


@pytest.mark.parametrize("signum", SIGNALS)
def test_forked_workers_die_by_sigterm_alone(signum: signal.Signals) -> None:
    """Ctrl-C and SLURM reach the whole group: workers live on, but Process.terminate() must end even a stuck one."""
    process = start(f"""
    with StopSignal() as stop:
        worker = os.fork()
        if worker == 0:
            while True:
                time.sleep(1)
        time.sleep(0.2)
        print("ready")
        os.kill(worker, signal.{signum.name})
        time.sleep(0.2)
        ended, status = os.waitpid(worker, os.WNOHANG)
        print(os.WTERMSIG(status) if ended else "alive", stop.requested)
        if not ended:
            os.kill(worker, signal.SIGKILL)
    """)
    expected = f"{int(signal.SIGTERM)} False\n" if signum == signal.SIGTERM else "alive False\n"
    assert finish(process) == (0, expected)


def test_forks_after_the_block_are_left_alone() -> None:
    process = start("""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    with StopSignal() as stop:
        pass
    print("ready")
    worker = os.fork()
    if worker == 0:
        os._exit(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
    """)
    assert finish(process) == (0, "1\n")
