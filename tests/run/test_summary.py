"""The lines below a run that has ended."""

import math

from screens import RESULT, WARNING

from ppo_fast.run.summary import Ending, Line, lines_of, one_line_of


def test_a_summary_says_everything() -> None:
    ending = Ending(RESULT, [WARNING], "runs/x", ["first command", "second command"], ["steps/s: 1", "work: 2"])
    assert lines_of(ending) == [
        Line("evaluation", "greedy   499.50 ± 1.25  over 100 episodes"),
        Line("", "sampled  480.00 ± 9.00  over 100 episodes"),
        Line("speed", "231,042 steps/s, 500,000 steps"),
        Line("seconds", "startup 1.0   compile 4.0   train 2.5   eval 0.5   total 8.0"),
        Line("run folder", "runs/x"),
        Line("measured", "steps/s: 1"),
        Line("", "work: 2"),
        Line("health", "clip fraction 0.37 (> 0.2): lower --clip-coef", "warn"),
        Line("next", "first command"),
        Line("", "second command"),
    ]
    assert one_line_of(ending) == "return=499.50 std=1.25 sps=231042 folder=runs/x"


def test_a_run_that_ended_before_its_evaluation() -> None:
    ending = Ending({"global_step": 5, "sps": math.nan})
    assert lines_of(ending) == [Line("speed", "- steps/s, 5 steps"), Line("health", "no advice", "ok")]
    assert one_line_of(ending) == "return=- std=- sps=- folder="


def test_a_stop_says_where_and_that_it_is_saved() -> None:
    result = {"global_step": 8_863_744, "sps": 1000.0, "stopped": "SIGINT"}
    assert lines_of(Ending(result))[0] == Line("stopped", "SIGINT, at step 8,863,744; the run is saved")
