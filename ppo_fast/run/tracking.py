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
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from ppo_fast import names
from ppo_fast.names import first_line, jsonable
from ppo_fast.run import identity, wandb_twin
from ppo_fast.run.board_twin import BoardTwin, summary_writer
from ppo_fast.run.lock import FolderLock
from ppo_fast.run.rows import Mark, Row, RowFile, Tally, read_metrics
from ppo_fast.run.twins import Guarded, Say
from ppo_fast.run.wandb_twin import WandbFlags
from ppo_fast.writing import own_folder, try_out, write_atomically

Draw = Callable[[Path, list[dict[str, Any]]], object]  # draws curves.png in the run folder from its rows


class Record(Protocol):
    """What training writes down, as it asks for it: `Run` keeps a folder, `NoRun` nothing.

    Leaving a `with` block closes it, after an exception as a run that failed.
    """

    @property
    def folder(self) -> Path:
        """The run's folder."""
        ...

    @property
    def wandb_id(self) -> str | None:
        """Of the W&B run, to go on with it later; None without one."""
        ...

    @property
    def run_id(self) -> str | None:
        """What its files know each other by; None where it leaves none."""
        ...

    def go_on(self, cut_back: Callable[[Path], object]) -> None:
        """Open a resumed run: until then nothing has been changed in its folder.

        Args:
            cut_back: called with the folder first; leaves it as it was with the checkpoint.

        Raises:
            ValueError: `--resume: ...`, the folder can't be written to.
        """
        ...

    def log(self, row: Row) -> None:
        """Append one row to metrics.jsonl, handed to the system when this returns, and to W&B and TensorBoard.

        "global_step" is among its names; numbers may be 0-dim tensors or NumPy's; NaN and infinities become null.
        """
        ...

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far."""
        ...

    def remember(self) -> Tally | None:
        """Note where metrics.jsonl ends now, for `rewind`; what a checkpoint keeps of its rows."""
        ...

    def rewind(self) -> None:
        """Take back the rows after the last `remember`, as a rollback does."""
        ...

    def log_video(self, path: Path, global_step: int) -> None:
        """Show an mp4 file in the W&B run, as "videos/<its name>". The file itself stays where it is."""
        ...

    def write_result(self, result: Row) -> object:
        """Write result.json as far as it is known; `finish` writes it anew."""
        ...

    def finish(self, result: Row, draw: Draw | None = None) -> None:
        """Write result.json, put its eval/* figures in the W&B summary, `draw` curves.png and close everything."""
        ...

    def close(self, exit_code: int = 0) -> None:
        """Close the files and the W&B run, which a non-zero `exit_code` marks as failed. May be called again."""
        ...

    def subfolder(self, name: str) -> Path:
        """The folder `name` of this run ("checkpoints", "videos"), made when it is first asked for."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.close(exit_code=0 if kind is None else 1)


class Run(Record):
    """One run: its folder, its rows on disk, and its twins in Weights & Biases and TensorBoard where they are wanted.

    Args:
        root: folder of all runs (`--run-root`). The run's own is `<root>/<env_id>__<exp_name>__<seed>__<unix time>`.
        config: everything that defines the run: flags, derived sizes, versions, device. For config.json and W&B.
        track: whether W&B gets the rows too.
        wandb: where and under which names; see `wandb_twin.start`.
        tensorboard: whether a TensorBoard event file in tensorboard/ gets the rows too.
        say: called with a line of text for every warning and for the place of the W&B run.
        resume_folder: a run folder to go on in, instead of a new one. It is locked, and nothing is changed there before
            `go_on`. Then config.json stays as it is, rows are appended to metrics.jsonl, which has been cut back to the
            checkpoint, and W&B and TensorBoard get those they lack.
        run_id: of the run in that folder; a new run makes its own.

    Raises:
        ValueError: `--run-root: ...`, `--resume: ...` or, without its package, `--tensorboard: ...`. Nothing has been
            written then.
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
        run_id: str | None = None,
    ) -> None:
        self._say = say
        self._disk_failed = False
        self._twins: list[Guarded] = []
        self._row_file: RowFile | None = None
        self._mark: Mark | None = None
        self._lock: FolderLock | None = None
        self._tensorboard = tensorboard
        self._wandb = (wandb or WandbFlags()) if track else None
        if tensorboard:
            summary_writer()  # raises before anything is written
        self._run_id = run_id or identity.new_id()
        self._config = {**jsonable(config), names.RUN_ID: self._run_id}
        if resume_folder is not None:
            self._folder = resume_folder
            self._take(resume_folder)
            return
        self._folder = _new_folder(Path(root), f"{_safe(env_id)}__{_safe(exp_name)}__{seed}__{int(time.time())}")
        try:
            self._lock = FolderLock(self._folder)
            self._write_json(names.CONFIG_FILE, self._config)
            self._open()
        except OSError as error:
            self.close(exit_code=1)
            shutil.rmtree(self._folder, ignore_errors=True)
            reason = error.strerror or error
            raise ValueError(f"--run-root: cannot write to {self._folder}: {reason}") from error

    @classmethod
    def from_flags(
        cls,
        config: Row,
        say: Say,
        resume_folder: Path | None = None,
        wandb_id: str | None = None,
        run_id: str | None = None,
    ) -> Self:
        """The run of a program whose `config` holds its flags under their own names. Resumed with the last three."""
        flags = {name: config[f"wandb_{name}"] for name in WandbFlags._fields if name != "run_id"}
        return cls(
            root=config["run_root"],
            env_id=config["env_id"],
            exp_name=config["exp_name"],
            seed=config["seed"],
            config=config,
            track=config["track"],
            wandb=WandbFlags(**flags, run_id=wandb_id),
            tensorboard=config["tensorboard"],
            say=say,
            resume_folder=resume_folder,
            run_id=run_id,
        )

    @property
    def folder(self) -> Path:
        """The run's folder, which did not exist before unless the run is resumed."""
        return self._folder

    @property
    def run_id(self) -> str:
        return self._run_id

    def go_on(self, cut_back: Callable[[Path], object]) -> None:
        try:
            cut_back(self.folder)
            self._complete_config()
            self._open()
        except OSError as error:
            raise ValueError(f"--resume: cannot write to {self.folder}: {error.strerror or error}") from error

    def log(self, row: Row) -> None:
        clean = jsonable(row)
        self._put_back()
        with self._disk_may_fail():
            self._open_rows.append(clean)
        self._log_to_twins(clean)

    def rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder)

    def remember(self) -> Tally:
        self._mark = self._open_rows.mark()
        return self._open_rows.tally()

    def rewind(self) -> None:
        assert self._mark is not None, "remember notes where to"
        with self._disk_may_fail():
            self._open_rows.rewind(self._mark)

    def log_video(self, path: Path, global_step: int) -> None:
        for twin in self._twins:
            twin.log_video(path, global_step)

    def write_result(self, result: Row) -> dict[str, Any]:
        self._put_back()
        clean = {**jsonable(result), names.RUN_ID: self._run_id}
        self._write_json(names.RESULT_FILE, clean)
        return clean

    def finish(self, result: Row, draw: Draw | None = None) -> None:
        clean = self.write_result(result)
        for twin in self._twins:
            twin.finish(clean)
        try:
            if draw is not None:
                draw(self.folder, self.rows())
        except Exception as error:  # a missing font or a full disk must not fail a run that has ended well
            self._say(f"warning: curves.png was not drawn: {first_line(error)}")
        self.close()

    def close(self, exit_code: int = 0) -> None:
        if self._row_file is not None:
            self._row_file.close()
        for twin in self._twins:
            twin.close(exit_code)
        if self._lock is not None:
            self._lock.release()

    def subfolder(self, name: str) -> Path:
        return own_folder(self.folder / name)

    @property
    def _open_rows(self) -> RowFile:
        assert self._row_file is not None, "a resumed run is opened by go_on"
        return self._row_file

    def _put_back(self) -> None:
        """Make up for a folder or a metrics.jsonl that was deleted, moved or replaced while training went on."""
        with self._disk_may_fail():
            if not self._open_rows.put_back():
                return
            what = self.folder / names.METRICS_FILE
            if not (self.folder / names.CONFIG_FILE).exists():
                what = self.folder
                write_json(self.folder / names.CONFIG_FILE, self._config)
            self._lock_anew()
            self._say(f"warning: {what} had gone while training went on; it is there again")

    def _lock_anew(self) -> None:
        """Lock a folder that may have taken the place of the one that was locked."""
        old = self._lock
        with suppress(BlockingIOError):  # it is the same one
            self._lock = FolderLock(self.folder)
            if old is not None:
                old.release()

    def _take(self, folder: Path) -> None:
        """Lock a folder that is there, and see that it can be written to. ValueError("--resume: ...") otherwise."""
        try:
            self._lock = FolderLock(folder)
            try_out(folder)
            if (folder / "checkpoints").exists():
                try_out(folder / "checkpoints")
        except BlockingIOError as error:
            raise ValueError(f"--resume: {folder} is in use: another process trains there") from error
        except OSError as error:
            self.close(exit_code=1)
            raise ValueError(f"--resume: cannot write to {folder}: {error.strerror or error}") from error

    def _open(self) -> None:
        """Open metrics.jsonl and the twins, which get the rows that are there."""
        self._row_file = RowFile(self.folder / names.METRICS_FILE)
        if self._lock is not None and not self._lock.is_held:
            self._say(f"warning: {self.folder} can't be locked here: start no second process in it")
        if self._tensorboard:
            self._twins.append(Guarded(BoardTwin(own_folder(self.folder / "tensorboard")), self._say))
        if self._wandb is not None:
            self._track(self._wandb, self._config)
        for row in self.rows():
            self._log_to_twins(row)

    def _complete_config(self) -> None:
        """Give config.json the run's id where it has none, or write it where it is missing."""
        before = identity.config_of(self.folder)
        if before is None or identity.id_in(before) is None:
            whole = self._config if before is None else {**before, names.RUN_ID: self._run_id}
            write_json(self.folder / names.CONFIG_FILE, jsonable(whole))

    def _track(self, flags: WandbFlags, config: Row) -> None:
        """Start the W&B run, if W&B can be started at all."""
        twin = wandb_twin.start(self.folder, flags, config, self._say)
        if twin is not None:
            self.wandb_id = twin.run.id
            self._twins.append(Guarded(twin, self._say))

    def _log_to_twins(self, row: Row) -> None:
        for twin in self._twins:
            twin.log(row)

    def _write_json(self, name: str, content: Any) -> None:
        with self._disk_may_fail():
            write_json(self.folder / name, content)

    @contextmanager
    def _disk_may_fail(self) -> Iterator[None]:
        """What the disk refuses inside is said, the first time, and training goes on."""
        try:
            yield
        except OSError as error:
            if not self._disk_failed:
                self._say(f"warning: cannot write to {self.folder} ({error}); training goes on, its record has gaps")
            self._disk_failed = True


class NoRun(Record):
    """Leaves nothing behind: for every process but the first of a distributed run."""

    wandb_id: str | None = None
    run_id: str | None = None

    def go_on(self, cut_back: Callable[[Path], object]) -> None:
        pass

    @property
    def folder(self) -> Path:
        raise RuntimeError("this process leaves no run folder")

    def log(self, row: Row) -> None:
        pass

    def rows(self) -> list[dict[str, Any]]:
        return []

    def remember(self) -> None:
        pass

    def rewind(self) -> None:
        pass

    def log_video(self, path: Path, global_step: int) -> None:
        pass

    def write_result(self, result: Row) -> None:
        pass

    def finish(self, result: Row, draw: Draw | None = None) -> None:
        pass

    def close(self, exit_code: int = 0) -> None:
        pass

    def subfolder(self, name: str) -> Path:
        return self.folder / name


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON so that `path` holds all of it or, after an OSError, what it held before."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


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


def _safe(text: str) -> str:
    """As one part of a folder name: 'ppo_fast/CartPole-v1' becomes 'ppo_fast-CartPole-v1'."""
    return re.sub(r"[^\w.+-]", "-", text)
