import { installPackages, moduleCommand, restart } from "./checkout.ts";
import { EXIT } from "./command.ts";
import type { Command } from "./command.ts";
import type { DemoAgent, DemoDistance } from "./demo-agent.ts";
import { movedBytes } from "./demo-bytes.ts";
import { DEMO_CASES, ownerOf } from "./demo-cases.ts";
import type { DemoCase, DemoPeerName } from "./demo-cases.ts";
import { startChild } from "./demo-channel.ts";
import type { DemoChild } from "./demo-channel.ts";
import { setupNixl } from "./nixl-setup.ts";
import type { NixlLocation } from "./nixl-setup.ts";
import { table } from "./output.ts";
import type { Output } from "./output.ts";
import { readyShim } from "./shim.ts";
import type { UcxFacts } from "./ucx-log.ts";

/** What the demo found out about one case. */
export interface DemoResult {
  readonly name: string;
  readonly bytes: number;
  /** Every byte of both layouts was as it must be, guard blocks included. */
  readonly verified: boolean;
  /** Gigabits (10^9) of payload per second over NIXL, the fastest of a few runs; null where NIXL was left out. */
  readonly gbps: number | null;
  /** The same between neighbours that map each other's memory. */
  readonly neighbourGbps: number;
  /** How many times as fast neighbours are; null where NIXL was left out. */
  readonly ratio: number | null;
}

/** Runs for the clock after the first, verified one. */
const REPEATS = 5;

/** `kvferry demo`. */
export const demoCommand: Command = {
  name: "demo",
  summary: "move blocks between two processes, over NIXL and as neighbours, and verify every byte",
  description: [
    "Starts a second process. The two exchange metadata and move blocks both ways, between different arrangements,",
    "orders and page sizes, with notifications: once over NIXL, as between hosts, and once as neighbours that map each",
    "other's memory, as processes of one host do by themselves. After each transfer every byte of",
    "both layouts is compared with what it must be by definition, the blocks beside the moved ones included.",
    "On a fresh clone it installs packages, builds the native library and fetches NIXL first.",
    "gbps: gigabits (10^9) of payload per second, from submit to await, the fastest of a few runs; neighbourGbps: the",
    "same between neighbours; ratio: how many times as fast that is.",
  ].join("\n"),
  options: {
    neighbours: { type: "boolean", description: "Only as neighbours: needs no NIXL, so fetches none." },
  },
  run: async (parsed, output) => {
    const note = (line: string): void => output.note(line);
    if (await installPackages(note)) return await restart();
    await readyShim(note);
    const nixl = parsed.values["neighbours"] === true ? null : await nixlOrHint(output);
    const started = performance.now();
    const { pids, results, ucx, problems } = await runDemo(nixl?.library ?? null, output);
    const ok = results.every((result) => result.verified) && results.length === DEMO_CASES.length;
    const seconds = Math.round(performance.now() - started) / 1_000;
    const transport = transportsBetween(ucx);
    const summary = nixl === null ? null : { version: nixl.version, backend: "UCX", transport };
    report(results, pids, summary, seconds, output);
    for (const problem of problems) output.note(output.style.bad(problem));
    output.emit({ ok, nixl: summary, pids, cases: results, seconds });
    return ok ? EXIT.ok : EXIT.failed;
  },
};

/** NIXL, fetched if need be; where it is not to be had, what works without it is said too. */
async function nixlOrHint(output: Output): Promise<NixlLocation> {
  try {
    return await setupNixl({
      progress: (line) => output.note(line),
      unpacked: (bytes, total) => output.progress("unpacking", bytes, total),
    });
  } catch (error) {
    output.note("without NIXL: `demo --neighbours` shows what processes of one host do");
    throw error;
  }
}

interface DemoRun {
  readonly pids: readonly [number, number];
  readonly results: readonly DemoResult[];
  readonly ucx: UcxFacts;
  readonly problems: readonly string[];
}

async function runDemo(library: string | null, output: Output): Promise<DemoRun> {
  const child = startChild(moduleCommand("demo-peer"));
  try {
    const secret = crypto.getRandomValues(new Uint8Array(32));
    const far =
      library === null ? null : await runCases(child, { nixl: library, secret }, "over NIXL", output);
    const ucx = child.ucx();
    const near = await runCases(child, "neighbour", "neighbours", output);
    const results = DEMO_CASES.map((one, index): DemoResult => {
      const [over, beside] = [far?.[index], near[index]];
      const neighbourGbps = beside?.gbps ?? 0;
      const gbps = far === null ? null : (over?.gbps ?? 0);
      return {
        name: one.name,
        bytes: movedBytes(one),
        verified: (far === null || over?.problems.length === 0) && beside?.problems.length === 0,
        gbps,
        neighbourGbps,
        ratio: gbps === null ? null : gbps === 0 ? 0 : Math.round((neighbourGbps / gbps) * 100) / 100,
      };
    });
    const problems = [...(far ?? []), ...near].flatMap((outcome) => outcome.problems);
    return { pids: [process.pid, child.pid], results, ucx, problems };
  } finally {
    await child.end();
  }
}

