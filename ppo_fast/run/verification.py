"""`--verify`: the fast path of a program beside its eager one, instead of training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ppo_fast.engine import caches, plan, verify
from ppo_fast.engine.engine import Engine
from ppo_fast.engine.ranks import Ranks
from ppo_fast.run import randomness
from ppo_fast.run.streams import say

DIFFERENT_STATUS = 4


def compare_paths(args: Any, setup: Callable, make_iteration: Callable, device: torch.device) -> dict[str, Any]:
    """The fast path beside the eager fp32 one, from equal state and noise; exit status 4 if they part.

    Args:
        setup, make_iteration: a program's.

    Raises:
        ValueError: `--verify: ...` where nothing can be compiled.
    """
    no_room = caches.no_room_for_code()
    if no_room is not None:
        raise ValueError(f"--verify: torch.compile needs room for temporary files; {no_room}")
    say(*caches.for_compiled_code())
    say(f"compiling {args.env_id} ({plan.COMPILING}); then {args.verify} updates of both paths")
    ranks = Ranks(device)
    exact = replace(args, precision="fp32", compile="off")
    with randomness.seeded(args.seed):
        fast = make_iteration(args, *setup(args, device), Engine(args, ranks, "compiled"))
        eager = make_iteration(exact, *setup(exact, device), Engine(exact, ranks, "eager", exact=True))
        holds = verify.compare(fast, eager, args.verify, say, verify.ROUNDING[args.precision])
    return {"verified": holds, "exit_status": 0 if holds else DIFFERENT_STATUS}
