// Plans one random transfer and checks it byte by byte. Needs no native code: who runs the hops is given.
import { descriptorsOf } from "../../lib/core/compile.ts";
import { resolveShape } from "../../lib/core/component-shape.ts";
import { resolveConfig } from "../../lib/core/config-resolve.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import type { ComponentRecord, LayoutRecord } from "../../lib/core/layout.ts";
import type { Hop, TransferPlan } from "../../lib/core/plan.ts";
import { planPrepared, planTransfer } from "../../lib/core/planner.ts";
import { preparePair } from "../../lib/core/prepare.ts";
import { defaultProfile } from "../../lib/core/machine-figures.ts";
import type { CopyProgram } from "../../lib/core/program.ts";
import { emptyRegistry, registerLayout, type RegistrySnapshot } from "../../lib/core/registry.ts";
import type { BlockSelection, PlanRequest } from "../../lib/core/request.ts";
import type { PlanEnvironment } from "../../lib/core/environment.ts";
import { interpret, visitRows } from "../interpreter.ts";
import { expectedRows, type OracleComponent, type OracleResult } from "../oracle.ts";
import { randomOf } from "../random.ts";
import { type CaseSide, makeCase, type PlannerCase } from "./planner-case.ts";

/** Somebody who runs a hop over the bench's memory; answers what went wrong, or null. */
export interface HopRunner {
  readonly name: string;
  run(hop: Hop, nontemporal: boolean): string | null;
}

/** Memory in which cases lay out their regions. */
export interface Bench {
  readonly memory: Uint8Array;
  readonly pristine: Uint8Array;
  readonly expected: Uint8Array;
  /** Address of the first byte that regions may use. */
  readonly origin: number;
  readonly runners: readonly HopRunner[];
  readonly empty: RegistrySnapshot;
}

/** How a case went. */
export interface Outcome {
  /** `moved`, `empty`, or the code word of an expected refusal. */
  readonly kind: string;
  readonly problem: string | null;
}

/** Bytes of a bench's memory. */
export const ARENA_BYTES = 1_048_576;

/** Bytes before the first and behind the last region, which must stay as they are. */
const GUARD = 64;

const ENVIRONMENT: PlanEnvironment = { executors: ["host", "nixl"], processors: 2 };

/**
 * A bench over memory whose first byte has the given address.
 *
 * @param runners - Who runs each plan beside the interpreter.
 */
export function makeBench(memory: Uint8Array, address: number, runners: readonly HopRunner[]): Bench {
  const pristine = new Uint8Array(ARENA_BYTES);
  const random = randomOf(1, 1);
  for (let index = 0; index < ARENA_BYTES; index++) pristine[index] = random.between(0, 255);
  return {
    memory,
    pristine,
    expected: new Uint8Array(ARENA_BYTES),
    origin: address + GUARD,
    runners,
    empty: emptyRegistry({ workerId: 1n, agentName: "proof", wireName: "proof", incarnation: 1 }),
  };
}

/** Plans a case, runs it and compares every byte that it could reach. */
export function tryCase(bench: Bench, seed: number, index: number): Outcome {
  const random = randomOf(seed, index);
  const given = makeCase(random, bench.origin);
  const used = given.bytes + 2 * GUARD;
  if (used > ARENA_BYTES) return { kind: "too large", problem: `needs ${used} bytes` };
  const oracle = given.expected === null ? expectedRows(requestOf(given)) : null;
  const word = given.expected ?? (oracle !== null && overlaps(bench, oracle, used) ? "OVERLAP" : null);
  let plan: TransferPlan;
  try {
    plan = planCase(bench, given);
  } catch (error) {
    if (word !== null && isKvferryError(error, word)) return { kind: word, problem: null };
    return { kind: "threw", problem: `expected ${word ?? "a plan"}, got ${String(error)}` };
  }
  if (word !== null || oracle === null)
    return { kind: "not refused", problem: `expected ${word}, got a plan` };
  const problem = checkPlan(bench, given, plan, oracle, used);
  return { kind: plan.bytes === 0 ? "empty" : "moved", problem };
}

function requestOf(given: PlannerCase): Parameters<typeof expectedRows>[0] {
  return {
    source: given.source.components,
    destination: given.destination.components,
    sourceBlocks: given.sourceBlocks,
    destinationBlocks: given.destinationBlocks,
    ...(given.options.components === undefined ? {} : { components: given.options.components }),
    ...(given.options.layers === undefined ? {} : { layers: given.options.layers }),
    ...(given.options.tokens === undefined ? {} : { tokens: given.options.tokens }),
  };
}

