"""What surrounds training: command line, presets, session, checkpoints, stops, faults, console, tracking, videos."""
