"""The run folder, and the same rows in Weights & Biases: what a run leaves behind.

    with Run(root="runs", env_id="CartPole-v1", exp_name="train", seed=1, config=flags, say=console.message) as run:
        run.log({"global_step": 8192, "charts/SPS": 231042.0, ...})   # one row per logged iteration
        run.finish({"eval/mean_return": 500.0, ...})                  # result.json, curves.png, end of the W&B run

The folder is the record: it is complete without an account or a network, every row is written before `log` returns,
and W&B gets the same rows under the same names. Neither a full disk nor an unreachable W&B stops a training run; each
is said once, through `say`.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

STEPPED_BY_GLOBAL_STEP = ("charts/*", "losses/*", "time/*", "health/*", "eval/*")
WANDB_INIT_SECONDS = 6.0  # with wandb's own start-up and the offline run after it, a fallback stays under 10 s
WANDB_FINISH_SECONDS = 8.0
WANDB_OFF = {"disabled": "disabled", "offline": "offline", "dryrun": "offline"}

# The panels of curves.png: title and column.
PANELS = (
    ("episodic return", "charts/episodic_return"),
    ("steps per second", "charts/SPS"),
    ("policy loss", "losses/policy_loss"),
    ("value loss", "losses/value_loss"),
    ("approximate KL", "losses/approx_kl"),
    ("clip fraction", "losses/clipfrac"),
    ("explained variance", "losses/explained_variance"),
    ("entropy", "losses/entropy"),
)
FROM_ZERO = ("charts/SPS", "losses/value_loss", "losses/approx_kl", "losses/clipfrac", "losses/entropy")
INK, RAW, TREND = "#333333", "#9ecae1", "#08519c"  # two blues that differ in lightness: no colour vision needed


def say_to_stderr(text: str) -> None:
    """Where a `Run` speaks when nobody gave it a console."""
    print(text, file=sys.stderr, flush=True)


class Run:
    """One run: its folder, its rows on disk, and its twin in Weights & Biases where that is wanted.

    Args:
        root: folder of all runs (`--run-root`). The run's own is `<root>/<env_id>__<exp_name>__<seed>__<unix time>`.
        config: everything that defines the run: flags, derived sizes, versions, device. For config.json and W&B.
        track: whether W&B gets the rows too.
        wandb_mode: "online" or "offline". The environment variable WANDB_MODE can only take away: "offline" or
            "disabled" there win.
        say: called with one line of text for every warning and for the place of the W&B run.

    Attributes:
        folder: the run's folder, which did not exist before.

    Raises:
        ValueError: `--run-root: ...` when the folder cannot be made. Nothing has been written then.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        env_id: str,
        exp_name: str,
        seed: int,
        config: Mapping[str, Any],
        track: bool = False,
        wandb_mode: str = "online",
        wandb_project_name: str = "ppo_fast",
        wandb_entity: str | None = None,
        say: Callable[[str], None] = say_to_stderr,
    ) -> None:
        self._say = say
        self._disk_failed = False
        self._half_row = False
        self._wandb_run = None
        self._wandb_step = -1
        self.folder = _new_folder(Path(root), f"{_safe(env_id)}__{_safe(exp_name)}__{seed}__{int(time.time())}")
        config = jsonable(config)
        self._write_whole("config.json", config)
        # Unbuffered: a row is one write(2), so a killed process loses none, and a failed one is not tried again later.
        self._metrics = open(self.folder / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
        if track:
            self._wandb_run = _start_wandb(self.folder, wandb_mode, wandb_project_name, wandb_entity, config, say)

    @classmethod
    def from_flags(cls, config: Mapping[str, Any], say: Callable[[str], None]) -> Self:
        """The run of a program whose `config` holds its flags under their own names, "run_root" among them."""
        names = ("env_id", "exp_name", "seed", "track", "wandb_mode", "wandb_project_name", "wandb_entity")
        return cls(root=config["run_root"], config=config, say=say, **{name: config[name] for name in names})

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl, handed to the system when this returns, and to W&B.

        Args:
            row: names to numbers (0-dim tensors and NumPy numbers too), "global_step" among them. NaN and infinities
                become null.
        """
        clean = jsonable(row)
        self._append(json.dumps(clean, allow_nan=False).encode() + b"\n")
        if self._wandb_run is None:
            return
        # W&B drops a row whose step is not above the last one; without a step it takes the next free one.
        step = clean["global_step"] if clean["global_step"] > self._wandb_step else None
        self._wandb_step = max(clean["global_step"], self._wandb_step + 1)
        self._wandb_call(lambda run: run.log(clean, step=step, commit=True))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, put its eval/* figures in the W&B summary, draw curves.png and close everything."""
        clean = jsonable(result)
        self._write_whole("result.json", clean)
        self._wandb_call(lambda run: run.summary.update({k: v for k, v in clean.items() if k.startswith("eval/")}))
        try:
            plot_curves(self.folder)
        except Exception as error:  # a missing font or a full disk must not fail a run that has ended well
            self._say(f"warning: curves.png was not drawn: {_one_line(error)}")
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """Close the files and the W&B run, which a non-zero `exit_code` marks as failed. May be called again."""
        self._metrics.close()
        self._wandb_call(lambda run: run.finish(exit_code=exit_code))
        self._wandb_run = None

    def subfolder(self, name: str) -> Path:
        """The folder `name` of this run ("checkpoints", "videos"), made when it is first asked for."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    def _append(self, line: bytes) -> None:
        try:
            written = self._metrics.write(b"\n" + line if self._half_row else line)
        except OSError as error:
            self._warn_disk(error)
            return
        # A disk that fills up takes part of a row: the next row starts on a line of its own.
        expected = len(line) + self._half_row
        self._half_row = written != expected
        if self._half_row:
            self._warn_disk(OSError(f"{written} of {expected} bytes written"))

    def _write_whole(self, name: str, content: Any) -> None:
        try:
            write_json(self.folder / name, content)
        except OSError as error:
            self._warn_disk(error)

    def _warn_disk(self, error: OSError) -> None:
        if not self._disk_failed:
            self._say(f"warning: cannot write to {self.folder} ({error}); training goes on, its record has gaps")
        self._disk_failed = True

    def _wandb_call(self, call: Callable[[Any], object]) -> None:
        """W&B never raises into training: the first failure is said, and ends the tracking."""
        if self._wandb_run is None:
            return
        try:
            call(self._wandb_run)
        except Exception as error:
            self._say(f"warning: W&B failed ({_one_line(error)}); the run folder stays complete")
            self._wandb_run = None


def jsonable(value: Any) -> Any:
    """`value` in strict JSON types: NaN and infinities become None, tensors and arrays lists, anything else `str`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and scalars
        return jsonable(value.tolist())
    return str(value)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON so that `path` holds either all of it or what it held before.

    Raises:
        OSError: nothing could be written; no temporary file is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl. A line that is no JSON object (the half row of a killed run) is left out."""
    rows = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def plot_curves(folder: Path) -> bool:
    """Draw curves.png from metrics.jsonl: return, speed, losses and diagnostics against environment steps.

    Columns that were not logged and values that are null leave their place empty.

    Returns:
        False, and no picture, when there is no row to draw.
    """
    rows = [row for row in read_metrics(folder) if _is_finite(row.get("global_step"))]
    if not rows:
        return False
    # Figure alone, without pyplot: no display, no global state, half the import time.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), dpi=110, facecolor="white")
    # Fixed margins: a layout engine would draw everything twice, and the user waits for it.
    figure.subplots_adjust(left=0.04, right=0.985, bottom=0.085, top=0.875, wspace=0.24, hspace=0.32)
    figure.suptitle(f"{folder.name}, against environment steps", x=0.01, ha="left", fontsize=11, color=INK)
    for axes, (title, column) in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        _draw_panel(axes, title, column, rows)
    figure.savefig(folder / "curves.png")
    return True


def _draw_panel(axes: Any, title: str, column: str, rows: list[dict[str, Any]]) -> None:
    """One curve: every logged value in light blue, their moving average in dark blue."""
    points = [(row["global_step"], row[column]) for row in rows if _is_finite(row.get(column))]
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    if not points:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="#888888")
        axes.set(xticks=[], yticks=[])
        return
    steps, values = zip(*points, strict=True)
    width = max(1, len(values) // 20)
    axes.plot(steps, values, color=RAW, linewidth=1.0, marker="o" if len(values) == 1 else "")
    axes.plot(steps, _moving_average(values, width), color=TREND, linewidth=1.6)
    axes.xaxis.set_major_formatter(lambda value, _: _short_number(value))
    axes.yaxis.set_major_formatter(lambda value, _: _short_number(value))
    axes.margins(x=0.01)
    if column in FROM_ZERO and min(values) >= 0:
        axes.set_ylim(bottom=0)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _moving_average(values: Sequence[float], width: int) -> list[float]:
    """Mean over `width` values around each, fewer at the ends."""
    sums = [0.0, *accumulate(values)]
    last = len(values)
    bounds = [(max(0, i - width // 2), min(last, i + width // 2 + 1)) for i in range(last)]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in bounds]


def _short_number(value: float) -> str:
    """1500000 -> 1.5M, 0.0025 -> 0.0025: tick labels that fit a small panel."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def _new_folder(root: Path, name: str) -> Path:
    """Make a folder that did not exist before: `name`, or `name-1`, `name-2`, ... where others were faster."""
    attempt = 0
    while True:
        folder = root / (f"{name}-{attempt}" if attempt else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not root.is_dir():
                raise ValueError(f"--run-root: '{root}' is not a folder") from error
            attempt += 1
        except OSError as error:
            raise ValueError(f"--run-root: cannot make a folder in '{root}': {error.strerror}") from error
        else:
            return folder


def _safe(text: str) -> str:
    """`text` as one part of a folder name: 'ppo_fast/CartPole-v1' -> 'ppo_fast-CartPole-v1'."""
    return re.sub(r"[^\w.+-]", "-", text)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _start_wandb(
    folder: Path, mode: str, project: str, entity: str | None, config: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """Start the W&B run: online where that is wanted and works, otherwise offline; None where W&B is off or broken."""
    mode = WANDB_OFF.get(os.environ.get("WANDB_MODE", ""), mode)
    if mode == "disabled":
        say("W&B: off, because WANDB_MODE=disabled")
        return None
    # wandb's own error reports hold up the end of the process for 10 to 25 s when its host accepts but does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        # Asked here and not left to init, which would stop a run at a terminal to prompt for a key.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise wandb.Error("no API key: `wandb login` stores one")
        return _init_wandb(folder, mode, project, entity, config, say)
    except Exception as error:
        if mode == "offline":
            say(f"warning: W&B does not start ({_one_line(error)}); the run folder stays complete")
            return None
        reason = _one_line(error)
    say(f"warning: W&B is not reachable ({reason}); this run is recorded offline")
    return _start_wandb(folder, "offline", project, entity, config, say)


def _init_wandb(
    folder: Path, mode: str, project: str, entity: str | None, config: Mapping[str, Any], say: Callable[[str], None]
) -> Any:
    """wandb.init without what costs time or waits without end, and global_step as the axis of every chart."""
    import wandb

    settings = wandb.Settings(
        init_timeout=WANDB_INIT_SECONDS,
        finish_timeout=WANDB_FINISH_SECONDS,
        finish_timeout_raises=True,
        console="off",
        disable_git=True,
        silent=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=project,
        entity=entity,
        name=folder.name,
        dir=str(folder),
        config=dict(config),
        mode="online" if mode == "online" else "offline",
        reinit="create_new",
        settings=settings,
    )
    run.define_metric("global_step")
    for pattern in STEPPED_BY_GLOBAL_STEP:
        run.define_metric(pattern, step_metric="global_step")
    say(f"W&B: {run.url}" if mode == "online" else f"W&B: offline; upload with `wandb sync {run.settings.sync_dir}`")
    return run
