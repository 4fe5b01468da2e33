"""Matplotlib figures as inline SVG: themed by the page's style sheet, safe beside one another.

A figure is drawn in the light palette. Inlined, each palette colour becomes a CSS variable, so
that one drawing serves light screens, dark screens and paper; saved alone it keeps its colours.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Arms differ in lightness as well as hue, and in line style: no reader needs to see colours.
LIGHT = {
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1b2027",
    "muted": "#5c6672",
    "rule": "#d7dce2",
    "incumbent": "#6b7684",
    "incumbent_again": "#a3acb7",
    "candidate": "#0a6c96",
    "candidate_again": "#6fb3d0",
    "baseline": "#b07514",
    "event": "#c4451a",
    "pass": "#1b7a48",
    "fail": "#b3261f",
    "open": "#85600a",
}
DARK = {
    "paper": "#14181d",
    "panel": "#1d232a",
    "ink": "#e7ebf0",
    "muted": "#a0abb8",
    "rule": "#38414c",
    "incumbent": "#9aa7b6",
    "incumbent_again": "#6c7783",
    "candidate": "#4db4e0",
    "candidate_again": "#2f7797",
    "baseline": "#dda544",
    "event": "#f08055",
    "pass": "#58c58c",
    "fail": "#f2827a",
    "open": "#e0b64f",
}
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": LIGHT["paper"],
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
    "path.simplify_threshold": 0.5,
    "svg.fonttype": "none",
    "text.color": LIGHT["ink"],
    # A `$` in a name from a log is a character, not the start of a formula.
    "text.parse_math": False,
    "xtick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.color": LIGHT["rule"],
    "ytick.labelcolor": LIGHT["muted"],
}

_TAG = re.compile(r"<[^>]*>")
_STYLE_ATTRIBUTE = re.compile(r' style="([^"]*)"')
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r'( id="|url\(#|xlink:href="#)')
_FONT_FAMILY = re.compile(r"font-family: [^;]*")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A figure with the words that go with it.

    Attributes
    ----------
    name : str
        Unique on its page; also the stem of its file among the artifacts.
    title, caption : str
        Shown over and under it.
    alt : str
        What it shows, for a reader who cannot see it.
    figure : matplotlib Figure
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    @property
    def svg(self) -> Markup:
        """The figure as an `<svg>` element for an HTML page."""
        return inline_svg(self.figure, self.name, self.alt)

    def png(self) -> bytes:
        """Return the figure as a PNG image in the light palette."""
        with styled():
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="png", dpi=144)
        return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style, and let names hold characters that the font lacks."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser brings its own fonts; matplotlib's only measures the text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` x `height` inches, without any global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def printable(text: object, length: int = 60) -> str:
    """Return `text` fit for one line of a page: no control characters, no change of direction."""
    kept = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in str(text)
    )
    return kept if len(kept) <= length else kept[: length - 1] + "…"


def style_sheet() -> str:
    """Return the palettes as CSS variables: light, dark where preferred, light on paper."""
    light, dark = (
        "".join(f"--{name}:{colour};" for name, colour in palette.items())
        for palette in (LIGHT, DARK)
    )
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        ".plot *{stroke-linejoin:round;stroke-linecap:butt}"
    )


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return `figure` as an `<svg>` element whose ids and colours suit a page of many.

    Parameters
    ----------
    figure : matplotlib Figure
    name : str
        Prefix of every id: two figures of one page must not share clip paths.
    alt : str
        Text alternative; escaped here.
    """
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    document = buffer.getvalue()
    document = document[document.index("<svg") :]
    # Metadata says nothing here, and a bare `*{...}` would style the whole page.
    for element in ("metadata", "style"):
        document = re.sub(rf"<{element}[\s>].*?</{element}>", "", document, flags=re.DOTALL)
    # Text from a log is escaped, so that `<...>` is always markup of matplotlib's own.
    document = _TAG.sub(lambda tag: _adapt_tag(tag[0], name), document)
    opening = document.index(">") + 1
    width, height = (72 * figure.get_size_inches()).tolist()
    head = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">').format(
        alt, width, height
    )
    return head + Markup(re.sub(r"\n\s*", "\n", document[opening:]))  # noqa: S704


def _adapt_tag(tag: str, prefix: str) -> str:
    tag = _REFERENCE.sub(lambda m: f"{m[1]}{prefix}-", tag)
    tag = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}", tag)
    return _STYLE_ATTRIBUTE.sub(lambda m: f' style="{_adapt_style(m[1])}"', tag)


def _adapt_style(style: str) -> str:
    style = _FONT_FAMILY.sub("font-family: var(--sans)", style)
    return _HEX.sub(lambda m: _VARIABLES.get(m[0], m[0]), style)