function planCase(bench: Bench, given: PlannerCase): TransferPlan {
  const first = registerLayout(bench.empty, layoutOf(given.source));
  const second = given.sameLayout ? first : registerLayout(first.snapshot, layoutOf(given.destination));
  const request: PlanRequest = {
    source: first.layout.handle,
    destination: second.layout.handle,
    sourceBlocks: selectionOf(given, given.sourceBlocks),
    destinationBlocks: selectionOf(given, given.destinationBlocks),
    ...given.options,
  };
  if (given.typed) return planTransfer(second.snapshot, request, defaultProfile, ENVIRONMENT);
  const prepared = preparePair(second.snapshot, request, defaultProfile, ENVIRONMENT);
  return planPrepared(prepared, request.sourceBlocks, request.destinationBlocks);
}

function layoutOf(side: CaseSide): Omit<LayoutRecord, "handle" | "layoutId" | "generation" | "owner"> {
  return {
    name: "case",
    tier: "G2",
    access: "read-write",
    fingerprint: side.fingerprint,
    stagedOnly: false,
    components: side.components.map((component) => recordOf(component, side.remote)),
  };
}

function recordOf(component: OracleComponent, remote: boolean): ComponentRecord {
  const { name, arrangement, group, wholeBlocks } = component;
  const config = resolveConfig(component.config, "proof");
  // Engine presets and strides already say their order.
  const order =
    arrangement === "fully-contiguous" ||
    (typeof arrangement === "string" && arrangement.startsWith("layer-separate"))
      ? (component.order as ComponentRecord["shape"]["order"])
      : undefined;
  const shape = resolveShape({ name, config, arrangement, order, group, wholeBlocks, alias: false }, "proof");
  const bases = Float64Array.from(component.regions);
  return {
    shape,
    storage: { kind: "system" },
    regionAddresses: bases,
    regionSizes: new Float64Array(bases.length).fill(shape.view.regionBytes),
    attachment: remote ? { kind: "nixl", agent: "peer", bases } : { kind: "addresses", bases, origin: "own" },
    nixlDevice: 0,
  };
}

function selectionOf(given: PlannerCase, lists: Readonly<Record<string, readonly number[]>>): BlockSelection {
  const made = Object.entries(lists).map(
    ([group, ids]) => [group, given.typed ? Uint32Array.from(ids) : ids] as const,
  );
  const [only] = made;
  // A typed array would wrap ids that are out of range, so those stay numbers.
  if (made.length === 1 && only !== undefined && given.plain) return only[1];
  return Object.fromEntries(made);
}

/** Whether a byte is both read and written. */
function overlaps(bench: Bench, oracle: OracleResult, used: number): boolean {
  const { rows } = oracle;
  const first = bench.origin - GUARD;
  const marks = bench.expected.fill(0, 0, used);
  for (let row = 0; row < rows.length; row += 4) {
    const from = (rows[row + 1] as number) - first; // four numbers a row
    marks.fill(1, from, from + (rows[row + 3] as number));
  }
  for (let row = 0; row < rows.length; row += 4) {
    const to = (rows[row + 2] as number) - first;
    const end = to + (rows[row + 3] as number);
    for (let at = to; at < end; at++) if (marks[at] !== 0) return true;
  }
  return false;
}

function checkPlan(
  bench: Bench,
  given: PlannerCase,
  plan: TransferPlan,
  oracle: OracleResult,
  used: number,
): string | null {
  const first = bench.origin - GUARD;
  const { memory, pristine, expected } = bench;
  const { rows } = oracle;
  expected.set(pristine.subarray(0, used));
  for (let row = 0; row < rows.length; row += 4) {
    const from = (rows[row + 1] as number) - first; // four numbers a row
    const to = (rows[row + 2] as number) - first;
    expected.set(pristine.subarray(from, from + (rows[row + 3] as number)), to);
  }
  const numbers = checkNumbers(given, plan, oracle);
  if (numbers !== null) return numbers;
  const hops = plan.legs.flatMap((leg) => leg.hops);

  memory.set(pristine.subarray(0, used));
  const layerwise = given.options.layerwise !== undefined;
  if (layerwise && plan.bytes > 0) {
    const covered = hops.flatMap((hop) => hop.programs.map((program) => program.layers));
    // A layer whose components have empty lists has nothing to wait for.
    const moved = new Set(rows.filter((_, index) => index % 4 === 0));
    const missing = [...moved].find(
      (layer) =>
        !(plan.layers ?? []).includes(layer) ||
        !covered.some((layers) => layers !== null && layer >= layers.start && layer < layers.end),
    );
    if (missing !== undefined) return `layer ${missing} is never said to be complete`;
  }
  for (const hop of hops) {
    for (const program of hop.programs) {
      interpret(program, memory, first);
      if (layerwise && program.layers !== null) {
        const early = checkLayers(bench, oracle, program.layers, first);
        if (early !== null) return early;
      }
    }
  }
  if (!sameBytes(memory, expected, used)) return `interpreter: ${firstDifference(bench, used)}`;

  for (const runner of bench.runners) {
    memory.set(pristine.subarray(0, used));
    for (const hop of hops) {
      const problem = runner.run(hop, given.typed);
      if (problem !== null) return `${runner.name}: ${problem}`;
    }
    if (!sameBytes(memory, expected, used)) return `${runner.name}: ${firstDifference(bench, used)}`;
  }
  return null;
}

