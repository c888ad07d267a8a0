"""A twin that fails: said once, and the end of this twin only."""

from pathlib import Path

import pytest

from ppo_fast.run.twins import Guarded, Twin


class Recorder(Twin):
    """Notes what it is asked for, and fails at what is named `broken`."""

    name = "Recorder"

    def __init__(self, broken=""):
        self.asked = []
        self.broken = broken

    def _note(self, what, *details):
        self.asked.append((what, *details))
        if what == self.broken:
            raise RuntimeError(f"no {what}\nlong story")

    def log(self, row):
        self._note("log", row)

    def log_video(self, path, global_step):
        self._note("log_video", path, global_step)

    def finish(self, result):
        self._note("finish", result)

    def close(self, exit_code):
        self._note("close", exit_code)


def use(twin):
    """Everything that a run asks of a twin, once."""
    twin.log({"global_step": 1})
    twin.log_video(Path("a.mp4"), 1)
    twin.finish({"eval/mean_return": 1.0})
    twin.close(0)


def test_a_guarded_twin_is_asked_for_everything():
    said, twin, plain = [], Recorder(), Recorder()
    use(Guarded(twin, said.append))
    use(plain)
    assert twin.asked == plain.asked and len(twin.asked) == 4
    assert said == []


@pytest.mark.parametrize("broken", ["log", "log_video", "finish", "close"])
def test_the_first_failure_is_said_and_is_the_last_thing_asked(broken):
    said, twin = [], Recorder(broken)
    guarded = Guarded(twin, said.append)
    use(guarded)
    use(guarded)
    assert said == [f"warning: Recorder failed (no {broken}); the run folder stays complete"]
    assert [what for what, *_ in twin.asked].count(broken) == 1
    assert twin.asked[-1][0] == broken


def test_a_closed_twin_is_not_asked_again():
    twin = Recorder()
    guarded = Guarded(twin, pytest.fail)
    guarded.close(1)
    use(guarded)
    assert twin.asked == [("close", 1)]


def test_a_twin_shows_what_its_class_can_show():
    use(Twin())
