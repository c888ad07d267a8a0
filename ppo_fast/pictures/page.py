"""One self-contained HTML file: pictures, tables and videos inline, light and dark, readable on a phone.

Nothing is loaded from elsewhere and no script runs. Texts are escaped here; what is called `html` already is markup.
"""

import base64
import html as markup
import re
from collections.abc import Mapping, Sequence
from string import Template
from typing import NamedTuple

from ppo_fast import names
from ppo_fast.pictures import colours

SHORT_CELL = 20  # characters, up to which a cell is not broken into lines

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
<p class="faint">$subtitle</p>
$sections</body>
</html>
""")

# --s0 to --s7 are the colours of the lines.
STYLE = Template("""
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f6f7f8; --ink: #23272b; --faint: #646b72;
  --grid: #e1e4e7; --warn: #9a5b00; --good: #1f7a4d; $light }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --panel: #1d2125; --ink: #e3e6e8; --faint: #9aa2a9;
  --grid: #343a40; --warn: #f0b429; --good: #5fce97; $dark } }
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
""")


class Section(NamedTuple):
    """A part of the page."""

    heading: str
    html: str


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file. Sections without html are left out."""
    style = STYLE.substitute(light=_variables(colours.SERIES), dark=_variables(colours.SERIES_ON_DARK))
    body = ""
    for section in sections:
        if section.html:
            body += f"<section><h2>{text(section.heading)}</h2>{section.html}</section>\n"
    return PAGE.substitute(title=text(title), subtitle=text(subtitle), style=style, sections=body)


def _variables(series: Sequence[str]) -> str:
    return "".join(f"--s{i}: {colour}; " for i, colour in enumerate(series))


def text(value: object) -> str:
    """A value as escaped text."""
    return markup.escape(names.printable(value))


def themed(svg: str, label: str) -> str:
    """A picture drawn in the colours of `colours` as inline markup that follows the page's light or dark ones.

    Args:
        svg: a whole SVG file with its colours in lower case, as matplotlib writes them.
        label: what the picture shows, for those who can't see it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    variables = {colours.INK: "ink", colours.FAINT: "faint", colours.GRID: "grid"}
    for i, colour in enumerate(colours.SERIES):
        variables[colour] = f"s{i}"
    for colour, name in variables.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text(label)}" ', 1)


def legend(labels: Sequence[str]) -> str:
    """Each label beside a stroke in its colour and dashes."""
    entries = ""
    for i, label in enumerate(labels):
        look = f'stroke="var(--s{i % len(colours.SERIES)})" stroke-width="3" stroke-dasharray="{colours.dashes(i)}"'
        line = f'<line x1="0" y1="5" x2="34" y2="5" {look}/>'
        stroke = f'<svg width="34" height="10" aria-hidden="true">{line}</svg>'
        entries += f"<span>{stroke}{text(label)}</span>"
    return f'<div class="legend">{entries}</div>'


def panels(pictures: Sequence[str]) -> str:
    """Pictures side by side, as many as fit."""
    boxes = "".join(f"<div>{picture}</div>" for picture in pictures)
    return f'<div class="panels">{boxes}</div>'


def tabs(name: str, parts: Mapping[str, str]) -> str:
    """Up to two parts (label to html), of which one shows; without a script.

    Args:
        name: of this group of tabs, which no other on the page has.
        parts: the first of them shows until another is chosen.
    """
    assert len(parts) <= 2
    buttons = ""
    for i, label in enumerate(parts):
        checked = " checked" if i == 0 else ""
        buttons += f'<input type="radio" name="{name}" id="{name}{i}"{checked}>'
        buttons += f'<label for="{name}{i}">{text(label)}</label>'
    boxes = "".join(f"<div>{html}</div>" for html in parts.values())
    return f'<div class="tabs">{buttons}{boxes}</div>'


def tiles(figures: Mapping[str, str]) -> str:
    """A few figures, large, with their names."""
    boxes = ""
    for name, figure in figures.items():
        boxes += f'<div class="tile"><b>{text(figure)}</b><span class="faint">{text(name)}</span></div>'
    return f'<div class="tiles">{boxes}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways where it is too wide."""
    first = "".join(f"<th>{text(name)}</th>" for name in head)
    body = ""
    for row in rows:
        cells = "".join(_cell(content) for content in row)
        body += f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: object) -> str:
    short = ' class="short"' if len(str(content)) <= SHORT_CELL else ""
    return f"<td{short}>{text(content)}</td>"


def fold(summary: str, html: str, opened: bool = False) -> str:
    """html that is shown on a click."""
    state = " open" if opened else ""
    return f"<details{state}><summary>{text(summary)}</summary>{html}</details>"


def findings(lines: Sequence[str], good: str) -> str:
    """Lines of advice, or `good` where there is none."""
    items = "".join(f'<li class="warn">{text(line)}</li>' for line in lines)
    if not items:
        items = f'<li class="good">{text(good)}</li>'
    return f"<ul>{items}</ul>"


def videos(films: Mapping[str, bytes]) -> str:
    """mp4 files by caption, inline; empty without films."""
    figures = ""
    for caption, film in films.items():
        source = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
        video = f'<video controls muted loop playsinline preload="metadata" src="{source}"></video>'
        figures += f'<figure>{video}<figcaption class="faint">{text(caption)}</figcaption></figure>'
    return f'<div class="videos">{figures}</div>' if figures else ""
