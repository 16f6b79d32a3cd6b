#!/usr/bin/env bun
// What ncu (Nsight Compute) says of the kernels whose speed goals are missed: figures of few launches, one JSON file with
// a row for each launch, and a table. Takes a machine with a GPU, ncu, and the right to read its counters.
//
//   bun test/gpu/ncu.ts [--only TEXT] [--out FILE] [--bytes N] [--limit SECONDS] [--ncu PATH]
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { gpuCount, machineFacts } from "../../bench/machine.ts";
import { buildNative } from "../../bench/native.ts";
import { table } from "../../lib/cli/output.ts";
import { readyShim } from "../../lib/cli/shim.ts";
import { figuresOfMoves, readFigures } from "./ncu-output.ts";
import type { MoveFigure, Moves } from "./ncu-output.ts";
import { runFor } from "./ncu-process.ts";

const ROOT = resolve(import.meta.dir, "..", "..");
const STALLS = [
  "long_scoreboard",
  "lg_throttle",
  "short_scoreboard",
  "wait",
  "mio_throttle",
  "no_instruction",
];
const stall = (why: string): string => `smsp__average_warps_issue_stalled_${why}_per_issue_active.ratio`;

/** Two runs: the program is run again for each pass that the metrics of a run need, and the first one must not wait for the second. */
const RUNS: readonly (readonly string[])[] = [
  [
    "gpu__time_duration.sum",
    "launch__registers_per_thread",
    "launch__grid_size",
    "launch__block_size",
    "launch__waves_per_multiprocessor",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sectors_op_read.sum",
    "lts__t_sectors_op_write.sum",
    "pcie__read_bytes.sum",
    "pcie__write_bytes.sum",
    "nvltx__bytes.sum",
    "nvlrx__bytes.sum",
  ],
  [
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    ...STALLS.map(stall),
  ],
];
/** Where none of the above can be had. */
const LEAST: readonly string[] = [
  "gpu__time_duration.sum",
  "launch__registers_per_thread",
  "launch__grid_size",
];

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      out: { type: "string" },
      bytes: { type: "string", default: String(2 ** 30) },
      limit: { type: "string", default: "110" },
      ncu: { type: "string" },
    },
  });
  const ncu = values.ncu ?? findNcu();
  if (ncu === null) {
    say(
      "NOT RUN: there is no ncu on this machine (Nsight Compute comes with the CUDA toolkit); --ncu names it",
    );
    return 1;
  }
  const ends = performance.now() + Number(values.limit) * 1000;
  await readyShim(say);
  const anchors = await buildNative("gpu_anchor.c", "library", say).catch(() => "");
  const program = [process.execPath, join(import.meta.dir, "ncu-launches.ts")];
  // The watched program starts no others, so it is told how many devices there are.
  const devices = String(gpuCount());
  const words = program.concat(
    "--only",
    values.only,
    "--bytes",
    values.bytes,
    "--anchors",
    anchors,
    "--devices",
    devices,
  );
  const known = await knownMetrics(ncu);
  const rows: MoveFigure[] = [];
  const commands: string[] = [];
  const problems: string[] = [];
  const watch = async (metrics: readonly string[]): Promise<boolean> => {
    const there = metrics.filter((metric) => known.size === 0 || known.has(metric.split(".")[0] ?? ""));
    const options = [...OPTIONS, "--metrics", there.join(",")];
    commands.push(["ncu", ...options, "bun test/gpu/ncu-launches.ts"].join(" "));
    const left = ends - performance.now();
    if (left < 5_000) {
      problems.push("the time was over");
      return false;
    }
    // The first run leaves the second some.
    const seen = await watched(ncu, options, words, commands.length === 1 ? left * 0.6 : left);
    say(`${seen.rows.length} figures in ${seen.seconds.toFixed(1)} s`);
    const fresh = seen.rows.filter((row) => !rows.some((other) => isSame(row, other)));
    rows.push(...fresh);
    if (seen.problem !== null) problems.push(seen.problem);
    return seen.rows.length > 0;
  };
  const gave = await watch(RUNS[0] ?? []);
  if (gave) await watch(RUNS[1] ?? []);
  else await watch(LEAST);
  for (const problem of problems) say(`PROBLEM: ${problem}`);
  say(summary(rows).join("\n"));
  const machine = machineFacts();
  const name = (machine.gpu[0] ?? "no-gpu").split(",")[0] ?? "";
  const file = `ncu-${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")}-${machine.date.slice(0, 10)}.json`;
  const out = values.out ?? join(ROOT, "bench/results", file);
  if (rows.length === 0 && values.out === undefined) return 1;
  mkdirSync(dirname(out), { recursive: true });
  await Bun.write(
    out,
    `${JSON.stringify({ tool: versionOf(ncu), commands, machine, problems, ...byLaunch(rows) }, null, 2)}\n`,
  );
  say(`wrote ${out}`);
  return rows.length > 0 ? 0 : 1;
}

