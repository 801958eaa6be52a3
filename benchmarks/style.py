"""The page's style sheet, with a light and a dark colour scheme."""

from __future__ import annotations

#: How many colours there are for contenders: .c0, .c1 …
COLOURS = 6

STYLE = """\
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #626b76; --rule: #e2e5e9; --alarm: #b3261e;
  --c0: #2563c9; --c1: #c2680c; --c2: #2b8a57; --c3: #7d55c7; --c4: #b83b6b; --c5: #4a7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --soft: #9aa4b0; --rule: #313842; --alarm: #ff8a80;
    --c0: #6ea3f5; --c1: #f0a04b; --c2: #62c48f; --c3: #b195ee; --c4: #ee86ab; --c5: #8db6c4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; }
h2 { margin: 0; font-size: 1.3rem; letter-spacing: -0.01em; }
h3 { margin: 0 0 0.75rem; font-size: 0.95rem; font-weight: 600; }
p { margin: 0.3rem 0 0; max-width: 46rem; }
.soft, h3 span { color: var(--soft); font-weight: 400; }
section { margin-top: 3rem; }
nav { margin-top: 1.25rem; display: flex; flex-wrap: wrap; gap: 0.35rem 1.1rem; }
a { color: var(--c0); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles, .cards { display: grid; gap: 1rem; margin-top: 1.1rem; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); align-items: start; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem 1.15rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; letter-spacing: -0.02em; }
.tile small { display: block; color: var(--soft); font-size: 0.85rem; }
.failed { border: 1px solid var(--alarm); border-radius: 10px; padding: 0.9rem 1.15rem; margin-top: 1.5rem; }
.failed strong { color: var(--alarm); }
.failed code { overflow-wrap: anywhere; }
svg { display: block; width: 100%; max-width: 38rem; height: auto; }
svg text { font-size: 13px; fill: var(--ink); dominant-baseline: central; font-variant-numeric: tabular-nums; }
svg .name, svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .tick { fill: var(--soft); font-size: 12px; }
.bar { fill: currentColor; }
circle { fill: currentColor; stroke: var(--card); stroke-width: 1.5; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.whisker { fill: none; stroke: var(--ink); stroke-width: 1.25; opacity: 0.6; }
.axis { fill: none; stroke: var(--soft); }
.grid { fill: none; stroke: var(--rule); }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.wide { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.8rem 0.4rem 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:nth-child(n + 4), td:nth-child(n + 4) { text-align: right; }
td i {
  display: inline-block; width: 0.65rem; height: 0.65rem; margin-right: 0.5rem; border-radius: 3px;
  background: currentColor;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.5rem; margin: 1rem 0 0; font-size: 0.92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""
