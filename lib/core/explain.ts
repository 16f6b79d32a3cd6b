import { descriptorsOf } from "./compile.ts";
import { formatHandle } from "./handle.ts";
import type { ExecutorName, Hop, MethodCandidate, TransferPlan } from "./plan.ts";
import type { CopyProgram } from "./program.ts";

/** A copy program in numbers, without its arrays. Bytes unless said otherwise. */
export interface ProgramSummary {
  readonly bases: number;
  /** Pairs of block places, after neighbours were joined into runs. */
  readonly pairs: number;
  /** Blocks (or parts of blocks) in all runs. */
  readonly blocks: number;
  readonly loops: readonly {
    readonly count: number;
    readonly source: number;
    readonly destination: number;
  }[];
  readonly rowBytes: number;
  readonly bytes: number;
  /** Contiguous pieces that the executor moves. */
  readonly descriptors: number;
  readonly layers: { readonly start: number; readonly end: number } | null;
}

/** A hop in numbers. */
export interface HopExplanation {
  readonly executor: ExecutorName;
  readonly op: Hop["op"];
  readonly agent: string | null;
  readonly programs: readonly ProgramSummary[];
  readonly bytes: number;
  readonly descriptorsBefore: number;
  readonly descriptorsAfter: number;
  readonly method: string;
  readonly width: number;
  readonly inline: boolean;
  readonly predictedMicros: number;
  readonly candidates: readonly MethodCandidate[];
}

/** What a plan will do and why, as plain data that survives JSON. Handles are words. */
export interface Explanation {
  readonly source: string;
  readonly destination: string;
  readonly route: string;
  readonly reason: string;
  readonly legs: readonly { readonly destination: string; readonly hops: readonly HopExplanation[] }[];
  readonly bytes: number;
  readonly descriptorsBefore: number;
  readonly descriptorsAfter: number;
  /** 0 to 1. */
  readonly coverage: number;
  readonly layers: readonly number[] | null;
  readonly predictedMicros: number;
  readonly warnings: readonly string[];
  readonly passedOver: TransferPlan["passedOver"];
}

/** The plan as plain data: the same plan that would run, not a second opinion. */
export function explainPlan(plan: TransferPlan): Explanation {
  const hops = plan.legs.flatMap((leg) => leg.hops);
  return {
    source: formatHandle(plan.source),
    destination: formatHandle(plan.destination),
    route: plan.route,
    reason: plan.reason,
    legs: plan.legs.map((leg) => ({
      destination: formatHandle(leg.destination),
      hops: leg.hops.map(explainHop),
    })),
    bytes: plan.bytes,
    descriptorsBefore: hops.reduce((sum, hop) => sum + hop.descriptorsBefore, 0),
    descriptorsAfter: hops.reduce((sum, hop) => sum + hop.descriptorsAfter, 0),
    coverage: plan.coverage,
    layers: plan.layers,
    predictedMicros: plan.predictedMicros,
    warnings: plan.warnings,
    passedOver: plan.passedOver,
  };
}

/** An explanation as lines of text. */
export function formatExplanation(explanation: Explanation): string {
  const lines = [
    `${explanation.route}: ${formatBytes(explanation.bytes)} in ${formatMicros(explanation.predictedMicros)} (predicted)`,
    `  from ${explanation.source}`,
    `  to   ${explanation.destination}`,
    `  why: ${explanation.reason}`,
    `  descriptors: ${explanation.descriptorsBefore} before merging, ${explanation.descriptorsAfter} after`,
    `  coverage of the destination blocks: ${(explanation.coverage * 100).toFixed(1)} %`,
  ];
  if (explanation.layers !== null)
    lines.push(`  layers complete in the order ${explanation.layers.join(", ")}`);
  explanation.legs.forEach((leg, legIndex) => {
    leg.hops.forEach((hop, hopIndex) => {
      lines.push(
        `  leg ${legIndex + 1} hop ${hopIndex + 1}: ${hop.op} by ${hop.method}, width ${hop.width}${
          hop.inline ? ", on the caller's thread" : ""
        }${hop.agent === null ? "" : `, peer ${hop.agent}`}`,
      );
      for (const program of hop.programs.slice(0, MOST_PROGRAMS)) lines.push(`    ${formatProgram(program)}`);
      if (hop.programs.length > MOST_PROGRAMS)
        lines.push(`    and ${hop.programs.length - MOST_PROGRAMS} more programs`);
      for (const candidate of hop.candidates)
        lines.push(
          `    ${candidate.method === hop.method ? "*" : "-"} ${candidate.method}: ${formatMicros(candidate.micros)}. ${candidate.reason}`,
        );
    });
  });
  for (const other of explanation.passedOver) lines.push(`  passed over ${other.route}: ${other.reason}`);
  for (const warning of explanation.warnings) lines.push(`  warning: ${warning}`);
  return lines.join("\n");
}

/** Programs of a hop that the text shows one by one. */
const MOST_PROGRAMS = 8;

function explainHop(hop: Hop): HopExplanation {
  // A copy: who asked may sort them, and the next plan may share the plan's own.
  const candidates = hop.candidates.map((candidate) => ({ ...candidate }));
  return { ...hop, candidates, programs: hop.programs.map(summarise) };
}

function summarise(program: CopyProgram): ProgramSummary {
  let blocks = program.pairs;
  if (program.run !== null) {
    blocks = 0;
    for (const run of program.run) blocks += run;
  }
  return {
    bases: program.srcBase.length,
    pairs: program.pairs,
    blocks,
    loops: program.count.map((count, index) => ({
      count,
      source: program.srcStride[index] ?? 0,
      destination: program.dstStride[index] ?? 0,
    })),
    rowBytes: program.rowBytes,
    bytes: program.bytes,
    descriptors: descriptorsOf(program),
    layers: program.layers,
  };
}

function formatProgram(program: ProgramSummary): string {
  const loops = program.loops
    .map((loop) => `${loop.count} x (${loop.source} -> ${loop.destination})`)
    .join(", ");
  const layers =
    program.layers === null ? "" : `, completes layers ${program.layers.start} to ${program.layers.end - 1}`;
  return `${program.bases} bases, ${program.pairs} pairs of ${program.blocks} blocks, ${
    loops === "" ? "no loops" : `loops ${loops}`
  }, rows of ${formatBytes(program.rowBytes)}: ${program.descriptors} descriptors, ${formatBytes(program.bytes)}${layers}`;
}

function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1024 ** 2) return `${(bytes / 1024).toFixed(1)} KiB`;
  if (bytes < 1024 ** 3) return `${(bytes / 1024 ** 2).toFixed(1)} MiB`;
  return `${(bytes / 1024 ** 3).toFixed(2)} GiB`;
}

function formatMicros(micros: number): string {
  if (micros === Number.POSITIVE_INFINITY) return "cannot run";
  if (micros < 1000) return `${micros.toFixed(1)} us`;
  if (micros < 1_000_000) return `${(micros / 1000).toFixed(2)} ms`;
  return `${(micros / 1_000_000).toFixed(2)} s`;
}
