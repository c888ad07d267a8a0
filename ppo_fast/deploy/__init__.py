"""A policy in somebody's own loop: what `ppo_fast.load` gives."""
