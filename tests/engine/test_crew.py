"""ppo_fast.engine.crew: calls at the same time, in order, on threads that end; two threads learn what one does."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from iterations import Built, Ran, built, run, small
from test_fast_path import Graphs, assert_same_run, counted_graphs
from victims import wait_until

from ppo_fast.engine import crew
from ppo_fast.engine.crew import Crew

# torch warns of what torch.compile itself does: it instantiates an autograd.Function, and imports torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

CPU = torch.device("cpu")
SOON = 20.0  # seconds in which a busy machine has come round to every thread


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Whatever machine this is, and whatever a test sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def crew_of(threads: int, started: bool = True) -> Crew:
    torch.set_num_threads(threads)
    made = Crew(CPU, parallel=True)
    torch.set_num_threads(2)
    made.started = started
    return made


def hired() -> set[threading.Thread]:
    """The threads of all crews."""
    return {thread for thread in threading.enumerate() if thread.name == "crew"}


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("threads", "rows", "few", "sizes"),
    [
        (1, 10_000, 1, [10_000]),
        (2, 512, 256, [256, 256]),
        (2, 511, 256, [511]),  # one thread's part would be too small
        (2, 513, 256, [257, 256]),
        (2, 1, 256, [1]),
        (4, 767, 256, [384, 383]),  # enough for two of four
        (4, 1026, 256, [257, 257, 256, 256]),
        (64, 128, 64, [64, 64]),
    ],
)
def test_a_part_for_each_thread_that_gets_enough(threads: int, rows: int, few: int, sizes: list[int]) -> None:
    assert crew_of(threads).sizes(rows, few) == sizes


def test_a_gpu_and_what_is_not_compiled_have_one_thread() -> None:
    torch.set_num_threads(4)
    assert Crew(CPU, parallel=True).threads == 4
    for alone in (Crew(CPU, parallel=False), Crew(torch.device("cuda"), parallel=True)):
        assert alone.threads == 1 and alone.sizes(10_000, 1) == [10_000]


# ---------------------------------------------------------------- calls


def test_results_come_in_the_order_of_the_calls() -> None:
    """The first call ends last; one crew for several functions, and for more and fewer calls than before."""
    made = crew_of(4)

    def slow(number: int, of: int) -> int:
        time.sleep(0.01 * (of - number))
        return number

    one, other = made.side_by_side(slow), made.side_by_side(lambda x: -x)
    for count in (4, 2, 3, 4):
        assert one([(i, count) for i in range(count)]) == list(range(count))
        assert other([(i,) for i in range(count)]) == [-i for i in range(count)]


def test_calls_run_at_the_same_time() -> None:
    """None goes on before all have begun. The first one is the caller's own."""
    barrier = threading.Barrier(4, timeout=SOON)

    def meet() -> int:
        barrier.wait()
        return threading.get_ident()

    made, before = crew_of(4), hired()
    together = made.side_by_side(meet)
    for _ in range(50):
        threads = together([()] * 4)
        assert threads[0] == threading.get_ident() and len(set(threads)) == 4
    assert len(hired() - before) == 3, "the threads of the first time are there for all others"


def test_before_the_start_and_alone_a_call_runs_on_the_calling_thread() -> None:
    before = hired()
    together = crew_of(4, started=False).side_by_side(lambda i: (i, threading.get_ident()))
    assert together([(i,) for i in range(4)]) == [(i, threading.get_ident()) for i in range(4)]
    together = crew_of(4).side_by_side(threading.get_ident)
    assert together([()]) == [threading.get_ident()]
    assert not hired() - before


