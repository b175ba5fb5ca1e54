"""The style sheet of report.html. Dark colours are for screens; on paper the report is always light."""

STYLE = """
:root { --page: #fcfcfa; --text: #1d1d1b; --quiet: #65645e; --line: #e2e1db; --axis: #a9a8a0;
  --first: #2461c4; --second: #b9530f; --other: #a9a8a0; --good: #20753c; --warn: #8a6100; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #171716; --text: #ecebe6; --quiet: #a3a29a; --line: #33322f; --axis: #6d6c66;
    --first: #7aaaf7; --second: #ee9a5d; --other: #6d6c66; --good: #74c48d; --warn: #dcb14f; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 780px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 40px 0 8px; }
p { margin: 6px 0; }
.quiet { color: var(--quiet); }
.quiet, td { overflow-wrap: anywhere; }
.score { font-size: 44px; font-weight: 650; line-height: 1.1; margin: 28px 0 0; font-variant-numeric: tabular-nums; }
.score small { font-size: 17px; font-weight: 400; color: var(--quiet); }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
strong.good, strong.warn, strong.bad { font-weight: 600; }
figure { margin: 18px 0 0; }
figcaption { color: var(--quiet); font-size: 13px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 24px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 6px 0; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 500; white-space: nowrap; }
thead th, th[scope=row] { color: var(--quiet); }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td code { white-space: pre; } .wide { overflow-x: auto; }
pre, code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: 6px 0; padding: 10px 12px; border: 1px solid var(--line); border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .strong { font-weight: 600; fill: var(--text); } svg .value { font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--axis); }
.line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.line.first { stroke: var(--first); } .line.second { stroke: var(--second); }
.mark { stroke: var(--page); stroke-width: 1.5; }
rect.first, .mark.first { fill: var(--first); } rect.second, .mark.second { fill: var(--second); }
rect.other { fill: var(--other); } rect.empty { fill: none; stroke: var(--axis); }
.whisker { stroke: var(--text); stroke-width: 1.5; } .limit { stroke: var(--bad); stroke-width: 3; }
span.key { display: inline-block; width: 10px; height: 10px; margin-right: 8px; print-color-adjust: exact; }
span.first { background: var(--first); } span.second { background: var(--second); }
@media (max-width: 560px) { .pair { grid-template-columns: 1fr; } }
@media print {
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
