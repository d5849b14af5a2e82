"""How much room words take, in the font that figures are laid out with."""

from __future__ import annotations

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from bilevel.plots.sheet import RC


def text_width(text: str, points: float) -> float:
    """Width in inches of a line of text of that size. Fonts of a page are hardly ever wider."""
    font = FontProperties(family=RC["font.family"], size=points)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) / 72