@pytest.mark.parametrize("problem", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("who", [[0], [1], [2], [1, 2], [0, 2]], ids=str)
def test_an_exception_comes_out_once_all_are_done(who: list[int], problem: type[BaseException]) -> None:
    """The first one in the order of the calls; afterwards the crew works, and with the right results."""
    ended: list[int] = []

    def call(number: int, fails: bool) -> int:
        time.sleep(0.05 if number == 2 else 0.0)
        ended.append(number)
        if fails:
            raise problem(f"call {number}")
        return number

    before = hired()
    together = crew_of(3).side_by_side(call)
    for _ in range(2):
        with pytest.raises(problem, match=f"call {who[0]}"):
            together([(i, i in who) for i in range(3)])
        assert sorted(ended) == [0, 1, 2]
        ended.clear()
        assert together([(i, False) for i in (5, 6, 7)]) == [5, 6, 7]
        ended.clear()
    assert len(hired() - before) == 2


def test_gradients_are_off_and_operations_single_threaded_in_the_threads() -> None:
    """Both are settings of each thread; the caller's stay as they are."""

    def settings() -> tuple[bool, int]:
        return torch.is_grad_enabled(), torch.get_num_threads()

    assert settings() == (True, 2)
    found = crew_of(3).side_by_side(settings)([()] * 3)
    assert found == [(True, 2), (False, 1), (False, 1)]
    assert settings() == (True, 2)


def test_threads_end_with_the_crew() -> None:
    """They hold on neither to the crew nor to what they were called with; what was wrapped is the crew's owner too."""
    before = hired()
    made = crew_of(3)
    together = made.side_by_side(torch.Tensor.sum)
    tensors = [torch.ones(3) for _ in range(3)]
    assert together([(x,) for x in tensors]) == [3.0] * 3
    kept, crews = [weakref.ref(x) for x in tensors], weakref.ref(made)
    del tensors
    wait_until(lambda: all(x() is None for x in kept), SOON)
    threads = hired() - before
    del made
    gc.collect()
    assert len(threads) == 2 and all(thread.is_alive() for thread in threads)
    del together
    gc.collect()
    assert crews() is None
    wait_until(lambda: not any(thread.is_alive() for thread in threads), SOON)


def test_a_crew_may_be_let_go_of_by_one_of_its_threads() -> None:
    """The garbage collector runs anywhere: no thread waits for itself."""
    before, crews = hired(), [crew_of(2)]
    reached, held = threading.Barrier(2, timeout=SOON), []

    def let_go(number: int) -> None:
        reached.wait()
        if number == 1:
            wait_until(lambda: bool(held), SOON)
            held.clear()  # the last reference, once the caller's frame has ended
            gc.collect()

    def call() -> None:
        made = crews.pop()
        together = made.side_by_side(let_go)
        made._hire()
        # As `side_by_side` puts it, but the caller does not wait, and so does not hold on to the crew.
        made._jobs[0].put((let_go, (1,), SimpleQueue()))
        reached.wait()
        held.append((made, together))

    call()
    wait_until(lambda: hired() == before, SOON)


def test_an_interrupted_call_leaves_no_answer_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Crew(torch.device("cpu"), True)
    made.threads, made.started = 2, True
    attempt, own = crew._attempt, threading.current_thread()

    def interrupted(function: Any, call: tuple) -> Any:
        if threading.current_thread() is own:
            raise KeyboardInterrupt
        return attempt(function, call)

    together = made.side_by_side(lambda x: x)
    monkeypatch.setattr(crew, "_attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together([("old 0",), ("old 1",)])
    monkeypatch.setattr(crew, "_attempt", attempt)
    assert together([("new 0",), ("new 1",)]) == ["new 0", "new 1"]


INTERRUPTED = """
import signal, time, torch
from ppo_fast.engine.crew import Crew
torch.set_num_threads(3)
crew, x = Crew(torch.device("cpu"), True), torch.ones(100, 100)
crew.started = True
def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        x @ x
def interrupt(*_):
    raise KeyboardInterrupt
together = crew.side_by_side(work)
together([(0.1,)] * 3)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    together([(0.0,), (1.0,), (1.0,)])
except KeyboardInterrupt:
    print("interrupted")
"""


COLLECTED = """
import gc, threading, torch
from ppo_fast.engine.crew import Crew
torch.set_num_threads(3)
crew = Crew(torch.device("cpu"), True, True)
crew.side_by_side(lambda: None)([()] * 3)
crew.cycle = crew  # only the garbage collector lets go of it
del crew
with threading._active_limbo_lock:  # as in threading.enumerate(), where the collector may run
    gc.collect()
print("let go")
"""


def test_the_garbage_collector_may_let_go_of_a_crew_anywhere() -> None:
    """Also where Python's own lock over its threads is held, without which none of them can end: nobody waits there."""
    command = [sys.executable, "-c", COLLECTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "let go\n", "")


def test_a_process_ends_in_order_while_its_crew_is_at_work() -> None:
    """A second Ctrl-C in an update. A thread that comes out of an operation when the interpreter has ended aborts the
    process: its end waits for them."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


# ---------------------------------------------------------------- two threads learn what one does


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    yield from counted_graphs(monkeypatch)


LARGE = {"num_envs": 128, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2, "hidden_sizes": (16,)}
RUNS: dict[str, dict[str, Any]] = {
    # 128 environments on 2 threads, 2 minibatches of 512 rows.
    "even": LARGE,
    # 263 environments on 2 threads, minibatches of 658 and 657 rows.
    "uneven": {**LARGE, "num_envs": 263, "num_steps": 5, "norm_obs": True, "norm_reward": True, "target_kl": 1.0},
    # Junk rows, unlike many in the two parts of a minibatch.
    "masked": {**LARGE, "num_envs": 32, "num_steps": 32, "env_id": "odd_envs:NextStep-v0"},
}


def from_the_start(built: Built, start: dict[str, Any], args: Any) -> Ran:
    """Four iterations from a state that was saved."""
    built.iteration.load(start)
    if built.iteration.restart is not None:
        built.iteration.restart(args.seed)
    return run(built, 4, args)


def assert_equal(one: Ran, other: Ran) -> None:
    """The same bits."""
    assert torch.equal(one.theta, other.theta)
    assert repr(one.metrics) == repr(other.metrics)  # NaN, too


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("even", "uneven")), "masked"]
)
def test_two_threads_learn_what_one_does(graphs: Graphs, name: str) -> None:
    """As the eager path does within rounding, and from the same state again the same bits: the order in which threads
    come in changes nothing."""
    args = small(**RUNS[name])
    args.total_timesteps = args.batch_size * 10
    before = hired()
    fast = built(args, "compiled")
    assert not hired() - before, "nothing runs side by side while it compiles"  # threads of earlier tests may end
    compiled = graphs.frame_count
    asked, start = graphs.asked, fast.iteration.saved()
    with torch.compiler.set_stance("fail_on_recompile"):
        ran = run(fast, 4, args)
        first = from_the_start(fast, start, args)
        again = from_the_start(fast, start, args)
    assert graphs.asked == asked and graphs.frame_count == compiled
    assert len(hired() - before) == 1
    assert_equal(first, again)
    assert torch.equal(first.theta, ran.theta)
    assert_same_run(args, ran, run(built(args), 4, args))


def test_two_threads_replay_what_one_does() -> None:
    """Recordings are made by one thread and replayed by two: from the same state the same bits."""
    args = small(**LARGE)
    args.total_timesteps = args.batch_size * 10
    before = hired()
    fast = built(args, "recorded")
    start = fast.iteration.saved()
    ran = run(fast, 4, args)
    assert fast.engine.report() == ("recorded, 5 of 5 functions", [])
    assert len(hired() - before) == 1
    assert_equal(from_the_start(fast, start, args), from_the_start(fast, start, args))
    assert_same_run(args, ran, run(built(args), 4, args))


@pytest.mark.thorough
def test_two_threads_learn_what_one_does_with_the_real_compiler() -> None:
    """Its code runs on both threads at the same time, and often: what it keeps must be a thread's own. Lanes of 258 and
    257 environments, parts of as many rows; two rollout steps, so that it compiles in a minute."""
    torch.compiler.reset()
    args = small(**{**LARGE, "num_envs": 515, "num_steps": 2})
    args.total_timesteps = args.batch_size * 10
    fast = built(args, "compiled")
    start = fast.iteration.saved()
    ran = run(fast, 4, args)
    for _ in range(100):
        assert torch.equal(from_the_start(fast, start, args).theta, ran.theta)
    assert_same_run(args, ran, run(built(args), 4, args))
