/** The style sheet of the report page: both themes, and paper. */
export const STYLE: string = `
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5a6472;--paper:#ffffff;--rule:#d8dde3;--c0:#0b63c5;--c1:#9a5b00;--c2:#1c7c4a;--c3:#8a3fa0;--c4:#b3261e;--c5:#47606e;--good:#0b63c5;--bad:#b0470d}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#a3adb9;--paper:#14171b;--rule:#333a43;--c0:#6cb2ff;--c1:#e6a94e;--c2:#6fcf97;--c3:#d39be6;--c4:#ff8a80;--c5:#9fb6c3;--good:#6cb2ff;--bad:#f0935a}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:820px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.35rem;margin:2em 0 .3em;border-top:1px solid var(--rule);padding-top:1em}h3{font-size:1.1rem;margin:1.6em 0 .3em}h4{font-size:.95rem;margin:1em 0 .2em;color:var(--soft);font-weight:600}
.machine,.note,figcaption{color:var(--soft);font-size:.88rem}figure{margin:.4em 0 1em;overflow-x:auto}svg{width:100%;min-width:560px;height:auto;display:block}
text{fill:var(--ink);font:12px system-ui,sans-serif}.tick{fill:var(--soft)}.grid{stroke:var(--rule)}.limit{stroke:var(--soft);stroke-dasharray:3 3}.goal{stroke:var(--ink);stroke-width:2.5}.whisker{stroke:var(--ink);stroke-width:1;opacity:.75}
rect.met{fill:var(--good)}rect.missed{fill:var(--bad)}.series path{fill:none;stroke-width:1.6}.series.ours path{stroke-width:3}
${[0, 1, 2, 3, 4, 5].map((index) => `.s${index} path{stroke:var(--c${index})}.s${index} circle{fill:var(--c${index})}.key.s${index}{color:var(--c${index});font-weight:600;margin-right:.9em;display:inline-block}.key.s${index}::before{content:"\\25CF\\00a0"}`).join("")}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;min-width:100%}th,td{text-align:left;padding:4px 8px;border-bottom:1px solid var(--rule);vertical-align:top}td{white-space:nowrap}.overview td:first-child{white-space:normal}tr.absent td{color:var(--soft)}a{color:var(--c0)}tr.short td:last-child{color:var(--bad);font-weight:600}code{font-size:.9em}
@media print{:root{color-scheme:light;--ink:#000000;--soft:#444444;--paper:#ffffff;--rule:#cccccc;--c0:#0b63c5;--c1:#9a5b00;--c2:#1c7c4a;--c3:#8a3fa0;--c4:#b3261e;--c5:#47606e;--good:#0b63c5;--bad:#b0470d}rect,circle{print-color-adjust:exact}a{color:inherit;text-decoration:none}body{font-size:11pt}svg{min-width:0}figure{overflow:visible}section{break-before:page}figure,tr{break-inside:avoid}.wide{overflow:visible}}
`;
