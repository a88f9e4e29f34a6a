"""The style sheet and the script of the page."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --panel: #fff; --ink: #1c2430; --muted: #5c6675; --grid: #dfe3ea;
  --blue: #2563c9; --orange: #c2620a; --red: #c8202f; --green: #1a7f4b; --violet: #8250c4; }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --panel: #1a2029; --ink: #e4e8ee; --muted: #98a3b3;
  --grid: #303947; --blue: #6ea8ff; --orange: #f2a154; --red: #ff6b74; --green: #58c98d; --violet: #c09bff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 17px; margin: 0 0 8px; }
header p { margin: 4px 0 12px; } .muted { color: var(--muted); }
.badge { font-size: 15px; padding: 3px 12px; border-radius: 99px; color: var(--panel); vertical-align: 4px; }
.badge.passed { background: var(--green); } .badge.failed { background: var(--red); }
.diagnosis { border-left: 4px solid var(--red); background: var(--panel); padding: 10px 14px; margin: 0 0 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin-bottom: 20px; }
.card { background: var(--panel); border-top: 3px solid var(--green); border-radius: 6px; padding: 10px 12px;
  display: flex; flex-direction: column; font-size: 13px; }
.card.failed { border-color: var(--red); } .card.kink { border-color: var(--violet); }
.count { font-size: 22px; line-height: 1.3; }
section { background: var(--panel); border-radius: 8px; padding: 16px 18px; margin-bottom: 16px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 20px; }
svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide svg { min-width: 640px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--muted); }
.axis, .grid, .equal, .line, .limit { fill: none; } .axis { stroke: var(--muted); } .grid { stroke: var(--grid); }
.equal { stroke: var(--grid); stroke-width: 2; } .limit { stroke: var(--red); stroke-dasharray: 5 4; }
svg text.limit-name { fill: var(--red); stroke: none; }
circle { fill-opacity: .75; } circle:hover { fill-opacity: 1; stroke: var(--ink); }
circle.output { fill: var(--blue); } circle.local { fill: var(--orange); } circle.reference { fill: var(--blue); }
circle.kink { fill: var(--violet); } circle.failed { stroke: var(--red); stroke-width: 2.5; }
.line.reference { stroke: var(--blue); stroke-width: 5; stroke-opacity: .35; } .line.local { stroke: var(--orange); }
.legend { margin: 0 0 4px; font-size: 13px; color: var(--muted); display: flex; gap: 18px; flex-wrap: wrap; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px; }
i.output, i.reference { background: var(--blue); } i.local { background: var(--orange); }
i.kink { background: var(--violet); }
summary { cursor: pointer; color: var(--muted); margin-top: 8px; } .scroll { overflow: auto; max-height: 520px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin-top: 6px; }
th { position: sticky; top: 0; background: var(--panel); text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; padding: 4px 8px; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--blue); }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
td { padding: 3px 8px; border-top: 1px solid var(--grid); }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-family: ui-monospace, monospace; font-size: 12px; overflow-wrap: anywhere; }
td.fail { color: var(--red); font-weight: 600; } td.ok { color: var(--green); }
td.kink, td.inherited { color: var(--violet); }
"""

# A click on a column's head sorts by it, numbers by value and the rest by text; another turns the order round.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const th = button.parentElement, column = th.cellIndex, body = th.closest("table").tBodies[0];
  const down = th.getAttribute("aria-sort") === "ascending";
  for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const number = text => text === "inf" ? Infinity : text === "nan" ? Infinity : Number(text);
  const order = (a, b) => { const x = number(value(a)), y = number(value(b));
    return Number.isNaN(x) || Number.isNaN(y) ? value(a).localeCompare(value(b)) : x === y ? 0 : x - y; };
  body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
});
"""
