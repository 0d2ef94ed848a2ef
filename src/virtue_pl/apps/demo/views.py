"""Tables and lists of the page as HTML; every text of a visitor, a file or an index is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from virtue_pl.apps.demo.answers import Ranked

CSS = """
.vp-table { width: 100%; border-collapse: collapse; font-size: 14px; }
.vp-table th { text-align: left; font-weight: 600; padding: 4px 6px; }
.vp-table td { padding: 5px 6px; border-top: 1px solid var(--border-color-primary); vertical-align: top; }
.vp-table .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.vp-table .caption { overflow-wrap: anywhere; }
.vp-table tr.first td { font-weight: 600; }
.vp-bar { height: 4px; margin-top: 4px; border-radius: 2px; background: #2563eb; }
.vp-up { color: #15803d; } .vp-down { color: #b91c1c; }
.dark .vp-up { color: #4ade80; } .dark .vp-down { color: #f87171; }
.vp-hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 10px; }
.vp-hits button { padding: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
  cursor: pointer; text-align: left; background: var(--background-fill-secondary); color: inherit; font-size: 12px; }
.vp-hits button:focus-visible, .vp-strip button:focus-visible { outline: 3px solid #3b82f6; outline-offset: 1px; }
.vp-hits .crop { position: relative; line-height: 0; }
.vp-hits img { width: 100%; height: auto; }
.vp-hits svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.vp-hits span { display: block; padding: 4px 6px; overflow-wrap: anywhere; }
.vp-strip { display: flex; gap: 6px; overflow-x: auto; padding: 2px; }
.vp-strip button { flex: none; padding: 0; border: 2px solid transparent; border-radius: 8px; overflow: hidden;
  cursor: pointer; line-height: 0; }
.vp-strip button[aria-current="true"] { border-color: #2563eb; }
.vp-strip img { height: 64px; width: auto; }
.vp-two { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 16px; }
.vp-two h4 { margin: 0 0 6px; font-size: 14px; }
.vp-note { opacity: 0.8; font-size: 13px; margin: 4px 0; }
"""


def ranking_table(rows: Sequence[Ranked], prompted: bool) -> str:
    """Return captions, best first, with where the prompt has moved them from.

    Example:
        >>> "a &lt;cat&gt;" in ranking_table([Ranked("a <cat>", 0.1, 0.2, 1, 1)], True)
        True
    """
    lowest = min(row.after for row in rows)
    spread = max(row.after for row in rows) - lowest
    header = "<th>caption</th><th class=number>before</th><th class=number>after</th><th></th>"
    if not prompted:
        header = "<th>caption</th><th class=number>cosine</th>"
    lines = [f"<table class=vp-table data-part=ranking><thead><tr><th class=number>#</th>{header}</tr></thead><tbody>"]
    for row in rows:
        width = 100 * (row.after - lowest) / spread if spread else 0
        cells = [
            f"<td class=number>{row.rank_after}</td>",
            f"<td class=caption>{escape(row.caption)}<div class=vp-bar style='width:{width:.0f}%'></div></td>",
        ]
        if prompted:
            cells.append(f"<td class=number>{row.before:.2f}</td>")
        cells.append(f"<td class=number>{row.after:.2f}</td>")
        if prompted:
            cells.append(lift_cell(row))
        first = " class=first" if row.rank_after == 1 else ""
        lines.append(f"<tr{first}>{''.join(cells)}</tr>")
    return "".join(lines) + "</tbody></table>"


def lift_cell(row: Ranked) -> str:
    """Return the cell that says how far the prompt has lifted a caption."""
    if not row.lifted_by:
        return "<td class=number></td>"
    arrow, name = ("▲", "vp-up") if row.lifted_by > 0 else ("▼", "vp-down")
    return f"<td class='number {name}'>{arrow}&nbsp;{abs(row.lifted_by)}</td>"


def order_list(title: str, captions: Sequence[tuple[str, float]]) -> str:
    """Return captions with cosines, best first, below a title."""
    rows = "".join(
        f"<tr{' class=first' if number == 1 else ''}><td class=number>{number}</td>"
        f"<td class=caption>{escape(text)}</td><td class=number>{score:.2f}</td></tr>"
        for number, (text, score) in enumerate(captions, 1)
    )
    return f"<div><h4>{escape(title)}</h4><table class=vp-table><tbody>{rows}</tbody></table></div>"


def hits_grid(hits: Sequence[dict[str, Any]]) -> str:
    """Return hits as buttons: image, its region drawn, score and name.

    hits: of each `source` (a data URI, None where the image is not found), `box` (normalised xyxy or None), `score`,
    `name`.
    """
    return f"<div class=vp-hits>{''.join(hit_button(number, hit) for number, hit in enumerate(hits))}</div>"


def hit_button(number: int, hit: dict[str, Any]) -> str:
    """Return a hit as a button."""
    drawn = ""
    if hit["box"] is not None:
        x0, y0, x1, y1 = hit["box"]
        drawn = (
            "<svg viewBox='0 0 1 1' preserveAspectRatio=none>"
            f"<path d='M0 0H1V1H0ZM{x0:.4f} {y0:.4f}V{y1:.4f}H{x1:.4f}V{y0:.4f}Z' fill='#000' fill-opacity=.45></path>"
            f"<rect x={x0:.4f} y={y0:.4f} width={x1 - x0:.4f} height={y1 - y0:.4f} fill=none stroke='#ffc400'"
            " stroke-width=3 vector-effect=non-scaling-stroke></rect></svg>"
        )
    image = f"<img alt='' src='{escape(hit['source'])}'>" if hit["source"] else "<span>the image was not found</span>"
    name = escape(hit["name"])
    return (
        f"<button type=button data-hit={number} title='Ask with {name}'><div class=crop>{image}{drawn}</div>"
        f"<span><b>{hit['score']:.3f}</b> {name}</span></button>"
    )


def strip(images: Sequence[tuple[str, str]], current: str | None) -> str:
    """Return images as buttons in a row. images: (name, data URI) of each."""
    buttons = [
        f"<button type=button data-image='{escape(name)}' title='{escape(name)}'"
        f" aria-current={str(name == current).lower()}><img alt='{escape(name)}' src='{uri}'></button>"
        for name, uri in images
    ]
    return f"<div class=vp-strip>{''.join(buttons)}</div>"


def note(text: str) -> str:
    """Return a quiet sentence."""
    return f"<p class=vp-note>{escape(text)}</p>"