function checkNumbers(given: PlannerCase, plan: TransferPlan, oracle: OracleResult): string | null {
  if (plan.bytes !== oracle.movedBytes)
    return `plan moves ${plan.bytes} bytes, ${oracle.movedBytes} are meant`;
  if (oracle.askedBytes > 0) {
    const coverage = oracle.movedBytes / oracle.askedBytes;
    if (Math.abs(plan.coverage - coverage) > 1e-9) return `coverage ${plan.coverage}, ${coverage} is meant`;
  }
  const regions = [...given.source.components, ...given.destination.components];
  for (const hop of plan.legs.flatMap((leg) => leg.hops)) {
    if (hop.descriptorsAfter > hop.descriptorsBefore)
      return `${hop.descriptorsBefore} descriptors before merging, ${hop.descriptorsAfter} after`;
    for (const program of hop.programs) {
      const odd = checkProgram(program, regions);
      if (odd !== null) return odd;
    }
  }
  return null;
}

/** Sums, counts, and that no row leaves its region. */
function checkProgram(program: CopyProgram, components: readonly OracleComponent[]): string | null {
  let bytes = 0;
  let pieces = 0;
  let odd: string | null = null;
  const spans = components.flatMap((component) => spansOf(component));
  const inside = (address: number, length: number): boolean =>
    spans.some((span) => address >= span[0] && address + length <= span[1]);
  visitRows(program, (source, destination, length) => {
    bytes += length;
    pieces++;
    if (!inside(source, length) || !inside(destination, length))
      odd ??= `a row of ${length} bytes leaves its region`;
  });
  if (bytes !== program.bytes) return `a program says ${program.bytes} bytes and moves ${bytes}`;
  if (pieces !== descriptorsOf(program))
    return `a program says ${descriptorsOf(program)} descriptors and has ${pieces}`;
  return odd;
}

const spanCache = new WeakMap<OracleComponent, readonly (readonly [number, number])[]>();

function spansOf(component: OracleComponent): readonly (readonly [number, number])[] {
  let spans = spanCache.get(component);
  if (spans === undefined) {
    const { view } = recordOf(component, false).shape;
    spans = component.regions.map((base) => [base, base + view.regionBytes] as const);
    spanCache.set(component, spans);
  }
  return spans;
}

/** Layers that a program declares complete must be, up to its end. */
function checkLayers(
  bench: Bench,
  oracle: OracleResult,
  layers: { readonly start: number; readonly end: number },
  first: number,
): string | null {
  const { rows } = oracle;
  for (let row = 0; row < rows.length; row += 4) {
    if ((rows[row] as number) >= layers.end) continue; // four numbers a row
    const to = (rows[row + 2] as number) - first;
    const end = to + (rows[row + 3] as number);
    for (let at = to; at < end; at++)
      if (bench.memory[at] !== bench.expected[at])
        return `layer ${rows[row]} is not complete when it is said to be`;
  }
  return null;
}

function sameBytes(left: Uint8Array, right: Uint8Array, length: number): boolean {
  return Buffer.compare(left.subarray(0, length), right.subarray(0, length)) === 0;
}

function firstDifference(bench: Bench, used: number): string {
  for (let at = 0; at < used; at++) {
    if (bench.memory[at] === bench.expected[at]) continue;
    const kind = bench.expected[at] === bench.pristine[at] ? "was touched and should not be" : "is wrong";
    return `byte ${at - GUARD} ${kind}`;
  }
  return "no difference";
}
