"""What a run left, read back and shown: run folders, curves, the HTML page, intervals."""
