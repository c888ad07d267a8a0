"""curves.png of whatever a metrics.jsonl may hold."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from run_folders import make_row

from ppo_fast.jsonl import read
from ppo_fast.pictures import curves
from ppo_fast.pictures.curves import plot_curves

COLUMNS = [column for _, column in curves.PANELS]
PNG = b"\x89PNG"

BROKEN_FILES = {
    "half row at the end": json.dumps(make_row(1)) + "\n" + json.dumps(make_row(2))[:40],
    "half row in the middle": json.dumps(make_row(1))[:25] + "\n" + json.dumps(make_row(2)) + "\n",
    "nulls": json.dumps(make_row(1, **dict.fromkeys(COLUMNS))) + "\n" + json.dumps(make_row(2)) + "\n",
    "all null": json.dumps(make_row(1, **dict.fromkeys(COLUMNS))) + "\n",
    "NaN of a lax writer": json.dumps(make_row(1, **dict.fromkeys(COLUMNS, math.nan))) + "\n",
    "missing columns": '{"global_step": 1, "charts/SPS": 5}\n{"global_step": 2, "losses/entropy": 0.3}\n',
    "only steps": '{"global_step": 1}\n{"global_step": 2}\n',
    "rows that are no rows": '[1, 2]\n5\nnull\n"x"\n' + json.dumps(make_row(1)) + "\n",
    "values that are no numbers": json.dumps(make_row(1, **dict.fromkeys(COLUMNS, "x"))) + "\n",
    "bytes of a broken disk": "\x00\x00\x00\n" + json.dumps(make_row(1)) + "\n",
}


@pytest.mark.parametrize("text", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_curves_survive_a_broken_file(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, read(tmp_path / "metrics.jsonl").rows) is True
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("text", ["", "\n\n", '{"global_st', '{"charts/SPS": 5}\n', '{"global_step": null}\n'])
def test_no_row_no_picture(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert plot_curves(tmp_path, read(tmp_path / "metrics.jsonl").rows) is False
    assert not (tmp_path / "curves.png").exists()


def test_moving_average_against_a_plain_mean():
    values = tuple(np.random.default_rng(0).normal(size=50).tolist())
    for width in (1, 2, 5, 9):
        half = width // 2
        expected = [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(50)]
        assert curves._moving_average(values, width) == pytest.approx(expected)


def test_tick_labels_are_short_and_right():
    labels = {0.0025: "0.0025", 500.0: "500", 9000: "9000", 250_000: "250k", 1_500_000: "1.5M", -2e9: "-2G", 0: "0"}
    assert {value: curves.short_number(value) for value in labels} == labels


def test_importing_it_is_cheap():
    code = (
        "import sys, ppo_fast.pictures.curves; print([name for name in ('matplotlib', 'torch') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
