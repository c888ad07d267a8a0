"""EnvironmentFault: an environment that died, hung or raised, and which one of a vector it was."""


class EnvironmentFault(RuntimeError):
    """An environment died, hung or raised; nothing can be done with its vector but `restart` or `close`.

    Attributes:
        index: of the environment in its vector.
        reason: what happened, e.g. "died (exit code -9)", "gave no answer for 60 s", "raised ValueError: ...".
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)  # the arguments themselves: it travels between processes
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"environment {self.index} {self.reason}"
