"""sbx's PPO (JAX, by the authors of Stable-Baselines3) at the common work: its own vector environment and defaults."""

import time

from benchmarks.work import Work, main, report


def measure(work: Work) -> dict:
    """Train and time the steady state: construction, jit and first iteration excluded, nothing logged or evaluated."""
    import jax  # pyright: ignore[reportMissingImports]
    from flax import linen  # pyright: ignore[reportMissingImports]
    from sbx import PPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]

    # JAX computes on the GPU whenever its CUDA build is installed; without --cuda it is told not to.
    if not work.cuda:
        jax.config.update("jax_platforms", "cpu")
    device = jax.default_backend()
    env = make_vec_env("CartPole-v1", n_envs=work.num_envs, seed=work.seed)
    hidden = list(work.hidden)
    model = PPO(
        "MlpPolicy",
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
        policy_kwargs={"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": linen.tanh, "ortho_init": True},
        seed=work.seed,
        verbose=0,
    )
    never = work.iterations + 2
    model.learn(work.batch_size, log_interval=never)

    start = time.perf_counter()
    model.learn(work.measured_steps, log_interval=never, reset_num_timesteps=False)
    jax.block_until_ready(model.policy.vf_state.params)
    seconds = time.perf_counter() - start

    assert model.num_timesteps == work.batch_size + work.measured_steps
    return report(work, work.measured_steps / seconds, seconds, device, ("sbx-rl", "jax", "gymnasium"))


if __name__ == "__main__":
    main(measure)