/** The program is run again for each pass, so that memory needs not be kept and put back; clocks and caches stay as they are in use. */
const OPTIONS: readonly string[] = [
  ..."--csv --print-units base --target-processes all --replay-mode application".split(" "),
  ..."--cache-control none --clock-control none --kernel-name regex:^(kvf_|plain)".split(" "),
];

async function watched(
  ncu: string,
  options: readonly string[],
  words: readonly string[],
  limit: number,
): Promise<{
  readonly rows: readonly MoveFigure[];
  readonly seconds: number;
  readonly problem: string | null;
}> {
  const folder = mkdtempSync(join(tmpdir(), "kvferry-ncu-"));
  const log = join(folder, "ncu.csv");
  const begun = performance.now();
  try {
    const { out, noise, code } = await runFor([ncu, ...options, "--log-file", log, ...words], limit, ROOT);
    const text = existsSync(log) ? readFileSync(log, "utf8") : "";
    const seconds = (performance.now() - begun) / 1000;
    const figures = readFigures(text);
    const line = out.split("\n").find((one) => one.startsWith('{"moves":'));
    const lines = `${text}\n${out}\n${noise}`.split("\n");
    const complaints = lines.filter((one) => /^==(?:ERROR|WARNING)==|error:/i.test(one)).slice(0, 12);
    const failed =
      code === 0
        ? null
        : `ncu ${code === null ? "took too long" : `ended with ${code}`}: ${[...complaints, ...noise.split("\n").slice(-5)].join(" | ")}`;
    if (line === undefined)
      return { rows: [], seconds, problem: failed ?? "the program did not say what it moved" };
    const { moves } = JSON.parse(line) as Moves;
    return {
      rows: figuresOfMoves(figures, moves),
      seconds,
      problem: failed ?? (complaints.join(" | ") || null),
    };
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error);
    return { rows: [], seconds: (performance.now() - begun) / 1000, problem };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Whether a run before gave this figure. */
function isSame(a: MoveFigure, b: MoveFigure): boolean {
  return (
    a.metric === b.metric &&
    a.name === b.name &&
    a.method === b.method &&
    a.round === b.round &&
    a.launch === b.launch
  );
}

/** A row for each launch with all its figures, and what they are in. */
function byLaunch(rows: readonly MoveFigure[]): Record<string, unknown> {
  const launches = Map.groupBy(rows, (row) => `${row.name} ${row.method} ${row.round} ${row.launch}`);
  return {
    units: Object.fromEntries(rows.map(({ metric, unit }) => [metric, unit])),
    launches: [...launches.values()].map(([first, ...others]) => {
      const { metric: _metric, unit: _unit, value: _value, ...launch } = first as MoveFigure; // no group is empty
      const figures = [first as MoveFigure, ...others].map(({ metric, value }) => [metric, value]);
      return { ...launch, figures: Object.fromEntries(figures) as Record<string, number> };
    }),
  };
}

/** A line for the longest launch of each move. */
function summary(rows: readonly MoveFigure[]): string[] {
  const moves = Map.groupBy(rows, ({ name, method, round }) => `${name} ${method} ${round}`);
  const lines = [...moves.values()].map((all) => {
    const launches = [...Map.groupBy(all, ({ launch }) => launch).values()];
    const time = (launch: readonly MoveFigure[]): number => valueOf(launch, "gpu__time_duration.sum") ?? 0;
    const [longest = []] = launches.toSorted((a, b) => time(b) - time(a));
    const [one] = longest;
    const value = (metric: string): number | null => valueOf(longest, metric);
    const bytes = one?.bytes ?? Number.NaN;
    const share = (metric: string): string => shown(value(metric), (found) => found / bytes);
    const worst = STALLS.map((why) => [why, value(stall(why)) ?? -1] as const).toSorted(
      (a, b) => b[1] - a[1],
    )[0];
    return [
      `${one?.name} ${one?.round}${one?.method.startsWith("plain") === true ? " plain" : ""}`,
      one?.kernel ?? "",
      `${one?.grid} x ${one?.block}`,
      String(launches.length),
      (time(longest) / 1000).toFixed(1),
      (bytes / time(longest)).toFixed(0),
      shown(value("dram__throughput.avg.pct_of_peak_sustained_elapsed")),
      share("dram__bytes_read.sum"),
      share("dram__bytes_write.sum"),
      shown(value("sm__warps_active.avg.pct_of_peak_sustained_active")),
      shown(value("launch__registers_per_thread")),
      worst === undefined || worst[1] < 0 ? "" : `${worst[0]} ${worst[1].toFixed(1)}`,
    ];
  });
  const header = [
    "move",
    "kernel",
    "grid x block",
    "launches",
    "us",
    "GB/s",
    "dram %",
    "read/byte",
    "written/byte",
    "warps %",
    "registers",
    "stall",
  ];
  return table(header, lines);
}

function valueOf(figures: readonly MoveFigure[], metric: string): number | null {
  return figures.find((figure) => figure.metric === metric)?.value ?? null;
}

function shown(value: number | null, change: (value: number) => number = (same) => same): string {
  return value === null ? "" : change(value).toPrecision(3);
}

/** Names of the metrics that this GPU has, those of launches too; none when ncu does not tell. */
async function knownMetrics(ncu: string): Promise<ReadonlySet<string>> {
  const names = new Set<string>();
  for (const collection of [[], ["--query-metrics-collection", "launch"]]) {
    const { out } = await runFor([ncu, "--query-metrics", ...collection], 10_000);
    for (const line of out.split("\n")) {
      const [, name] = /^([a-z0-9]+__\w+)\s/i.exec(line) ?? [];
      if (name !== undefined) names.add(name);
    }
  }
  // Few names are no list of metrics. Those of launches are always there, listed or not.
  if (names.size < 100) return new Set();
  for (const metric of RUNS.flat()) if (metric.startsWith("launch__")) names.add(metric);
  return names;
}

/** In the PATH, in a toolkit, or in a package of its own. */
function findNcu(): string | null {
  const inPath = Bun.which("ncu");
  if (inPath !== null) return inPath;
  const folders = ["/usr/local", "/opt/nvidia/nsight-compute", "/opt"].flatMap((folder) =>
    (existsSync(folder) ? readdirSync(folder) : [])
      .toSorted()
      .toReversed()
      .map((name) => join(folder, name)),
  );
  const found = folders.flatMap((folder) => [join(folder, "bin/ncu"), join(folder, "ncu")]);
  return found.find((path) => existsSync(path)) ?? null;
}

function versionOf(ncu: string): string {
  const run = Bun.spawnSync([ncu, "--version"], { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
  return /Version \S+.*/.exec(run.stdout.toString())?.[0] ?? "ncu";
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

process.exitCode = await main();
