"""Colours and dashes of all pictures, for a light and for a dark ground.

The palette is Okabe and Ito's, which colour-blind readers can tell apart. Its order makes neighbours differ in
lightness, and each colour has dashes of its own, so that lines are told apart in grey, too.
"""

SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c564b")
SERIES_ON_DARK = ("#4aa8e8", "#f0b429", "#2fc79a", "#e39bc4", "#f0793a", "#8fd0f7", "#a8a8a8", "#c29087")
# As in an SVG file: lengths of strokes and gaps in line widths. "" is a solid line.
DASHES = ("", "6 2.5", "1.5 1.8", "7 2 1.5 2", "10 3", "3 2", "8 2 2 2 2 2", "2 4")

LOOKS = len(SERIES) * len(DASHES)  # lines that can be told apart by colour and dashes

# Texts; axes and what is said in passing; lines of the grid.
INK = "#333333"
FAINT = "#767676"
GRID = "#e5e5e5"

# The one line of curves.png: as logged, and smoothed. The two blues differ in lightness.
RAW = "#9ecae1"
TREND = "#08519c"


def colour(index: int) -> str:
    """The colour of the line `index`; they repeat after eight."""
    return SERIES[index % len(SERIES)]


def dashes(index: int) -> str:
    """The dashes of the line `index`, as an SVG file has them. No two of LOOKS lines share colour and dashes."""
    return DASHES[(index + index // len(SERIES)) % len(DASHES)]
