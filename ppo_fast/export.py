"""A policy as one file for other programs: ONNX, or torch's own .pt2.

    python -m ppo_fast.export                                      the newest run below runs/, as ONNX
    python -m ppo_fast.export runs/<run> --to torch --output policy.pt2
    python -m ppo_fast.export runs/<run> --sampled --with-value --with-log-prob

The file takes observations as the environment gives them, flat where they are no Box, any number of them, and gives
actions as the environment takes them: normaliser, clipping, bounds and masks are inside. Its inputs and outputs are
printed and stand in its metadata, as JSON under "ppo_fast". Before it is there it is run beside the policy on 1,000
observations.
"""

import contextlib
import dataclasses
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch.export import Dim

from ppo_fast import names
from ppo_fast.deploy import agents, exported
from ppo_fast.deploy.exported import ExportedPolicy, Port, Wanted
from ppo_fast.run import cli, policy_place
from ppo_fast.run.flags import plain_args
from ppo_fast.run.guest import guest
from ppo_fast.run.streams import say
from ppo_fast.writing import write_atomically

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
KEY = "ppo_fast"  # of the metadata
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


@dataclasses.dataclass
class Args:
    """What to export, and as what."""

    run: Annotated[str, tyro.conf.Positional] = "latest"
    """run folder, checkpoint or policy file, or `latest`"""
    run_root: str = "runs"
    """folder that `latest` looks in"""
    to: Literal["onnx", "torch"] = "onnx"
    """onnx (extra `export`), or torch: a .pt2 file of torch.export"""
    trust: bool = False
    """import the environment's module wherever it lies, even in a run folder; only older files need it at all"""
    output: str | None = None
    """the file; policy.onnx or policy.pt2 in the run folder unless given"""
    sampled: bool = False
    """actions drawn from the policy with random numbers that the file is given as `noise`; else the most likely ones"""
    with_value: bool = False
    """give the value of the observation, too"""
    with_log_prob: bool = False
    """give the log-probability of the action, too"""


@guest
def export(args: Args) -> dict[str, Any]:
    """Write the file; returns its "path" and what its metadata says. What can't be is a ValueError."""
    args = plain_args(args)
    if args.to == "onnx":
        _check_packages()
    path = policy_place.newest(Path(args.run_root)) if args.run == "latest" else Path(args.run)
    rebuilt = agents.rebuild(path, Path(args.run_root), args.trust)
    for note in rebuilt.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    policy = ExportedPolicy(rebuilt, Wanted(args.sampled, args.with_value, args.with_log_prob)).eval()
    target = Path(args.output) if args.output else rebuilt.saved.folder / f"policy{SUFFIXES[args.to]}"
    described = exported.metadata(policy, rebuilt)
    try:
        with _without_words():
            data, run = (_in_onnx if args.to == "onnx" else _in_torch)(policy, described)
    except Exception as problem:  # any, of an exporter that meets code of somebody's own
        raise ValueError(f"--to: this agent can't be exported: {names.kind_and_line(problem)}") from problem
    wrong = exported.difference(rebuilt, policy, run)
    if wrong is not None:
        raise ValueError(f"--to: the file would give something else than the policy: {wrong}")
    try:
        write_atomically(target, data)
    except OSError as problem:
        raise ValueError(f"--output: can't write {target}: {problem.strerror or problem}") from problem
    say(*_lines(policy, target))
    return {"path": str(target), **json.loads(described)}


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Without what exporters say of packages that a policy doesn't need, and of their own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_packages() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as problem:
        raise ValueError(
            f'--to: onnx needs packages that are missing ({problem}); pip install "ppo_fast[export]"'
        ) from problem
    del onnx, onnxruntime, onnxscript


def _example(policy: ExportedPolicy) -> tuple[torch.Tensor, ...]:
    """Inputs of two rows."""
    return tuple(torch.zeros(2, *port.shape) for port in policy.inputs)


def _in_torch(policy: ExportedPolicy, described: str) -> tuple[bytes, Run]:
    """The .pt2 file, and what runs it."""
    program = torch.export.export(policy, _example(policy), dynamic_shapes=_batches(policy))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: described})
    file.seek(0)
    loaded = torch.export.load(file).module()
    names = [port.name for port in policy.inputs]
    return file.getvalue(), lambda given: [x.numpy() for x in loaded(*(torch.tensor(given[name]) for name in names))]


def _in_onnx(policy: ExportedPolicy, described: str) -> tuple[bytes, Run]:
    """The .onnx file, and what runs it."""
    import onnxruntime

    program = torch.onnx.export(
        policy,
        _example(policy),
        dynamo=True,
        verbose=False,
        input_names=[port.name for port in policy.inputs],
        output_names=[port.name for port in policy.outputs],
        dynamic_shapes=_batches(policy),
    )
    assert program is not None
    program.model.metadata_props[KEY] = described
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda given: [np.asarray(x) for x in session.run(None, given)]


def _batches(policy: ExportedPolicy) -> dict[str, Any]:
    """That the first dimension of each input is the number of rows."""
    batch = Dim("batch", min=1)
    return {"inputs": tuple({0: batch} for _ in policy.inputs)}


def _lines(policy: ExportedPolicy, path: Path) -> list[str]:
    """What was written, as it is printed."""
    ports = [*(("input", port) for port in policy.inputs), *(("output", port) for port in policy.outputs)]
    return [f"exported     {path}", *(f"{kind:<11}  {_in_words(port)}" for kind, port in ports)]


def _in_words(port: Port) -> str:
    shape = ", ".join(["N", *map(str, port.shape)])
    return f"{port.name} ({shape}) {port.dtype}: {port.meaning}"


if __name__ == "__main__":
    cli.run(export, Args, __doc__)
