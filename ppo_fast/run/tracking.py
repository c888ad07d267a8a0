"""The run folder, and the same rows in Weights & Biases and TensorBoard: what a run leaves behind.

    with Run(root="runs", env_id="CartPole-v1", exp_name="train", seed=1, config=flags, say=console.message) as run:
        run.log({"global_step": 8192, "charts/SPS": 231042.0, ...})   # one row per logged iteration
        run.finish({"eval/mean_return": 500.0, ...}, plot_curves)     # result.json, curves.png, end of the W&B run

The folder is the record: it is complete without an account or a network, every row is written before `log` returns,
and W&B gets the same rows under the same names. Neither a full disk nor an unreachable W&B stops a training run; each
is said once, through `say`.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import ppo_fast

STEPPED_BY_GLOBAL_STEP = ("charts/*", "losses/*", "time/*", "health/*", "eval/*")
WANDB_INIT_SECONDS = 6.0  # with wandb's own start-up and the offline run after it, a fallback stays under 10 s
WANDB_FINISH_SECONDS = 8.0
WANDB_UPLOAD_SECONDS = 60.0  # instead of them where files are uploaded, which the user asked for
WANDB_OFF = {"disabled": "disabled", "offline": "offline", "dryrun": "offline"}
Row = Mapping[str, Any]  # names to numbers, or the flags of a run
Say = Callable[[str], None]
Draw = Callable[[Path, list[dict[str, Any]]], object]  # draws curves.png in the run folder from its rows


class WandbFlags(NamedTuple):
    """What the flags say of the W&B run; `run_id` is that of the run to go on with, None for a new one."""

    mode: str = "online"
    project_name: str = "ppo_fast"
    entity: str | None = None
    group: str | None = None
    name: str | None = None  # None: the run folder's
    tags: tuple[str, ...] = ()
    notes: str | None = None
    artifacts: bool = False
    run_id: str | None = None


class Run:
    """One run: its folder, its rows on disk, and its twins in Weights & Biases and TensorBoard where they are wanted.

    Args:
        root: folder of all runs (`--run-root`). The run's own is `<root>/<env_id>__<exp_name>__<seed>__<unix time>`.
        config: everything that defines the run: flags, derived sizes, versions, device. For config.json and W&B.
        track: whether W&B gets the rows too.
        wandb: where and under which names. The environment variable WANDB_MODE can only take away: "offline" or
            "disabled" there win over `mode`.
        tensorboard: whether a TensorBoard event file in tensorboard/ gets the rows too.
        say: called with a line of text for every warning and for the place of the W&B run.
        resume_folder: a run folder to go on in, instead of a new one: config.json stays as it is, rows are appended to
            metrics.jsonl, which the caller has cut back to the checkpoint. W&B and TensorBoard get those they lack.

    Attributes:
        folder: the run's folder, which did not exist before unless the run is resumed.
        wandb_id: of the W&B run, to go on with it later; None without one.

    Raises:
        ValueError: `--run-root: ...` or, without its package, `--tensorboard: ...`. Nothing has been written then.
    """

    wandb_id: str | None = None

    def __init__(
        self,
        *,
        root: str | Path,
        env_id: str,
        exp_name: str,
        seed: int,
        config: Row,
        track: bool = False,
        wandb: WandbFlags | None = None,
        tensorboard: bool = False,
        say: Say = print,
        resume_folder: Path | None = None,
    ) -> None:
        self._say = say
        self._disk_failed = False
        self._wandb_run = self._board = None
        self._wandb_step = self._wandb_had = -1
        self._artifacts, config = bool(wandb and wandb.artifacts), jsonable(config)
        board = _tensorboard_writer() if tensorboard else None
        if resume_folder is None:
            self.folder = _new_folder(Path(root), f"{_safe(env_id)}__{_safe(exp_name)}__{seed}__{int(time.time())}")
            self._write_whole("config.json", config)
        else:
            self.folder = resume_folder
        self._open_rows()
        if track:
            self._wandb_run = _start_wandb(self.folder, wandb or WandbFlags(), config, say)
        if self._wandb_run is not None:
            self.wandb_id = self._wandb_run.id
            self._wandb_had = self._wandb_step = self._wandb_run.starting_step - 1
        if board is not None:  # purge_step=0 hides what an earlier process wrote there
            self._board = board(str(self.folder / "tensorboard"), purge_step=0)
        for row in self.rows():
            self._log_twins(row)

    @classmethod
    def from_flags(cls, config: Row, say: Say, resume_folder: Path | None = None, wandb_id: str | None = None) -> Self:
        """The run of a program whose `config` holds its flags under their own names. Resumed with the last two."""
        flags = {name: config[f"wandb_{name}"] for name in WandbFlags._fields if name != "run_id"}
        wandb = WandbFlags(**flags, run_id=wandb_id)
        same = {name: config[name] for name in ("env_id", "exp_name", "seed", "track", "tensorboard")}
        return cls(root=config["run_root"], config=config, say=say, wandb=wandb, resume_folder=resume_folder, **same)

    def log(self, row: Row) -> None:
        """Append one row to metrics.jsonl, handed to the system when this returns, and to W&B and TensorBoard.

        "global_step" is among its names; numbers may be 0-dim tensors or NumPy's; NaN and infinities become null.
        """
        clean = jsonable(row)
        self._append(json.dumps(clean, allow_nan=False).encode() + b"\n")
        self._log_twins(clean)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far."""
        return read_metrics(self.folder)

    def rewind(self, cut: Callable[[Path], object]) -> None:
        """Let `cut(path)` shorten metrics.jsonl, as a rollback does, and go on behind what it leaves."""
        self._metrics.close()
        try:
            cut(self.folder / "metrics.jsonl")
        except OSError as error:
            self._warn_disk(error)
        self._open_rows()

    def log_video(self, path: Path, global_step: int) -> None:
        """Show an mp4 file in the W&B run, as "videos/<its name>". The file itself stays where it is."""
        if self._wandb_run is not None:
            import wandb

            self._wandb_step += 1
            row = {"global_step": global_step}
            self._wandb_call(lambda run: run.log({**row, f"videos/{path.stem}": wandb.Video(str(path))}))

    def finish(self, result: Row, draw: Draw | None = None) -> None:
        """Write result.json, put its eval/* figures in the W&B summary, `draw` curves.png and close everything."""
        clean = jsonable(result)
        self._write_whole("result.json", clean)
        self._wandb_call(lambda run: run.summary.update({k: v for k, v in clean.items() if k.startswith("eval/")}))
        if self._artifacts:
            self._wandb_call(lambda run: _log_policy(run, self.folder))
        try:
            if draw is not None:
                draw(self.folder, self.rows())
        except Exception as error:  # a missing font or a full disk must not fail a run that has ended well
            self._say(f"warning: curves.png was not drawn: {_one_line(error)}")
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """Close the files and the W&B run, which a non-zero `exit_code` marks as failed. May be called again."""
        self._metrics.close()
        self._call("TensorBoard", "_board", lambda board: board.close())
        self._wandb_call(lambda run: run.finish(exit_code=exit_code))
        self._wandb_run = self._board = None

    def subfolder(self, name: str) -> Path:
        """The folder `name` of this run ("checkpoints", "videos"), made when it is first asked for."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    def _open_rows(self) -> None:
        # Unbuffered: a row is one write(2), so a killed process loses none, and a failed one is not tried again later.
        self._metrics = open(self.folder / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
        self._half_row = (self.folder / "metrics.jsonl").read_bytes()[-1:] not in (b"", b"\n")

    def _log_twins(self, row: Row) -> None:
        self._call("TensorBoard", "_board", lambda board: _add_row(board, row))
        at = row.get("global_step") or 0
        if self._wandb_run is not None and at > self._wandb_had:
            # W&B drops a row whose step is not above the last one; without a step it takes the next free one.
            step = at if at > self._wandb_step else None
            self._wandb_step = max(at, self._wandb_step + 1)
            self._wandb_call(lambda run: run.log(row, step=step, commit=True))

    def _append(self, line: bytes) -> None:
        try:
            written = self._metrics.write(b"\n" + line if self._half_row else line)
        except OSError as error:
            return self._warn_disk(error)
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
        self._call("W&B", "_wandb_run", call)

    def _call(self, name: str, attribute: str, call: Callable[[Any], object]) -> None:
        """Neither W&B nor TensorBoard raises into training: the first failure is said, and ends it for this run."""
        target = getattr(self, attribute)
        if target is None:
            return
        try:
            call(target)
        except Exception as error:
            self._say(f"warning: {name} failed ({_one_line(error)}); the run folder stays complete")
            setattr(self, attribute, None)


class NoRun(Run):
    """Leaves nothing behind: for every rank but the first of a distributed run. `folder` is None."""

    def __init__(self) -> None:
        self.folder = None  # pyright: ignore[reportAttributeAccessIssue]

    def log(self, row: Row) -> None: ...
    def rows(self) -> list[dict[str, Any]]:
        return []

    def rewind(self, cut: Callable[[Path], object]) -> None: ...
    def log_video(self, path: Path, global_step: int) -> None: ...
    def finish(self, result: Row, draw: Draw | None = None) -> None: ...
    def close(self, exit_code: int = 0) -> None: ...


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
    # Tensors, NumPy arrays and scalars; else anything.
    return jsonable(value.tolist()) if hasattr(value, "tolist") else str(value)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON so that `path` holds all of it or, after an OSError, what it held before."""
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
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _new_folder(root: Path, name: str) -> Path:
    """Make a folder that did not exist before: `name`, or `name-1`, `name-2`, ... where others were faster."""
    attempt = 0
    while True:
        folder = root / (f"{name}-{attempt}" if attempt else name)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not root.is_dir():
                raise ValueError(f"--run-root: '{root}' is not a folder") from error
            attempt += 1
        except OSError as error:
            raise ValueError(f"--run-root: cannot make a folder in '{root}': {error.strerror}") from error


