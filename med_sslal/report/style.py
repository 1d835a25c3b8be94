"""How a report looks: one style sheet for desktop, phone, dark rooms and paper."""

CSS = """
:root {
  --ink: #1b1f24; --muted: #5c6570; --faint: #8b949e; --rule: #d9dde2; --grid: #e8ebee;
  --paper: #ffffff; --wash: #f5f6f8; --accent: #0072b2;
  --notice: #fff6e5; --notice-edge: #e69f00; --shade: rgba(20, 28, 38, 0.38);
  --serif: "Charter", "Bitstream Charter", "Source Serif 4", "Cambria", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --muted: #a9b1ba; --faint: #7d8590; --rule: #363c44; --grid: #2a2f36;
    --paper: #14171b; --wash: #1c2026; --accent: #56b4e9;
    --notice: #2b2415; --notice-edge: #b37b00; --shade: rgba(190, 210, 235, 0.4);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1080px; margin: 0 auto; padding: 56px 32px 48px; }
h1, h2, h3 { font-family: var(--serif); line-height: 1.2; font-weight: 600; margin: 0;
  overflow-wrap: anywhere; }
h1 { font-size: 38px; letter-spacing: -0.01em; }
h2 { font-size: 25px; padding-top: 20px; border-top: 1px solid var(--rule); }
h3 { font-size: 18px; margin: 30px 0 10px; }
p { margin: 10px 0; max-width: 74ch; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: 2px; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 12px 14px; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
section { margin-top: 52px; scroll-margin-top: 12px; }
.kicker { color: var(--muted); font-size: 13px; letter-spacing: 0.08em; text-transform: uppercase;
  margin: 0 0 8px; }
.facts { color: var(--muted); font-size: 14px; margin: 12px 0 0; max-width: none; }
.facts span:not(:last-child)::after { content: "\\00b7"; margin: 0 9px; color: var(--faint); }
.notice { background: var(--notice); border-left: 3px solid var(--notice-edge);
  padding: 9px 14px; max-width: none; font-size: 15px; margin: 14px 0 0; }
.lead { color: var(--muted); font-size: 17px; font-family: var(--serif); margin: 8px 0 18px; }
.finding { font-family: var(--serif); font-size: 20px; line-height: 1.45; margin: 26px 0 0; }
.verdict { font-family: var(--serif); font-size: 17px; line-height: 1.5; max-width: 82ch;
  padding: 0 0 0 1.1em; margin: 24px 0 0; }
.verdict li { margin: 7px 0; }
.remark, .aside { color: var(--muted); font-size: 14px; }
nav { margin-top: 26px; font-size: 14px; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0; padding: 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px;
  border: solid var(--rule); border-width: 1px 0; margin: 26px 0 0; padding: 14px 0; }
.tiles dt { color: var(--muted); font-size: 13px; }
.tiles dd { margin: 0; font: 600 25px/1.3 var(--serif); font-variant-numeric: tabular-nums; }
.tiles dd.remark { font: 13px/1.4 var(--sans); }
dl:not(.tiles) { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px;
  margin: 12px 0; font-size: 15px; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
/* Where a table goes on beyond an edge, that edge is in shade: what scrolls along covers it. */
.scroll { overflow-x: auto; margin: 14px 0; background:
  linear-gradient(to right, var(--paper) 35%, transparent) 0 0 / 44px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 35%, transparent) 100% 0 / 44px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 14px 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums;
  min-width: 100%; border-bottom: 1px solid var(--faint); }
caption { text-align: left; color: var(--muted); padding: 0 0 8px; font-size: 14px; }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 2px; }
th { font-weight: 600; border-top: 1px solid var(--faint); border-bottom: 1px solid var(--faint);
  vertical-align: bottom; white-space: normal; }
td { border-bottom: 1px solid var(--grid); }
tbody tr:last-child td { border-bottom: 0; }
th.text, td.text { text-align: left; }
td small { color: var(--muted); font-size: 12px; }
td.wrap, .wrap { white-space: normal; min-width: 14em; }
.stacked td { white-space: normal; }
.stacked td:not(:first-child) { min-width: 12em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr));
  gap: 26px 34px; margin: 18px 0; align-items: start; }
.figures.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--muted); font-size: 14px; margin-top: 6px; overflow-wrap: anywhere; }
.chart svg.plot { display: block; width: 100%; max-width: 560px; height: auto; }
.wide .chart svg.plot { max-width: 780px; }
.plot line, .plot polyline { vector-effect: non-scaling-stroke; }
.plot text { font: 12px var(--sans); fill: var(--muted); font-variant-numeric: tabular-nums; }
.plot text.value { fill: var(--ink); font-size: 11px; paint-order: stroke;
  stroke: var(--paper); stroke-width: 3px; }
.plot .grid { stroke: var(--grid); stroke-width: 1; }
.plot .axis { stroke: var(--faint); stroke-width: 1; }
.plot .halo { stroke: var(--paper); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0;
  margin: 6px 0 0; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 7px; overflow-wrap: anywhere; }
.swatch { width: 26px; height: 10px; flex: none; }
.swatch line { stroke-width: 2.5; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr));
  gap: 16px 14px; margin: 12px 0; }
.gallery svg { display: block; width: 100%; height: auto; background: #000; border-radius: 2px; }
.gallery figcaption { font-size: 12.5px; line-height: 1.4; }
.gallery figcaption b { color: var(--ink); font-weight: 600; }
.gallery figcaption span { display: block; }
.gallery rect, .key rect { fill: none; vector-effect: non-scaling-stroke; }
.rim { stroke: rgba(0, 0, 0, 0.6); stroke-width: 3; }
.truth { stroke: #2cd5a5; stroke-width: 1.8; }
.found { stroke: #ffb000; stroke-width: 1.8; stroke-dasharray: 5 3; }
.faint { stroke-opacity: 0.65; }
.ignored { stroke: #f0f0f0; stroke-width: 1.6; stroke-dasharray: 1.5 3; }
.gallery .plate { fill: rgba(0, 0, 0, 0.7); }
.gallery text { fill: #ffd98a; font-family: var(--sans); }
details { margin: 4px 0 10px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; color: var(--muted); font-size: 14px;
  margin: 10px 0; max-width: none; }
.key span { display: inline-flex; align-items: center; gap: 8px; }
.key svg { width: 26px; height: 16px; background: #30343a; border-radius: 2px; }
.share { display: inline-block; width: 28px; height: 9px; background: var(--grid);
  margin-left: 7px; vertical-align: baseline; }
.share i { display: block; height: 100%; background: var(--muted); }
.stack { display: flex; height: 16px; background: var(--grid); overflow: hidden; min-width: 220px;
  position: relative; top: 3px; }
.stack i { display: block; height: 100%; }
.forest { width: 110px; height: 20px; display: block; position: relative; top: 4px; }
.forest .zero { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 2; }
.forest .span { stroke: var(--accent); stroke-width: 2; }
.forest circle { fill: var(--accent); }
footer { margin-top: 64px; padding-top: 14px; border-top: 1px solid var(--rule);
  color: var(--muted); font-size: 13px; }
@media (min-width: 641px) {
  .wide .plot text { font-size: 8px; }
  .wide .plot text.value { font-size: 7.5px; }
  .wide .plot circle { r: 2.8px; }
}
@media (max-width: 640px) {
  main { padding: 28px 16px 36px; }
  h1 { font-size: 28px; }
  h2 { font-size: 22px; }
  .finding { font-size: 18px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles dd { font-size: 21px; }
  .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px 10px; }
  .stacked, .stacked tbody, .stacked tr, .stacked td { display: block; }
  .stacked thead { display: none; }
  .stacked td { padding: 0 0 2px; border: 0; }
  .stacked tr { padding: 7px 0; border-bottom: 1px solid var(--grid); }
  .stacked td:first-child { font-weight: 600; }
  .stacked td:not(:first-child)::before { content: attr(data-label) ": "; color: var(--muted); }
  .stack { min-width: 90px; }
  dl:not(.tiles) { grid-template-columns: 1fr; gap: 0; }
  dl:not(.tiles) dd { margin-bottom: 8px; }
  .plot text { font-size: 14px; }
  .plot text.value { font-size: 13px; }
}
@media print {
  :root { --ink: #000; --muted: #444; --faint: #777; --rule: #bbb; --grid: #ddd; --paper: #fff;
    --wash: #f4f4f4; --notice: #fff; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  section { margin-top: 26px; }
  figure, tr, .notice, .tiles { break-inside: avoid; }
  h2, h3, .lead { break-after: avoid; }
  .scroll { overflow: visible; background: none; }
  th, td { padding: 3px 6px; font-size: 8.5pt; white-space: normal; }
  .gallery { grid-template-columns: repeat(5, 1fr); }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
