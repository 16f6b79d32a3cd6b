// Damaged packages of all formats. With a secret none is accepted that is not the original; without one, none of
// kvferry's own, and of Dynamo's only what means exactly what its bytes say. None takes long, much memory, or crashes. A
// part of them goes to real NIXL agents, in child processes that see no network.
import { heapStats } from "bun:jsc";
import { Transport } from "../../index.ts";
import { emptyRegistry } from "../../lib/core/registry.ts";
import { importPackage } from "../../lib/core/registry-peers.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import type { PackageFormat } from "../../lib/core/package.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { macOf } from "../../lib/runtime/authentication.ts";
import { checkBlob } from "../../lib/runtime/blob-check.ts";
import type { SecretKey } from "../../lib/runtime/options.ts";
import { decodePackage } from "../../lib/wire/index.ts";
import { changedBytesHold, DYNAMO_FORMATS } from "../wire/laws.ts";
import { randomOf } from "../random.ts";
import { mutate, type Mutant } from "./metadata-mutate.ts";
import { feedAgents } from "./metadata-agents.ts";

/** What the proof is asked to do. */
export interface MetadataProofOptions {
  /** Damaged packages; one in 500 goes to NIXL as well, up to 2,000. */
  readonly cases: number;
  readonly seed: number;
  readonly minutes?: number;
}

/** What the proof found. */
export interface MetadataProofResult {
  readonly name: string;
  readonly cases: number;
  readonly failures: number;
  readonly seed: number;
  readonly seconds: number;
  readonly findings: readonly string[];
  readonly tally: Readonly<Record<string, number>>;
}

/** The key of the workers that the packages are made by. */
export const KEYS: readonly SecretKey[] = [{ keyId: "default", key: new Uint8Array(32).fill(0x5a) }];

const LIMIT = { milliseconds: 10, bytes: 8 * 2 ** 20 } as const;
const FORMATS: readonly PackageFormat[] = ["kvferry", "dynamo-1.0", "kvbm-physical-1"];

/** A package that a worker made, in the clear and signed. */
export interface Original {
  readonly format: PackageFormat;
  readonly plain: Uint8Array;
  /** Null for formats that carry no code. */
  readonly signed: Uint8Array | null;
}

