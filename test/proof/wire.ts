// Random metadata packages: each must come back from every format that can say it, each damaged one must be refused
// or mean exactly what its bytes say, and no input may take long or much memory.
import { encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import type { PackageFormat } from "../../lib/wire/index.ts";
import { randomOf } from "../random.ts";
import type { Random } from "../random.ts";
import { makePackage, makeRawPackage, randomBytes } from "../wire/generate.ts";
import {
  changedBytesHold,
  DYNAMO_FORMATS,
  dynamoFormatHolds,
  ownFormatHolds,
  rawFormHolds,
} from "../wire/laws.ts";
import type { Verdict } from "../wire/laws.ts";
import { costlyInputs } from "../wire/costly-inputs.ts";
import { hostileInputs } from "../wire/hostile-inputs.ts";
import { costOf, exceeds, heldMebibytes } from "./wire-cost.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

/** Below this many cases a second process costs more than it saves. */
const SHARED_FROM = 40_000;

/** Every `of`-th case, beginning with case `part`. */
interface Share {
  readonly cases: number;
  readonly seed: number;
  readonly minutes: number;
  readonly part: number;
  readonly of: number;
}

interface ShareResult {
  readonly cases: number;
  readonly failures: number;
  readonly findings: readonly string[];
  readonly tally: Readonly<Record<string, number>>;
}

/**
 * Tries round trips, damage and hostile inputs; on two processors where there are two.
 *
 * @param options - Of the packages that are damaged at every byte there is one for a thousand cases.
 */
export async function run(options: ProofOptions): Promise<ProofResult> {
  const started = performance.now();
  const { cases, seed } = options;
  // JSON has no Infinity.
  const minutes = Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9);
  const of = cases < SHARED_FROM ? 1 : Math.min(2, navigator.hardwareConcurrency);
  const others = Array.from({ length: of - 1 }, (_, index) =>
    elsewhere({ cases, seed, minutes, part: index + 1, of }),
  );
  const results = [
    await tryShare({ cases, seed, minutes, part: 0, of }),
    ...(await Promise.all(others)),
    // A quick run judges what the values hold; one at length judges each input in a process of its own.
    cases >= SHARED_FROM ? await tryCosts(seed) : tryHeld(seed),
  ];
  const tally: Record<string, number> = {};
  for (const result of results)
    for (const [kind, count] of Object.entries(result.tally)) tally[kind] = (tally[kind] ?? 0) + count;
  return {
    name: "wire",
    cases: sum(results, "cases"),
    failures: sum(results, "failures"),
    seed,
    seconds: (performance.now() - started) / 1_000,
    findings: results.flatMap(({ findings }) => findings).slice(0, 20),
    tally,
  };
}

function sum(results: readonly ShareResult[], field: "cases" | "failures"): number {
  return results.reduce((total, result) => total + result[field], 0);
}

