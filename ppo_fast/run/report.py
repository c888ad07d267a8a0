"""One `log` call for a program: each row goes to the diagnostics, the run folder and the screen.

    report = Report(console, run, health, facts)
    report.log(row)
    report.finish(result)

The three are handed in (`console.Console`, `tracking.Run`, `health.Health`); this module only connects them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT_IF_NAN = ("charts/episodic_return", "charts/episodic_length")


class Report:
    """What a program says and keeps of one run.

    Args:
        console, run, health: as above; console and run are opened and closed by the program.
        facts: what config.json holds: flags, "backend_used", "parameters", "num_iterations", "batch_size",
            "device_in_words", "execution", "program", "world_size".
    """

    def __init__(self, console: Any, run: Any, health: Any, facts: Mapping[str, Any]) -> None:
        self.console, self.run, self.health = console, run, health
        count, size = facts["num_iterations"], facts["batch_size"]
        iterations = f"{count:,} iteration{'s' * (count > 1)} of {size:,} steps, {count * size:,} in all"
        self.launch = f"{'python' if facts['world_size'] == 1 else 'torchrun ...'} -m {facts['program']}"
        console.start(
            [
                f"environments  {facts['num_envs']} x {facts['env_id']}, backend {facts['backend_used']}",
                f"agent         {facts['parameters']:,} parameters; {iterations}",
                f"device        {facts['device_in_words']}; {facts['execution']}",
                f"run folder    {run.folder}",
            ]
        )

    def log(self, row: Mapping[str, float]) -> None:
        """Check, write and show the row of one iteration.

        Raises:
            FloatingPointError: with the cause in a line, when something is NaN or infinite. The row has been written.
        """
        row = {name: x for name, x in row.items() if name not in ABSENT_IF_NAN or not math.isnan(x)}
        advice = self.health.update(row)
        self.run.log({**row, **self.health.metrics()})
        self.console.update(row, advice)
        for item in advice:
            if item.severity == "stop":
                raise FloatingPointError(item.text)

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in the rows that a resumed run has already written, as if they had been logged here."""
        for row in rows:
            self.console.update(row, self.health.update(row), draw=False)

    def say(self, lines: Sequence[str]) -> None:
        """Print lines of their own."""
        for line in lines:
            self.console.message(line)

    def finish(self, result: Mapping[str, Any], speed: Sequence[str] = (), draw: Any = None) -> None:
        """Write the result and, with `draw`, the curves, and print the summary, with lines about its speed."""
        self.run.finish(result, draw)
        folder, advice = self.run.folder, self.health.summary()
        commands = [f"{self.launch} --resume {folder}"] if "stopped" in result else []
        self.console.summary(result, advice, folder, commands, speed)
