"""Measurements of ppo_fast: how fast it is, and how that compares.

Run from the repository's root: `python -m benchmarks.<name>`.
"""
