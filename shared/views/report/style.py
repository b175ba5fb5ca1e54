"""The style sheet of report.html. Dark colours are for screens; on paper the report is always light."""

LEVELS, RUNS = 7, 10

_STYLE = """
:root { --page: #fcfcfa; --text: #1d1d1b; --quiet: #65645e; --line: #e2e1db; --axis: #a9a8a0;
  --first: #2461c4; --second: #b9530f; --other: #a9a8a0; --good: #20753c; --warn: #8a6100; --bad: #b3261e;
  --run0: #2461c4; --run1: #b9530f; --run2: #20753c; --run3: #8e3fae; --run4: #a06a00; --run5: #0f7d86;
  --run6: #b3266a; --run7: #5b6472; --run8: #6a7b12; --run9: #7a4a2a;
  --n0: #fcfcfa; --n1: #fdf3d8; --n2: #fce6b0; --n3: #fbd08a; --n4: #f7b06c; --n5: #f08a63; --n6: #e2645e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #171716; --text: #ecebe6; --quiet: #a3a29a; --line: #33322f; --axis: #6d6c66;
    --first: #7aaaf7; --second: #ee9a5d; --other: #6d6c66; --good: #74c48d; --warn: #dcb14f; --bad: #f28b82;
    --run0: #7aaaf7; --run1: #ee9a5d; --run2: #74c48d; --run3: #cf95e8; --run4: #dcb14f; --run5: #5fc6cf;
    --run6: #f08ab8; --run7: #a7b0be; --run8: #b7c95a; --run9: #c99a78;
    --n0: #171716; --n1: #2b2617; --n2: #423415; --n3: #5c4212; --n4: #7a4a12; --n5: #954118; --n6: #ad2f24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 32px 24px 64px; }
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
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 24px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 6px 0; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 500; white-space: nowrap; }
thead th, th[scope=row] { color: var(--quiet); }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.words td { overflow-wrap: break-word; }
td code { white-space: pre; } td strong { white-space: nowrap; } .wide { overflow-x: auto; }
pre, code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: 6px 0; padding: 10px 12px; border: 1px solid var(--line); border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); }
svg { display: block; width: 100%; overflow: visible; } svg.bar { height: 18px; } svg.columns { height: 90px; }
.bars { display: grid; grid-template-columns: minmax(0, max-content) minmax(60px, 1fr) max-content; gap: 6px 10px;
  align-items: center; font-size: 14px; margin: 10px 0; }
.bars > * { overflow-wrap: anywhere; }
.axis { stroke: var(--axis); } .whisker { stroke: var(--text); stroke-width: 1.5; }
.limit { stroke: var(--bad); stroke-width: 3; } rect.first, circle.first { fill: var(--first); }
rect.second { fill: var(--second); } rect.other { fill: var(--other); } rect.empty { fill: none; stroke: var(--axis); }
.name { font-size: 13px; color: var(--quiet); margin: 14px 0 4px; }
.axes, .chips { display: flex; flex-wrap: wrap; gap: 6px 14px; margin: 8px 0; font-size: 14px; }
.chips { gap: 6px; }
.chip { font: inherit; font-size: 13px; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 12px; padding: 1px 10px; cursor: pointer; max-width: 100%; overflow-wrap: anywhere; text-align: left; }
.chip[aria-pressed=false] { opacity: 0.4; }
.chart { min-height: 320px; position: relative; } .chart.small { min-height: 200px; }
.tip { position: absolute; top: 6px; right: 6px; z-index: 9; pointer-events: none; font-size: 12px; padding: 4px 8px;
  background: var(--page); border: 1px solid var(--line); border-radius: 4px; max-width: 70%; overflow-wrap: anywhere;
  white-space: pre-wrap; }
.tip.left { right: auto; left: 66px; }
.text i, .quiet i { font-style: normal; color: var(--text); border-radius: 2px; }
.text { max-height: 320px; overflow-y: auto; } .quiet i { padding: 0 4px; white-space: nowrap; font-size: 12px; }
span.key { display: inline-block; width: 10px; height: 10px; margin-right: 8px; print-color-adjust: exact; }
span.first { background: var(--first); } span.second { background: var(--second); }
details { margin: 8px 0; }
@media (max-width: 560px) {
  main { padding: 20px 14px 48px; } th { white-space: normal; }
  .checks thead { display: none; } .checks tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .checks th, .checks td { display: block; border: 0; padding: 0; }
  .bars { grid-template-columns: minmax(0, 1fr) max-content; } .bars > :nth-child(3n+1) { grid-column: 1 / -1; }
}
@media print {
  body { font-size: 11pt; } main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
# Backgrounds of text by its loss, and keys of runs.
STYLE = _STYLE + "".join(
    f".{name}{index} {{ background: var(--{name}{index}); }}\n"
    for name, count in (("n", LEVELS), ("run", RUNS))
    for index in range(count)
)
