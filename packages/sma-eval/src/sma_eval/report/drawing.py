"""Matplotlib figures on a page: each a picture of its own, as an SVG document in a data URI.

As a picture it shares no ids, styles or scripts with the page or with the others. Text is drawn as
outlines, so it looks the same wherever the page is opened, on a machine without fonts too.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, MUTED, RULE = "#1b2027", "#5c6672", "#d7dce2"
BETTER, WORSE, OPEN = "#1b7a48", "#b3261f", "#85909c"
# Okabe and Ito's palette without its yellow, which is too pale on white: told apart by readers with
# any colour vision. A marker for each pool beside it, so that no reader needs to see colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1b2027")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
WIDTH = 10.4

_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "sma-eval",
    "text.color": INK,
    # A `$` in a name is a character, not the start of a formula.
    "text.parse_math": False,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A figure with the words that go with it.

    Parameters
    ----------
    name
        Unique on its page.
    title, caption
        Shown over and under it.
    alt
        What it shows, for a reader who cannot see it.
    figure
        The figure.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    @property
    def source(self) -> str:
        """The figure as a data URI: the same bytes whenever the same data are drawn."""
        with styled():
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style, and let names hold characters that the font lacks."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of `width` x `height` inches, without any global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def palette(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """Give each name a marker."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def key(figure: Figure, colours: dict[str, str], shapes: dict[str, str] | None = None) -> None:
    """Say below a figure what its colours, and its markers, stand for."""
    marks = [
        *(Line2D([], [], color=c, marker="o", linewidth=2, label=n) for n, c in colours.items()),
        *(
            Line2D([], [], color=MUTED, marker=m, linestyle="none", label=n)
            for n, m in (shapes or {}).items()
        ),
    ]
    figure.legend(handles=marks, loc="outside lower left", ncols=3, fontsize=9.5)


def faint_grid(axes: Axes, axis: Any = "both") -> None:
    """Lay thin lines under the data."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0)


def span(axes: Axes, points: Sequence[float], *more: float, axis: str = "x") -> None:
    """Show all points with room beside them; an interval of few seeds would dwarf them."""
    low, high = min([*points, *more]), max([*points, *more])
    margin = 0.15 * (high - low) or 0.1 * abs(high) or 0.1
    axes.set(**{f"{axis}lim": (low - margin, high + margin)})
