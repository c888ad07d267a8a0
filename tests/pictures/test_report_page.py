"""The HTML report: what it shows, that it is whole and needs nothing else, and that no text becomes markup."""

import base64
import json
import os
import re

import pytest
from checked_page import Checked
from drawn_runs import groups_of, write_three_runs
from run_folders import config, write_run

from ppo_fast.pictures import colours, page
from ppo_fast.pictures.panels import PANELS, reading
from ppo_fast.pictures.report import films, report, svg_panels

ONE_ROW = [{"global_step": 1, "charts/episodic_return": 1.0, "charts/SPS": 10.0}]


@pytest.fixture
def three(tmp_path):
    write_three_runs(tmp_path)
    return groups_of(tmp_path)


def report_of(groups, **advice):
    return report(groups, "title", "steps", {}, {label: advice.get(label, []) for label in groups})


def test_the_page_is_whole_self_contained_and_says_everything(three):
    (folder,) = (run.folder for run in three["slow"])
    (folder / "videos").mkdir()
    (folder / "videos" / "greedy.mp4").write_bytes(b"a video <&>")
    (folder / "videos" / ".greedy.mp4.part.mp4").write_bytes(b"half a video")
    text = report_of(three, slow=["clip fraction <0.2"])
    shown = Checked(text)
    assert all(link.startswith(("data:", "#")) for link in shown.links)
    video = next(link for link in shown.links if link.startswith("data:video"))
    assert base64.b64decode(video.partition(",")[2]) == b"a video <&>"
    assert "<script" not in text and not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert text.count("<svg role=") == 2 * len(PANELS)
    for word in (
        *("title", "3 runs, 2 configurations", "return, greedy", "21.50 ± 0.71", "100,000", "steps/s", "complete"),
        *("over environment steps", "over seconds of training", "clip fraction <0.2", "no advice", "gamma", "0.99"),
        *("slow: slow/videos/greedy.mp4", "CartPole-v1"),
    ):
        assert word in shown.words, word
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_one_run_has_its_figures_in_front(three):
    text = report({"slow": three["slow"]}, "title", "time", {}, {"slow": []})
    shown = Checked(text).words
    for word in ("environment steps", "1,856", "seconds of training", "3.6", "1 run, 1 configuration"):
        assert word in shown, word
    assert shown.index("over seconds of training") < shown.index("over environment steps")


def test_the_page_follows_light_and_dark(three):
    """No colour of the drawing is left as it is: each became a variable that both schemes define."""
    markup = svg_panels(three, "steps", {"charts/episodic_return": 1.0})
    style = re.sub(r"<text.*?</text>", "", markup)
    assert not re.search(r"(fill|stroke): #(?!ffffff)", style)
    used = set(re.findall(r"var\(--(\w+)\)", markup))
    assert {"ink", "grid", "faint", "s0", "s1"} <= used
    light, dark = page.page("t", "s", []).split("@media")
    assert all(f"--{name}: " in light and f"--{name}: " in dark for name in used)


def test_texts_cannot_become_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'& $title"
    write_run(tmp_path, "a", ONE_ROW, config(exp_name=evil), {"stopped": evil, "eval/mean_return": evil})
    write_run(tmp_path, "b", ONE_ROW, config(gamma=[evil]))
    groups = groups_of(tmp_path)
    text = report(groups, evil, "steps", {}, {label: [evil] for label in groups})
    assert "<script" not in text
    assert evil in Checked(text).words


def test_result_json_of_any_shape_is_shown(tmp_path):
    write_run(tmp_path, "a", ONE_ROW, config(), {"seconds": 3, "sps": "fast", "eval/mean_return": 7.0})
    text = Checked(report_of(groups_of(tmp_path))).words
    assert "7.00" in text and "complete" in text
    assert json.dumps("fast") not in text


def test_how_a_run_ended_is_said(tmp_path):
    write_run(tmp_path, "a", ONE_ROW, config())
    write_run(tmp_path, "b", ONE_ROW, config(seed=2), {"stopped": "SIGTERM"})
    text = Checked(report_of(groups_of(tmp_path))).words
    assert "no result.json: still running, or killed" in text and "stopped by SIGTERM" in text


def test_the_film_of_the_end_is_shown_whenever_it_was_written(three):
    (folder,) = (run.folder for run in three["slow"])
    (folder / "videos").mkdir()
    for place, name in enumerate(("greedy", "step-900", "step-1000", "evaluate-seed1")):
        path = folder / "videos" / f"{name}.mp4"
        path.write_bytes(name.encode())
        os.utime(path, (place + 1, place + 1))
    for shown in ("greedy", "step-1000", "step-900", "evaluate-seed1"):
        assert list(films(three).values()) == [shown.encode()]
        (folder / "videos" / f"{shown}.mp4").unlink()


def test_no_two_configurations_look_alike():
    looks = {(colours.colour(i), colours.dashes(i)) for i in range(colours.LOOKS)}
    assert len(looks) == colours.LOOKS >= 64
    legend = page.legend([str(i) for i in range(20)])
    assert len(set(re.findall(r"<line.*?/>", legend))) == 20
    assert "looks repeat" in reading({str(i): [] for i in range(colours.LOOKS + 1)})
