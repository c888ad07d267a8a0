"""`--verify`: the fast path of a program beside its eager one, instead of training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ppo_fast.engine import capture, verify
from ppo_fast.engine.distributed import Ranks

DIFFERENT_STATUS = 4


def compare_paths(
    args: Any, setup: Callable, make_iteration: Callable, names: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """The fast path beside the eager fp32 one, from equal state and noise; exit status 4 if they part."""
    print(f"compiling {args.env_id} ({capture.COMPILING}); then {args.verify} updates of both paths", flush=True)
    ranks = Ranks(device)
    exact = replace(args, precision="fp32", compile="off")
    fast = make_iteration(args, *setup(args, device), fast=True, ranks=ranks)
    eager = make_iteration(exact, *setup(exact, device), fast=False, ranks=ranks).exact()
    holds = verify.compare(fast, eager, args.verify, print, names, capture.ROUNDING[args.precision])
    return {"verified": holds, "exit_status": 0 if holds else DIFFERENT_STATUS}
