// Random metadata packages: each must come back from every format that can say it, each damaged one must be refused
// or mean exactly what its bytes say, and no input may take long or much memory.
import { heapStats } from "bun:jsc";
import { decodePackage, encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import type { PackageFormat } from "../../lib/wire/index.ts";
import { randomOf } from "../random.ts";
import type { Random } from "../random.ts";
import { makePackage, makeRawPackage, randomBytes } from "../wire/generate.ts";
import { changedBytesHold, DYNAMO_FORMATS, dynamoFormatHolds, ownFormatHolds, rawFormHolds } from "../wire/laws.ts";
import type { Verdict } from "../wire/laws.ts";
import { hostileInputs } from "../wire/hostile-inputs.ts";

/** What the proof is asked to do. */
export interface WireProofOptions {
  /** Random cases; of the packages that are damaged at every byte there is one for a thousand cases. */
  readonly cases: number;
  readonly seed: number;
  /** Stops after this time. */
  readonly minutes?: number;
}

/** What the proof found. */
export interface WireProofResult {
  readonly name: string;
  readonly cases: number;
  readonly failures: number;
  readonly seed: number;
  readonly seconds: number;
  readonly findings: readonly string[];
  /** How the work was spread. */
  readonly tally: Readonly<Record<string, number>>;
}

/** Inputs of a mebibyte must be decoded or refused within this. */
const LIMIT = { milliseconds: 10, bytes: 8 * 2 ** 20 } as const;

/** Tries round trips, damage and hostile inputs. */
export async function run(options: WireProofOptions): Promise<WireProofResult> {
  const started = performance.now();
  const until = started + (options.minutes ?? Number.POSITIVE_INFINITY) * 60_000;
  const tally: Record<string, number> = {};
  const findings: string[] = [];
  let cases = 0;
  let failures = 0;
  const note = (kind: string, index: number, verdict: Verdict): void => {
    tally[kind] = (tally[kind] ?? 0) + 1;
    if (verdict === null) return;
    failures++;
    if (findings.length < 20) findings.push(`seed ${options.seed} ${kind} ${index}: ${verdict.slice(0, 2_000)}`);
  };

  for (let index = 0; index < options.cases && performance.now() < until; index++, cases++) {
    const [kind, verdict] = tryCase(randomOf(options.seed, index), index);
    note(kind, index, verdict);
    // Lets other work of the process run.
    if (index % 256 === 0) await Promise.resolve();
  }
  const packages = Math.ceil(options.cases / 1_000);
  for (let index = 0; index < packages && performance.now() < until; index++) {
    damageEverywhere(randomOf(options.seed ^ 0x5bd1e995, index), (kind, verdict) => note(kind, index, verdict));
    await Promise.resolve();
  }
  for (const { name, bytes } of hostileInputs()) note("hostile", 0, takesTooMuch(name, bytes));
  const seconds = (performance.now() - started) / 1_000;
  return { name: "wire", cases, failures, seed: options.seed, seconds, findings, tally };
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
  const changes = own ? [1, 2, 4, 8, 16, 32, 64, 128, 255] : Array.from({ length: 255 }, (_, index) => index + 1);
  const changed = bytes.slice();
  for (let at = 0; at < bytes.length; at++) {
    note(`${format} truncated`, changedBytesHold(bytes.subarray(0, at), format));
    // Long names are the same byte many times over: their first and last few stand for them.
    if (!own && at > 40 && at < bytes.length - 200) continue;
    for (const change of changes) {
      changed[at] = (bytes[at] ?? 0) ^ change;
      note(`${format} changed`, changedBytesHold(changed, format));
    }
    changed[at] = bytes[at] ?? 0;
  }
}

/** The best of several runs, so that other work of the machine does not count. */
function takesTooMuch(name: string, bytes: Uint8Array): Verdict {
  const tries = Array.from({ length: 25 }, () => {
    const before = performance.now();
    try {
      decodePackage(bytes);
    } catch {
      // Refused or not: here only the cost counts.
    }
    return performance.now() - before;
  });
  const milliseconds = Math.min(...tries);
  Bun.gc(true);
  const held = memory();
  let value: unknown;
  try {
    value = decodePackage(bytes);
  } catch (error) {
    value = error;
  }
  const grown = memory() - held;
  if (milliseconds > LIMIT.milliseconds) return `${name}: ${milliseconds.toFixed(1)} ms`;
  if (grown > LIMIT.bytes) return `${name}: ${(grown / 2 ** 20).toFixed(1)} MiB`;
  return value === undefined ? `${name}: nothing came out` : null;
}

function memory(): number {
  const { heapSize, extraMemorySize } = heapStats();
  return heapSize + extraMemorySize;
}