/** Damages packages and looks at what becomes of them. */
export async function run(options: MetadataProofOptions): Promise<MetadataProofResult> {
  const started = performance.now();
  const until = started + Math.min(options.minutes ?? Number.POSITIVE_INFINITY, 1e9) * 60_000;
  const originals = await makeOriginals();
  const findings: string[] = [];
  const tally: Record<string, number> = {};
  let failures = 0;
  const fail = (finding: string): void => {
    failures++;
    if (findings.length < 20) findings.push(finding.slice(0, 2_000));
  };
  let cases = 0;
  for (; cases < options.cases && performance.now() < until; cases++) {
    const { how, problem } = tryCase(options.seed, cases, originals);
    tally[how] = (tally[how] ?? 0) + 1;
    if (problem !== null) fail(`seed ${options.seed} case ${cases} (${how}): ${problem}`);
    // Lets other work of the process run.
    if (cases % 256 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const blobs = Math.min(2_000, Math.ceil(options.cases / 500));
  const fed = await feedAgents(originals, blobs, options.seed);
  for (const [what, count] of Object.entries(fed.tally)) tally[what] = count;
  for (const finding of fed.findings) fail(finding);
  return {
    name: "metadata",
    cases,
    failures,
    seed: options.seed,
    seconds: (performance.now() - started) / 1_000,
    findings,
    tally,
  };
}

interface Tried {
  readonly how: string;
  readonly problem: string | null;
}

function tryCase(seed: number, index: number, originals: readonly Original[]): Tried {
  const random = randomOf(seed, index);
  const original = random.pick(originals);
  const other = random.pick(originals);
  const authentic = original.signed !== null && random.chance(0.5);
  const base = authentic ? (original.signed ?? original.plain) : original.plain;
  const mutant = mutate(random, base, random.pick([other.plain, other.signed ?? other.plain]));
  const how = `${original.format} ${mutant.how}`;
  try {
    const problem =
      withSecret(mutant, originals) ??
      withoutSecret(mutant, original) ??
      costs(mutant.bytes, index % 1_000 === 0);
    return { how, problem };
  } catch (error) {
    return { how, problem: `thrown: ${Bun.inspect(error)}` };
  }
}

/** Only what a worker with the key made is accepted. */
function withSecret({ bytes }: Mutant, originals: readonly Original[]): string | null {
  const value = attempt(() => decodePackage(bytes, { mac: macOf(KEYS) }));
  if (value === null) return null;
  // Whoever has the key made exactly these bytes.
  return originals.some(({ signed }) => signed !== null && Buffer.compare(signed, bytes) === 0)
    ? null
    : "accepted with a secret though no worker made it";
}

function withoutSecret({ how, bytes }: Mutant, { plain, signed }: Original): string | null {
  const value = attempt(() => decodePackage(bytes));
  if (value === null) return null;
  // Whatever was accepted goes on to the registry and to the checks before NIXL: they refuse or take, no more.
  attempt(() => {
    importPackage(REGISTRY, value, () => ({ kind: "staged", agent: value.wireName }));
    checkBlob(value, "importMetadata");
  });
  if (value.format !== "kvferry")
    return (
      DYNAMO_FORMATS.map((format) => changedBytesHold(bytes, format)).find((verdict) => verdict !== null) ??
      null
    );
  // A right checksum over other bytes is another package: without a secret anybody may make one.
  if (how === "signed anew") return null;
  const same = [plain, signed].some(
    (made) => made !== null && Bun.deepEquals(decodePackage(made), value, true),
  );
  return same || how === "spliced" ? null : "accepted with another meaning than the original's";
}

const REGISTRY = emptyRegistry({
  workerId: 2n ** 63n,
  agentName: "importer",
  wireName: "importer#1",
  incarnation: 1,
});

/** The value, or null when it is refused as it should be. */
function attempt<T>(work: () => T): T | null {
  try {
    return work();
  } catch (error) {
    if (isKvferryError(error)) return null;
    throw error;
  }
}

function costs(bytes: Uint8Array, weighed: boolean): string | null {
  let milliseconds = once(bytes);
  // A collection of garbage may fall into any of them, not into all.
  for (let again = 0; again < 8 && milliseconds > LIMIT.milliseconds; again++)
    milliseconds = Math.min(milliseconds, once(bytes));
  if (milliseconds > LIMIT.milliseconds) return `took ${milliseconds.toFixed(1)} ms`;
  if (!weighed) return null;
  Bun.gc(true);
  const before = memory();
  const value = attempt(() => decodePackage(bytes));
  const grown = memory() - before;
  return grown > LIMIT.bytes ? `took ${(grown / 2 ** 20).toFixed(1)} MiB (${typeof value})` : null;
}

function once(bytes: Uint8Array): number {
  const before = performance.now();
  attempt(() => decodePackage(bytes));
  return performance.now() - before;
}

function memory(): number {
  const { heapSize, extraMemorySize } = heapStats();
  return heapSize + extraMemorySize;
}

/** Packages of real transports: with NIXL where it is, of several layouts. */
async function makeOriginals(): Promise<Original[]> {
  const nixl = findNixl() === null ? false : { backends: { UCX: {} } };
  const open = (workerId: bigint, secret: boolean): Promise<Transport> =>
    Transport.open({
      workerId,
      nixl: nixl as { backends: Record<string, Record<string, string>> } | false,
      cuda: false,
      neighbours: false,
      ...(secret ? { secret: KEYS, trustedNetwork: true } : undefined),
    });
  const originals: Original[] = [];
  for (const [index, layouts] of [0, 1, 3].entries()) {
    await using open1 = await open(BigInt(10 + index), false);
    await using signed1 = await open(BigInt(20 + index), true);
    for (const transport of [open1, signed1])
      for (let layout = 0; layout < layouts; layout++)
        await transport.register({
          name: `layout ${layout}`,
          config: { numBlocks: 4 + layout, numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 16 },
          arrangement: layout % 2 === 0 ? "fully-contiguous" : "layer-separate/block-second",
          memory: { kind: "system" },
        });
    for (const format of FORMATS) {
      if (format !== "kvferry" && nixl === false) continue;
      originals.push({
        format,
        plain: await open1.exportMetadata({ format }),
        signed: format === "kvferry" ? await signed1.exportMetadata({ expiresInMs: 3_600_000 }) : null,
      });
    }
  }
  return originals;
}
