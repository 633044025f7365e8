"""What the pages of evaluations and studies are made of; a page needs nothing from outside and has no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

CLASSES_ABREAST = 4
"""In a table that is as wide as a sheet of paper."""

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1040px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em;margin-bottom:.1em}h2{border-bottom:2px solid #ddd;padding-bottom:.15em;margin-top:1.8em}
.muted{color:#666}.verdict{display:grid;grid-template-columns:repeat(2,1fr);gap:12px}
.answer{border-left:7px solid #999;background:#f6f6f6;padding:.6em .9em}.answer b{display:block}
.good{border-color:#009e73}.fair{border-color:#e69f00}.poor{border-color:#d55e00}
.answer i{float:right;font-style:normal;font-weight:600;color:#555}
table{border-collapse:collapse;width:100%;font-size:13.5px}th{text-align:left;border-bottom:1.5px solid #888}
td,th{padding:3px 8px}td{border-bottom:1px solid #e5e5e5}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
th.n{overflow-wrap:anywhere}table+table{margin-top:1em}
.charts{display:grid;grid-template-columns:repeat(3,1fr);gap:8px}svg{width:100%;height:auto}
svg text{font:10px system-ui,sans-serif;fill:#444}svg .title{font-size:11.5px;font-weight:600;fill:#222}
svg polyline{fill:none;stroke-width:1.8}svg .grid{stroke:#ddd;stroke-width:1}svg .band{fill:#0072b2;opacity:.18}
img{max-width:100%;image-rendering:pixelated}figure{margin:.8em 0}figcaption{font-size:13px;color:#555}
pre{background:#f6f6f6;padding:.8em;font-size:12px;white-space:pre-wrap}ul.lines{padding-left:1.2em}
@page{size:A4;margin:14mm 12mm}
@media print{body{margin:0;padding:0;max-width:none;font-size:12px;print-color-adjust:exact}
h1,h2,h3{break-after:avoid}figure,figure img,.answer,svg,tr,.legend{break-inside:avoid}.legend{break-after:avoid}
figure img{max-height:235mm}table{font-size:9.5px}td,th{padding:2px 4px}td.n{white-space:nowrap}
tr:nth-child(-n+4){break-after:avoid}tr:nth-last-child(-n+3){break-before:avoid}pre{font-size:9.5px}}
"""


def build_page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def build_verdict(answers: Sequence[dict[str, str]]) -> str:
    """The answers of `compute_verdict`, as JSON values, in a grid."""
    boxes = [
        f'<div class="answer {answer["standing"]}"><i>{answer["standing"]}</i><b>{html.escape(answer["question"])}</b>'
        f"{html.escape(answer['answer'])}</div>"
        for answer in answers
    ]
    return f'<div class="verdict">{"".join(boxes)}</div>'


def build_lines(title: str, lines: Sequence[str]) -> str:
    """A heading and a list; nothing where there are no lines."""
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h3>{title}</h3><ul class=lines>{items}</ul>"


def build_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], first_number: int) -> str:
    """A table whose columns from number `first_number` on hold numbers, which stand to the right."""

    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if index >= first_number else ''}>{html.escape(str(value))}</{tag}>"
            for index, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(columns, 'th')}</tr></thead>{body}</table>"


def show_number(value: float | None) -> str:
    """Four digits, or a dash for what is not defined."""
    return "–" if value is None else f"{value:.4g}"


def show_value(figure: dict[str, Any]) -> str:
    """The value of a figure in evaluation.json and its 95 % interval, where it has one."""
    interval = figure["interval"]
    if figure["value"] is None or interval is None or interval[0] is None:
        return show_number(figure["value"])
    return f"{show_number(figure['value'])} [{show_number(interval[0])}, {show_number(interval[1])}]"
