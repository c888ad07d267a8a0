"""Seconds of a run by name, from the start of its process on.

All are of a clock that only goes forward: setting the machine's clock, as summer time or a time server does, changes no
duration and ends no run.
"""

import os
import time


class Stopwatch:
    """Seconds by name: `lap(name)` books what has passed since the lap before, the first one since `started`.

    Args:
        started: when, by `time.monotonic`; now unless given.
    """

    def __init__(self, started: float | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.started = self._last = time.monotonic() if started is None else started

    @classmethod
    def since_process_start(cls) -> "Stopwatch":
        """Started when this process was, so that imports count too; now, where the system does not say.

        A shell may have become this process after it ran other programs, as `bash -c "pip install . && python ..."`
        does with the last of them. Those are not counted: it is started as long ago as it has used the processor.
        """
        if _has_run_others():
            return cls(time.monotonic() - time.process_time())
        try:
            with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
                ticks = int(stat.read().rpartition(")")[2].split()[19])
                age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return cls()
        return cls(time.monotonic() - age)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def lap(self, name: str) -> None:
        """Book the seconds since the last lap under `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def _has_run_others() -> bool:
    """Whether this process has waited for another one."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime > 0.0
