"""One self-contained HTML file: pictures, tables and videos inline, light and dark, readable on a phone.

Nothing is loaded from elsewhere and no script runs. Texts are escaped here; what is called `html` already is markup.
"""

import base64
import html as markup
import re
from collections.abc import Mapping, Sequence

# Okabe and Ito's palette, which colour-blind readers can tell apart, ordered so that neighbours differ in lightness;
# and the same hues for a dark ground.
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c564b")
SERIES_ON_DARK = ("#4aa8e8", "#f0b429", "#2fc79a", "#e39bc4", "#f0793a", "#8fd0f7", "#a8a8a8", "#c29087")
DASHES = ("", "6 2.5", "1.5 1.8", "7 2 1.5 2", "10 3", "3 2", "8 2 2 2 2 2", "2 4")
INK, FAINT, GRID = "#333333", "#767676", "#e5e5e5"

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f8; --ink: #23272b; --faint: #646b72;
  --grid: #e1e4e7; --warn: #9a5b00; --good: #1f7a4d; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --panel: #1d2125; --ink: #e3e6e8; --faint: #9aa2a9;
  --grid: #343a40; --warn: #f0b429; --good: #5fce97; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 78rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; } .faint { color: var(--faint); font-size: .875rem; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin: 1rem 0; }
.tile { background: var(--panel); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .6rem 0; font-size: .875rem; }
.legend span { overflow-wrap: anywhere; } .legend svg { vertical-align: middle; margin-right: .4rem; }
.panels { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.panels svg { width: 100%; height: auto; display: block; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: .25rem .8rem; margin: 0 .3rem .6rem 0; border-radius: 1rem;
  cursor: pointer; background: var(--panel); color: var(--faint); font-size: .875rem; }
.tabs > input:checked + label { color: var(--ground); background: var(--ink); }
.tabs > input:focus-visible + label { outline: 2px solid var(--s0); outline-offset: 2px; }
.tabs > div { display: none; }
.tabs > input:nth-of-type(1):checked ~ div:nth-of-type(1),
.tabs > input:nth-of-type(2):checked ~ div:nth-of-type(2) { display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--faint); font-weight: 600; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
td.short { white-space: nowrap; } tr > :first-child { min-width: 7rem; }
summary { cursor: pointer; margin: .5rem 0; } ul { padding-left: 1.2rem; margin: .3rem 0; }
.warn::marker { content: "!  "; color: var(--warn); font-weight: 700; }
.good::marker { content: "\\2713  "; color: var(--good); }
.videos { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; } video { width: 100%; border-radius: .5rem; background: var(--panel); }
"""


def text(value: object) -> str:
    """A value as escaped text."""
    return markup.escape(str(value))


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file: a heading, and sections of (heading, html); sections without html are left out."""
    style = STYLE.replace("LIGHT", _colours(SERIES)).replace("DARK", _colours(SERIES_ON_DARK))
    body = "".join(f"<section><h2>{text(name)}</h2>{html}</section>\n" for name, html in sections if html)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<h1>{text(title)}</h1>\n<p class="faint">{text(subtitle)}</p>\n{body}</body>\n</html>\n'
    )


def _colours(series: Sequence[str]) -> str:
    return "".join(f"--s{i}: {colour}; " for i, colour in enumerate(series))


def themed(svg: str, label: str) -> str:
    """A picture drawn in SERIES, INK, FAINT and GRID as inline markup that follows the page's light or dark colours.

    Args:
        svg: a whole SVG file with its colours in lower case, as matplotlib writes them.
        label: what the picture shows, for those who can't see it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    names = {colour: f"s{i}" for i, colour in enumerate(SERIES)} | {INK: "ink", FAINT: "faint", GRID: "grid"}
    for colour, name in names.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text(label)}" ', 1)


def legend(labels: Sequence[str]) -> str:
    """Each label beside a stroke in its colour and dashes."""
    entries = []
    for i, label in enumerate(labels):
        line = f'stroke="var(--s{i % len(SERIES)})" stroke-width="3" stroke-dasharray="{DASHES[i % len(DASHES)]}"'
        stroke = f'<svg width="34" height="10" aria-hidden="true"><line x1="0" y1="5" x2="34" y2="5" {line}/></svg>'
        entries.append(f"<span>{stroke}{text(label)}</span>")
    return f'<div class="legend">{"".join(entries)}</div>'


def panels(pictures: Sequence[str]) -> str:
    """Pictures side by side, as many as fit."""
    return f'<div class="panels">{"".join(f"<div>{picture}</div>" for picture in pictures)}</div>'


def tabs(name: str, parts: Mapping[str, str]) -> str:
    """Up to two parts (label to html), of which one shows; without a script."""
    assert len(parts) <= 2
    buttons = "".join(
        f'<input type="radio" name="{name}" id="{name}{i}"{" checked" if i == 0 else ""}>'
        f'<label for="{name}{i}">{text(label)}</label>'
        for i, label in enumerate(parts)
    )
    return f'<div class="tabs">{buttons}{"".join(f"<div>{html}</div>" for html in parts.values())}</div>'


def tiles(figures: Mapping[str, str]) -> str:
    """A few figures, large, with their names."""
    boxes = (
        f'<div class="tile"><b>{text(x)}</b><span class="faint">{text(name)}</span></div>'
        for name, x in figures.items()
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways where it is too wide."""
    first = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: object) -> str:
    short = ' class="short"' if len(str(content)) <= 20 else ""
    return f"<td{short}>{text(content)}</td>"


def fold(summary: str, html: str, opened: bool = False) -> str:
    """html that is shown on a click."""
    return f"<details{' open' if opened else ''}><summary>{text(summary)}</summary>{html}</details>"


def findings(lines: Sequence[str], good: str) -> str:
    """Lines of advice, or `good` where there is none."""
    items = "".join(f'<li class="warn">{text(line)}</li>' for line in lines) or f'<li class="good">{text(good)}</li>'
    return f"<ul>{items}</ul>"


def videos(films: Mapping[str, bytes]) -> str:
    """mp4 files by caption, inline."""
    figures = (
        f'<figure><video controls muted loop playsinline preload="metadata" src="data:video/mp4;base64,'
        f'{base64.b64encode(film).decode()}"></video><figcaption class="faint">{text(caption)}</figcaption></figure>'
        for caption, film in films.items()
    )
    return f'<div class="videos">{"".join(figures)}</div>' if films else ""
