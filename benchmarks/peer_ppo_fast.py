"""ppo_fast at the common work: `train(Args(...))` in this process, CartPole as tensors, compiled."""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.work import Work, main, report


def our_args(work: Work, run_root: str) -> Any:  # one program's Args
    """The work as flags; like the peers it keeps its learning rate, clips no value loss and stops no epoch early."""
    from ppo_fast import train, train_lstm

    flags: Callable[..., Any]
    if work.lstm:
        flags = partial(train_lstm.Args, hidden_sizes=work.hidden, lstm_hidden_size=work.lstm)
    else:
        flags = partial(train.Args, shared_backbone=False)
    return flags(
        env_id="CartPole-v1",
        backend="tensor",
        compile="on",
        cuda=work.cuda,
        seed=work.seed,
        num_envs=work.num_envs,
        num_steps=work.num_steps,
        total_timesteps=work.measured_steps,
        num_minibatches=work.num_minibatches,
        update_epochs=work.update_epochs,
        learning_rate=work.learning_rate,
        anneal_lr=False,
        clip_vloss=False,
        target_kl=None,
        norm_adv=True,
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        clip_coef=work.clip_coef,
        ent_coef=work.ent_coef,
        vf_coef=work.vf_coef,
        max_grad_norm=work.max_grad_norm,
        track=False,
        quiet=True,
        run_root=run_root,
    )


def measure(work: Work) -> dict:
    """Train and read the run's own SPS: its training loop, logging included, compile and warm-up excluded."""
    import torch

    from ppo_fast import train, train_lstm

    program: Any = train_lstm.train if work.lstm else train.train
    with tempfile.TemporaryDirectory() as run_root:
        result = program(our_args(work, run_root))
    assert result["global_step"] == work.measured_steps
    device = "cuda" if work.cuda and torch.cuda.is_available() else "cpu"
    return report(work, result["sps"], work.measured_steps / result["sps"], device, ("torch", "gymnasium"))


if __name__ == "__main__":
    main(measure)