async function elsewhere(share: Share): Promise<ShareResult> {
  const child = Bun.spawn([process.execPath, import.meta.path, JSON.stringify(share)], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  const stop = (): void => child.kill();
  process.once("exit", stop);
  const text = await new Response(child.stdout).text();
  const code = await child.exited;
  process.off("exit", stop);
  if (code !== 0)
    return { cases: 0, failures: 1, findings: [`a share of the cases ended with ${code}`], tally: {} };
  return JSON.parse(text) as ShareResult;
}

async function tryShare(share: Share): Promise<ShareResult> {
  const until = performance.now() + share.minutes * 60_000;
  const notes = newNotes(share.seed);
  let cases = 0;
  for (let index = share.part; index < share.cases && performance.now() < until; index += share.of, cases++) {
    const [kind, verdict] = tryCase(randomOf(share.seed, index), index);
    notes.add(kind, index, verdict);
    // Lets other work of the process run.
    if (cases % 256 === 0) await Promise.resolve();
  }
  const packages = Math.ceil(share.cases / 1_000);
  for (let index = share.part; index < packages && performance.now() < until; index += share.of) {
    damageEverywhere(randomOf(share.seed ^ 0x5bd1e995, index), (kind, verdict) =>
      notes.add(kind, index, verdict),
    );
    await Promise.resolve();
  }
  return { cases, ...notes.result() };
}

const HELD_MEBIBYTES = 8;

function tryHeld(seed: number): ShareResult {
  const notes = newNotes(seed);
  for (const { name, bytes } of hostileInputs()) {
    const held = heldMebibytes(bytes);
    notes.add("hostile", 0, held > HELD_MEBIBYTES ? `${name}: ${held.toFixed(1)} MiB` : null);
  }
  return { cases: 0, ...notes.result() };
}

/** The worst figures go into the tally, in hundredths. */
async function tryCosts(seed: number): Promise<ShareResult> {
  const notes = newNotes(seed);
  const worst: Record<string, number> = {};
  const note = (what: string, value: number): void => {
    worst[what] = Math.max(worst[what] ?? 0, Math.round(value * 100));
  };
  for (const input of [...costlyInputs(), ...hostileInputs()]) {
    const cost = await costOf(input);
    note("worst decoding, µs x 10", cost.milliseconds);
    note("worst growth, MiB / 100", cost.grownMebibytes);
    note("worst held, MiB / 100", cost.heldMebibytes);
    note("worst median of first decodings of a process, µs x 10", cost.firstMedian);
    note("worst single first decoding of a process, µs x 10", cost.firstWorst);
    const verdict = exceeds(cost);
    notes.add("costly", 0, verdict === null ? null : `${input.name}: ${verdict}`);
  }
  const { tally, ...rest } = notes.result();
  return {
    cases: 0,
    ...rest,
    tally: { ...tally, ...worst },
  };
}

interface Notes {
  add(kind: string, index: number, verdict: Verdict): void;
  result(): Omit<ShareResult, "cases">;
}

function newNotes(seed: number): Notes {
  const tally: Record<string, number> = {};
  const findings: string[] = [];
  let failures = 0;
  return {
    add: (kind, index, verdict) => {
      tally[kind] = (tally[kind] ?? 0) + 1;
      if (verdict === null) return;
      failures++;
      if (findings.length < 20) findings.push(`seed ${seed} ${kind} ${index}: ${verdict.slice(0, 2_000)}`);
    },
    result: () => ({ failures, findings, tally }),
  };
}

/** One random case; which law it tries follows from its number. */
function tryCase(random: Random, index: number): readonly [string, Verdict] {
  const format = DYNAMO_FORMATS[index % 2] ?? "dynamo-1.0";
  try {
    switch ((index >> 1) % 5) {
      case 0:
        return ["kvferry round trip", ownFormatHolds(random)];
      case 1:
        return [`${format} round trip`, dynamoFormatHolds(random, format)];
      case 2:
        return [`${format} raw`, rawFormHolds(random, format)];
      case 3:
        return [`${format} spliced`, changedBytesHold(splice(random, format), format)];
      default:
        return ["random bytes", changedBytesHold(randomBytes(random, random.between(0, 120)), format)];
    }
  } catch (error) {
    return ["thrown", Bun.inspect(error)];
  }
}

function splice(random: Random, format: "dynamo-1.0" | "kvbm-physical-1"): Uint8Array {
  const [head, tail] = [0, 1].map(() =>
    random.chance(0.5)
      ? encodeDynamoPackage(makeRawPackage(random, format), format)
      : encodePackage(makePackage(random, { format, layouts: 3 }), format),
  ) as [Uint8Array, Uint8Array]; // two were made
  return new Uint8Array([
    ...head.subarray(0, random.between(0, head.length)),
    ...tail.subarray(random.between(0, tail.length)),
  ]);
}

/** Every truncation of a package, and every byte changed: to all values in Dynamo's formats, by every bit in kvferry's. */
function damageEverywhere(random: Random, note: (kind: string, verdict: Verdict) => void): void {
  const format = random.pick<PackageFormat>(["kvferry", "dynamo-1.0", "kvbm-physical-1"]);
  const own = format === "kvferry";
  const value = makePackage(random, { format: own ? null : format, layouts: 2 });
  const bytes = encodePackage({ ...value, nixlMetadata: value.nixlMetadata.slice(0, 5) }, format);
  const changes = own
    ? [1, 2, 4, 8, 16, 32, 64, 128, 255]
    : Array.from({ length: 255 }, (_, index) => index + 1);
  const changed = bytes.slice();
  for (let at = 0; at < bytes.length; at++) {
    note(`${format} truncated`, changedBytesHold(bytes.subarray(0, at), format));
    for (const change of changes) {
      changed[at] = (bytes[at] ?? 0) ^ change;
      note(`${format} changed`, changedBytesHold(changed, format));
    }
    changed[at] = bytes[at] ?? 0;
  }
}

if (import.meta.main) {
  const share = JSON.parse(process.argv[2] ?? "null") as Share | null;
  if (share === null) throw new Error("run it as `bun run proof -- wire`");
  process.stdout.write(JSON.stringify(await tryShare(share)));
}
