"""Stable-Baselines3's PPO at the common work: its own vector environment, its defaults where `Work` fixes nothing.

With an LSTM it is sb3-contrib's RecurrentPPO, with one LSTM for actor and critic, and a layer of each behind it.
"""

import time

from benchmarks.work import Work, main, report


def measure(work: Work) -> dict:
    """Train and time the steady state: construction and first iteration excluded, nothing logged or evaluated."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]

    device = "cuda" if work.cuda and torch.cuda.is_available() else "cpu"
    env = make_vec_env("CartPole-v1", n_envs=work.num_envs, seed=work.seed)
    hidden = list(work.hidden)
    policy = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": torch.nn.Tanh, "ortho_init": True}
    packages = ["stable-baselines3", "torch", "gymnasium"]
    name = "MlpPolicy"
    if work.lstm:
        from sb3_contrib import RecurrentPPO as Algorithm  # pyright: ignore[reportMissingImports]

        policy |= {"lstm_hidden_size": work.lstm, "shared_lstm": True, "enable_critic_lstm": False}
        packages.append("sb3-contrib")
        name = "MlpLstmPolicy"
    else:
        from stable_baselines3 import PPO as Algorithm  # pyright: ignore[reportMissingImports]
    model = Algorithm(
        name,
        env,
        learning_rate=work.learning_rate,
        n_steps=work.num_steps,
        batch_size=work.minibatch_size,
        n_epochs=work.update_epochs,
        gamma=work.gamma,
        gae_lambda=work.gae_lambda,
        clip_range=work.clip_coef,
        ent_coef=work.ent_coef,
        vf_coef=work.vf_coef,
        max_grad_norm=work.max_grad_norm,
        policy_kwargs=policy,
        seed=work.seed,
        device=device,
        verbose=0,
    )
    never = work.iterations + 2
    model.learn(work.batch_size, log_interval=never)

    start = time.perf_counter()
    model.learn(work.measured_steps, log_interval=never, reset_num_timesteps=False)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start

    assert model.num_timesteps == work.batch_size + work.measured_steps
    return report(work, work.measured_steps / seconds, seconds, device, tuple(packages))


if __name__ == "__main__":
    main(measure)