def _safe(text: str) -> str:  # as one part of a folder name: 'ppo_fast/CartPole-v1' -> 'ppo_fast-CartPole-v1'
    return re.sub(r"[^\w.+-]", "-", text)


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tensorboard_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter
    except ImportError as problem:
        raise ValueError('--tensorboard: needs tensorboard: pip install "ppo_fast[tensorboard]"') from problem


def _add_row(board: Any, row: Row) -> None:
    """One record for a row, where SummaryWriter.add_scalar takes one for each number."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    numbers = [(name, x) for name, x in row.items() if isinstance(x, (int, float)) and name != "global_step"]
    values = [Summary.Value(tag=name, simple_value=x) for name, x in numbers]
    board.file_writer.add_summary(Summary(value=values), row["global_step"])


def _start_wandb(folder: Path, flags: WandbFlags, config: Row, say: Say) -> Any:
    """Start the W&B run: online where that is wanted and works, otherwise offline; None where W&B is off or broken."""
    mode = WANDB_OFF.get(os.environ.get("WANDB_MODE", ""), flags.mode)
    if mode == "disabled":
        return say("W&B: off, because WANDB_MODE=disabled")
    # wandb's own error reports hold up the end of the process for 10 to 25 s when its host accepts but does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        # Asked here and not left to init, which would stop a run at a terminal to prompt for a key.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise wandb.Error("no API key: `wandb login` stores one")
        return _init_wandb(folder, flags._replace(mode=mode), config, say)
    except Exception as error:
        if mode == "offline":
            return say(f"warning: W&B does not start ({_one_line(error)}); the run folder stays complete")
        reason = _one_line(error)
    say(f"warning: W&B is not reachable ({reason}); this run is recorded offline")
    return _start_wandb(folder, flags._replace(mode="offline"), config, say)


def _init_wandb(folder: Path, flags: WandbFlags, config: Row, say: Say) -> Any:
    """wandb.init without what costs time or waits without end, and global_step as the axis of every chart."""
    import wandb

    online = flags.mode == "online"
    settings = wandb.Settings(
        init_timeout=WANDB_INIT_SECONDS if flags.mode == "online" else WANDB_UPLOAD_SECONDS,
        finish_timeout=WANDB_UPLOAD_SECONDS if flags.artifacts else WANDB_FINISH_SECONDS,
        finish_timeout_raises=True,
        console="off",
        disable_git=True,
        silent=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=flags.project_name,
        entity=flags.entity,
        group=flags.group,
        name=flags.name or folder.name,
        tags=list(flags.tags) or None,
        notes=flags.notes,
        id=flags.run_id,
        resume="allow" if flags.run_id and online else None,
        dir=str(folder),
        config=dict(config),
        mode="online" if online else "offline",
        reinit="create_new",
        settings=settings,
    )
    run.define_metric("global_step")
    for pattern in STEPPED_BY_GLOBAL_STEP:
        run.define_metric(pattern, step_metric="global_step")
    if flags.artifacts:
        run.log_code(root=str(Path(ppo_fast.__file__).parent))
    say(f"W&B: {run.url if online else f'offline; upload with `wandb sync {run.settings.sync_dir}`'}")
    return run


def _log_policy(run: Any, folder: Path) -> None:
    """The policy's weights and the newest checkpoint as one artifact, uploaded before the run ends."""
    import wandb

    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime)
    artifact = wandb.Artifact(f"policy-{run.id}", type="model")
    for path in (folder / "policy.safetensors", *checkpoints[-1:]):
        artifact.add_file(str(path))
    run.log_artifact(artifact)
