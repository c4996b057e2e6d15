"""The style sheet of the report: system fonts, light and dark, from a phone's width up, printable."""

STYLE = """
:root { --page: #f6f7f9; --panel: #fff; --text: #1a2230; --soft: #5b6675; --line: #e3e7ec; --grid: #e9edf2;
  --accent: #2f6fde; --bar: #b9d2fb; --track: #f0f3f7; --best: #f1f6ff; --bad: #c8383d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --panel: #1a2028; --text: #e6eaf0; --soft: #98a3b3; --line: #2a323d; --grid: #28303a;
    --accent: #78aaff; --bar: #2f568f; --track: #222a34; --best: #1d2838; --bad: #ff7b7f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin-bottom: 24px; }
h1 { margin: 0; font-size: 30px; font-weight: 650; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 17px; font-weight: 620; }
p { margin: 0; }
.brand { color: var(--accent); font-size: 13px; font-weight: 650; letter-spacing: .04em; }
.facts, .caption, .note, .notes { color: var(--soft); }
.facts { margin-top: 4px; }
.caption { font-size: 13px; margin-bottom: 8px; }
.runtime { margin: 32px 0 10px; }
.unsure { color: var(--soft); }
section, .card { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; }
section { padding: 20px 24px; margin-top: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 16px; }
.card { padding: 16px 18px; }
.card .name { color: var(--soft); font-size: 13px; }
.card .value { font-size: 23px; font-weight: 650; letter-spacing: -.01em; font-variant-numeric: tabular-nums; }
.card .before { color: var(--soft); font-size: 15px; font-weight: 450; }
.card .note { font-size: 13px; overflow-wrap: anywhere; }
.figures { display: grid; gap: 16px; }
.figures.two { grid-template-columns: 1fr 1fr; }
@media (max-width: 900px) { .figures.two { grid-template-columns: minmax(0, 1fr); } }
.figure { min-width: 0; min-height: 420px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 0 20px;
  align-items: start; }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 1500px; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: left; }
thead th { position: sticky; top: 0; background: var(--panel); z-index: 1; }
.figures-table th, .figures-table td { padding: 7px 10px; white-space: nowrap; text-align: right; }
.figures-table th:first-child, .figures-table td.text { text-align: left; }
.figures-table td.text { white-space: normal; min-width: 220px; color: var(--soft); }
.figures-table tbody tr { border-top: 1px solid var(--line); }
.figures-table tbody th { color: var(--text); font-weight: 600; }
.figures-table .groups th { padding-bottom: 0; text-align: center; font-size: 12px; }
small { color: var(--soft); font-size: 12px; }
.best { background: var(--best); }
.kept th { padding: 1px 14px 1px 0; white-space: nowrap; }
.kept tbody th { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12px; width: 1%;
  color: var(--text); font-weight: 400; }
.kept td { padding: 1px 10px 1px 0; min-width: 90px; }
.kept thead th { padding-bottom: 6px; }
.bar { height: 18px; border-radius: 4px; background: linear-gradient(to right, var(--bar) var(--kept), var(--track) 0);
  font-size: 11px; line-height: 18px; padding: 0 6px; }
.chips, .reasons, .notes { margin: 6px 0 0; padding: 0; list-style: none; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 10px; }
.chips li { border: 1px solid var(--line); border-radius: 999px; padding: 2px 12px; font-size: 13px; }
.failed, .chips .failed, .reasons .failed { color: var(--bad); }
.reasons { color: var(--soft); font-size: 13px; margin-bottom: 10px; overflow-wrap: anywhere; }
.notes li { margin-top: 6px; font-size: 13px; max-width: 90ch; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
details[open] summary { margin-bottom: 8px; }
.pairs th { padding: 3px 16px 3px 0; vertical-align: top; white-space: nowrap; width: 1%; }
.pairs td { padding: 3px 0; overflow-wrap: anywhere; }
/* Plotly writes its colours into the elements; these win, and follow the scheme. */
.js-plotly-plot .main-svg .xtitle, .js-plotly-plot .main-svg .ytitle, .js-plotly-plot .main-svg .legendtext,
.js-plotly-plot .main-svg .annotation-text, .js-plotly-plot .xtick text, .js-plotly-plot .ytick text,
.js-plotly-plot .x2tick text, .js-plotly-plot .main-svg .x2title, .js-plotly-plot .main-svg .bartext
  { fill: var(--soft) !important; }
.js-plotly-plot .gridlayer path { stroke: var(--grid) !important; }
@media print { .scroll.tall { max-height: none; } section { break-inside: avoid; } }
@media (max-width: 600px) { main { padding: 24px 12px 40px; } section { padding: 16px; } h1 { font-size: 24px; } }
"""
