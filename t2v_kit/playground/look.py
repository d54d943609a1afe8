"""How the panel looks: one style sheet and small pieces of HTML. Text that a person typed is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeVar

import ipywidgets as widgets

W = TypeVar("W", bound=widgets.DOMWidget)

# JupyterLab's own colours where there are any, so that the panel follows a dark theme; Colab gets the second ones.
STYLE = """<style>
.t2v { --ink: var(--jp-ui-font-color1, #222); --soft: var(--jp-ui-font-color2, #666);
  --line: var(--jp-border-color2, #ddd); --paper: var(--jp-layout-color0, #fff);
  --shade: var(--jp-layout-color1, #f7f7f7); --accent: var(--jp-brand-color1, #1976d2); color: var(--ink); }
.t2v .widget-html, .t2v .widget-html-content { margin: 0; line-height: 1.45; height: auto; min-height: 0; }
.t2v .widget-label { color: var(--soft); }
.t2v .widget-hbox { align-items: center; overflow: visible; }
.t2v .widget-vbox { overflow: visible; }
.t2v .widget-hbox > .widget-text, .t2v .widget-text input { min-width: 0; }
.t2v button:focus-visible, .t2v select:focus-visible, .t2v textarea:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 1px; }
.t2v-side, .t2v-stage, .t2v-compare { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px; box-sizing: border-box; }
.t2v h4 { margin: 12px 0 4px; font-size: 14px; font-weight: 600; color: var(--ink); }
.t2v-title { font-size: 17px; font-weight: 600; } .t2v-soft { color: var(--soft); font-size: 12px; }
.t2v-note { font-size: 12px; padding: 3px 8px; border-radius: 4px; overflow-wrap: anywhere; }
.t2v-note.t2v-error { color: #b3261e; background: #fdecea; border-left: 3px solid #b3261e; }
.t2v-note.t2v-hint { color: var(--soft); border-left: 3px solid var(--line); }
.t2v-note.t2v-good { color: #1b6e37; background: #e8f5ec; border-left: 3px solid #2e9e57; }
.t2v details summary { cursor: pointer; color: var(--soft); font-size: 12px; margin-top: 4px; }
.t2v pre { font-size: 11px; line-height: 1.4; max-height: 260px; overflow: auto; background: var(--shade);
  padding: 8px; border-radius: 6px; margin: 4px 0 0; }
.t2v-screen { background: #14171c; border-radius: 8px; overflow: hidden; }
.t2v-screen img, .t2v-screen video { display: block; width: 100%; height: 100%; object-fit: contain; margin: 0; }
.t2v-empty { color: #9aa4b2; text-align: center; font-size: 13px; }
.t2v-card { border: 1px solid var(--line); border-radius: 8px; padding: 6px; background: var(--paper); }
.t2v-card img { border-radius: 5px; }
.t2v-card .t2v-soft { display: block; max-width: 200px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.t2v-code textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.t2v table { border-collapse: collapse; font-size: 12px; margin: 0; }
.t2v th, .t2v td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
.t2v th, .t2v td:first-child { color: var(--soft); font-weight: 500; white-space: nowrap; }
.t2v .progress { height: 6px; border-radius: 3px; margin: 0; }
.t2v-bars .widget-hbox { min-height: 0; margin: 2px 0; } .t2v-bars .widget-html { font-size: 12px; }
.t2v-bars .widget-hprogress { height: 6px; margin: 0 2px; } .t2v-bars .progress-bar { transition: width 0.3s; }
.t2v .t2v-columns { gap: 14px; align-items: flex-start; }
.t2v { container-type: inline-size; width: 100%; }
@container (max-width: 816px) {
  .t2v .t2v-columns { flex-flow: column nowrap !important; align-items: stretch; }
  .t2v .t2v-side, .t2v .t2v-stage { display: contents !important; }
  .t2v-ask, .t2v-film, .t2v-knobs, .t2v-more { background: var(--paper); border: 1px solid var(--line);
    border-radius: 10px; padding: 16px; box-sizing: border-box; }
  .t2v-ask { order: 1; } .t2v-film { order: 2; } .t2v-knobs { order: 3; } .t2v-more { order: 4; }
}
.t2v-dice, .t2v-lock, .t2v-use { padding: 0; text-overflow: clip; } .t2v-dice i, .t2v-lock i, .t2v-use i { margin: 0; }
.t2v-choice { margin-top: 6px; } .t2v .widget-accordion, .t2v .jupyter-widget-Collapse { width: auto; }
</style>"""

LABEL = "84px"  # the width of the labels; lines under a control are indented by it
UNDER = {"margin": "0 0 0 92px"}


def note(text: str, kind: str = "hint") -> str:
    """One line under a control, as HTML; kind is 'error', 'hint' or 'good'. Empty text gives ""."""
    return f'<div class="t2v-note t2v-{kind}">{html.escape(text)}</div>' if text else ""


def soft(text: str) -> str:
    """Small grey text."""
    return f'<span class="t2v-soft" title="{html.escape(text)}">{html.escape(text)}</span>'


def aligned() -> dict:
    """Keywords of a control in a column: a label of one width, and all of the column's width."""
    return {"layout": {"width": "100%"}, "style": {"description_width": LABEL}}


def heading(text: str) -> widgets.HTML:
    """The title of a group of controls."""
    return widgets.HTML(f"<h4>{html.escape(text)}</h4>")


def failure(line: str, details: str = "") -> str:
    """An error as one line; `details`, a traceback, folded behind a word."""
    folded = f"<details><summary>Details</summary><pre>{html.escape(details)}</pre></details>" if details else ""
    return note(line, "error") + folded


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A small table; every cell is escaped."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def show_if(widget: widgets.DOMWidget, wanted: bool) -> None:
    """Take a widget out of the layout, or put it back."""
    widget.layout.display = None if wanted else "none"


def tip(widget: W, text: str) -> W:
    """Set the tooltip, which ipywidgets 7 and 8 name differently; returns the widget."""
    for name in ("tooltip", "description_tooltip"):
        if widget.has_trait(name):
            setattr(widget, name, text)
            break
    return widget


def button(text: str, css: str, why: str, width: str = "auto", **looks) -> widgets.Button:
    """A button with a class that tests and style sheets can select."""
    clickable = tip(widgets.Button(description=text, layout={"width": width, "flex": "0 0 auto"}, **looks), why)
    clickable.add_class(css)
    return clickable
