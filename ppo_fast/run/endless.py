"""Episodes that never end: without ends there are no returns, which a run says once."""

STEPS_WITHOUT_END = 1000  # of each environment, after which it is said


class FirstEnd:
    """Waits for the first episode to end, in environments whose steps nothing limits.

    Args:
        has_limit: whether the environments limit the steps of an episode; then there is nothing to wait for.
    """

    def __init__(self, has_limit: bool) -> None:
        self._waits = not has_limit

    def words(self, episodes: float, steps: int, is_last: bool) -> str | None:
        """What there is to say, once: that none has ended for long, or in the whole run.

        Args:
            episodes: that ended in this iteration.
            steps: of each environment so far.
            is_last: whether this is the run's last iteration.
        """
        if not self._waits or (not episodes and steps < STEPS_WITHOUT_END and not is_last):
            return None
        self._waits = False
        if episodes:
            return None
        what = f"no episode has ended in {steps:,} steps of each environment, which has no time limit"
        return f"{what}: without ends there are no returns; --env-kwargs max_episode_steps=1000 sets a limit"