/** What one case did at one distance. */
interface CaseOutcome {
  readonly gbps: number;
  readonly problems: readonly string[];
}

/** Runs every case at one distance, each process with a transport that has no other way. */
async function runCases(
  child: DemoChild,
  distance: DemoDistance,
  label: string,
  output: Output,
): Promise<CaseOutcome[]> {
  const { openDemoAgent } = await import("./demo-agent.ts");
  const [own] = await Promise.all([openDemoAgent("a", distance), child.open(distance)]);
  const agents: Readonly<Record<DemoPeerName, DemoAgent>> = { a: own, b: child.agent };
  try {
    await Promise.all([own.meet(await child.agent.metadata()), child.agent.meet(await own.metadata())]);
    const outcomes: CaseOutcome[] = [];
    for (const [index, one] of DEMO_CASES.entries()) {
      const outcome = await runCase(index, one, agents);
      outcomes.push(outcome);
      output.note(
        `${label.padEnd(12)} ${outcome.problems.length === 0 ? "verified" : "WRONG   "}  ${one.name}`,
      );
      output.progress(label, index + 1, DEMO_CASES.length);
    }
    await child.agent.close();
    return outcomes;
  } finally {
    await own.close();
  }
}

async function runCase(
  index: number,
  one: DemoCase,
  agents: Readonly<Record<DemoPeerName, DemoAgent>>,
): Promise<CaseOutcome> {
  const source = agents[ownerOf(one, "source")];
  const destination = agents[ownerOf(one, "destination")];
  const initiator = agents[one.initiator];
  const other = agents[one.initiator === "a" ? "b" : "a"];
  await Promise.all([source.fill(index), destination.fill(index)]);
  await initiator.transfer(index, 0);
  await other.notified(index);
  const [kept, arrived] = await Promise.all([source.verify(index), destination.verify(index)]);
  // The runs for the clock move the same bytes again: what stands there afterwards must be the same.
  const micros = await initiator.transfer(index, REPEATS);
  const again = await destination.verify(index);
  const problems = [kept, arrived, again]
    .filter((look) => look.wrong > 0)
    .map((look) => `${one.name}: ${look.wrong} of ${look.rows} rows are wrong, the first a ${look.first}`);
  const bytes = movedBytes(one);
  const gbps = Math.round(((bytes * 8) / (micros * 1_000)) * 100) / 100;
  return { gbps, problems };
}

/** What carried the data between the two processes, in UCX's names; null where UCX did not say. */
function transportsBetween(ucx: UcxFacts): string | null {
  const between = ucx.endpoints.filter((endpoint) => endpoint.scope !== "self");
  const names = [...new Set(between.flatMap((endpoint) => endpoint.transports))].toSorted();
  return names.length === 0 ? null : names.join(", ");
}

function report(
  results: readonly DemoResult[],
  pids: readonly number[],
  nixl: {
    readonly version: string | null;
    readonly backend: string;
    readonly transport: string | null;
  } | null,
  seconds: number,
  output: Output,
): void {
  const rows = results.map((result) => [
    result.name,
    result.bytes.toLocaleString("en"),
    result.verified ? "every byte" : "WRONG",
    result.gbps?.toFixed(2) ?? "-",
    result.neighbourGbps.toFixed(2),
    result.ratio === null ? "-" : `${result.ratio.toFixed(1)} x`,
  ]);
  output.say();
  const header = ["transfer", "bytes", "verified", "NIXL Gbit/s", "neighbours Gbit/s", "ratio"];
  for (const line of table(header, rows)) output.say(line);
  output.say();
  output.say(
    `Processes ${pids.join(" and ")}, ${nixl === null ? "without NIXL" : `NIXL ${nixl.version ?? "of unknown release"}, backend ${nixl.backend}, transports ${nixl.transport ?? "unknown"}`}; ${seconds} s.`,
  );
  const wrong = results.filter((result) => !result.verified).length;
  output.say(
    wrong === 0
      ? output.style.good(
          `All ${results.length} transfers verified${nixl === null ? "" : ", at both distances"}.`,
        )
      : output.style.bad(`${wrong} of ${results.length} transfers are wrong.`),
  );
}
