"""The style sheet of report.html: light and dark, wide screens and phones."""

STYLE = """
:root {
  --paper: #f6f7f9; --card: #ffffff; --line: #e3e6eb; --ink: #16181d; --quiet: #5f6878;
  --accent: #3b6cf6; --bar: #3b6cf6; --track: #e8ebf1; --code: #f0f2f6;
  --good: #0f7a43; --good-back: #e0f5e9; --warn: #8a5a00; --warn-back: #fff0cf;
  --bad: #b42318; --missing: #eceef2; --hatch: #d3d7de;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f1115; --card: #181b21; --line: #2a2f39; --ink: #eceef2; --quiet: #9aa4b5;
    --accent: #7da0ff; --bar: #5c86f7; --track: #262b35; --code: #12151a;
    --good: #6fdca0; --good-back: #12301f; --warn: #f5c563; --warn-back: #35290d;
    --bad: #ff8d82; --missing: #23272f; --hatch: #363c47;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1390px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 32px; line-height: 1.2; letter-spacing: -.02em; margin: 10px 0 4px; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 44px 0 4px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 0 0 12px; }
.quiet, .quiet a { color: var(--quiet); }
.quiet { font-size: 15px; }
code, pre, .id { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-size: .92em; }
pre {
  margin: 12px 0; padding: 12px 14px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--code); font-size: 13.5px; line-height: 1.55;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
.command { user-select: all; -webkit-user-select: all; }
.command span { display: inline-block; max-width: 100%; }
.id, .message { overflow-wrap: anywhere; unicode-bidi: isolate; }
.status {
  display: inline-block; margin: 0; padding: 3px 12px; border-radius: 99px;
  font-size: 14px; font-weight: 600;
}
.done { color: var(--good); background: var(--good-back); }
.partial { color: var(--warn); background: var(--warn-back); }
.card, .tile, figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
.card { padding: 16px 18px; margin: 12px 0; max-width: 900px; }
.tiles {
  display: grid; gap: 12px; margin: 24px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(168px, 1fr));
}
.tile { padding: 14px 16px; display: flex; flex-direction: column; }
.tile span { color: var(--quiet); font-size: 14px; }
.tile data { font-size: 28px; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; }
.sheet { display: flex; flex-wrap: wrap; gap: 16px; margin: 14px 0 0; }
figure { margin: 0; padding: 10px 12px 12px; max-width: 100%; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-bottom: 8px; contain: inline-size; }
figcaption b { font-weight: 600; font-size: 12px; }
.single figure { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.single figcaption { margin: 8px 0 0; }
.cells { display: flex; flex-wrap: wrap; gap: 8px; }
.cell { width: var(--cell); font-size: 12px; color: var(--quiet); }
.square {
  position: relative; width: var(--cell); height: var(--cell); border-radius: 3px;
  background: repeating-linear-gradient(
    135deg, var(--missing) 0 5px, var(--hatch) 5px 7px);
}
.square img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; }
.square i {
  position: absolute; left: -5px; width: 3px; bottom: 0; border-radius: 2px;
  background: var(--accent);
}
.key { display: inline-block; vertical-align: -2px; width: 14px; height: 14px; }
.key.gap {
  border-radius: 3px; border: 1px solid var(--hatch);
  background: repeating-linear-gradient(
    135deg, var(--missing) 0 3px, var(--hatch) 3px 5px);
}
.key.made { width: 3px; border-radius: 2px; background: var(--accent); margin: 0 2px; }
.legend { white-space: nowrap; margin-right: 14px; }
.key.scale { width: 96px; border-radius: 3px; }
.key.line { width: 22px; height: 0; vertical-align: 4px; border-top: 2px solid var(--ink); }
.key.median { border-top-style: dashed; }
.key.level { border-top: 2px dashed var(--ink); }
.card .chart { display: block; overflow: visible; margin: 6px 0 0 44px; width: calc(100% - 44px); }
.chart rect { fill: var(--bar); shape-rendering: crispEdges; }
.chart rect:hover { fill: var(--accent); }
.chart line { stroke: var(--ink); stroke-width: 2; }
.chart .grid line { stroke: var(--line); stroke-width: 1; }
.chart .median, .chart .level { stroke-dasharray: 5 4; }
.chart .pause { stroke-width: 1; stroke-dasharray: 1 3; }
.chart text { fill: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .grid text, .chart .last { text-anchor: end; }
.chart .middle { text-anchor: middle; }
.axis { margin: 2px 0 0 44px; text-align: center; color: var(--quiet); font-size: 12px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 0 16px; }
.pair { max-width: 900px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: top; font-weight: 400; }
th, td { overflow-wrap: anywhere; }
.columns th:first-child { min-width: 8.5em; }
thead th { color: var(--quiet); }
tbody th, tbody td { border-top: 1px solid var(--line); }
.numbers :is(th, td):not(:first-child) {
  text-align: right; padding-right: 0; padding-left: 12px; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.swatch { display: block; max-width: 100%; image-rendering: pixelated; border-radius: 3px; }
.error h3 { color: var(--bad); }
.error ul { list-style: none; margin: 8px 0 0; padding: 0; }
.error li { padding: 8px 0; border-top: 1px solid var(--line); font-size: 14px; }
.error .id { display: block; font-size: 13px; }
.bars { display: grid; grid-template-columns: auto 1fr auto; gap: 10px 14px; align-items: center; }
.bars span { font-variant-numeric: tabular-nums; text-align: right; font-size: 14px; }
.bars b { font-weight: 500; font-size: 14px; }
.track { height: 12px; border-radius: 6px; background: var(--track); overflow: hidden; }
.track div { height: 100%; min-width: 2px; border-radius: 6px; background: var(--bar); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 0; }
dt { color: var(--quiet); font-size: 14px; }
dd { margin: 0; font-size: 14px; overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: 14px; margin-top: 14px; color: var(--accent); }
details dl { margin-top: 12px; }
@media (max-width: 1370px) { .cell, .square { --cell: var(--small); } }
@media (max-width: 560px) {
  main { padding: 20px 14px 40px; }
  h1 { font-size: 26px; }
  .sheet { gap: 10px; }
  .cell, .square { --cell: min(var(--small), calc((100vw - 80px) / var(--across))); }
  .sheet figure { width: 100%; }
  .sheet.single figure { width: auto; padding: 8px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .tile { padding: 10px 12px; }
  .tile data { font-size: 23px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""
