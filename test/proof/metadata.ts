// Damaged packages of all formats. With a secret none is accepted that is not the original; without one, none of
// kvferry's own, and of Dynamo's only what means exactly what its bytes say. None takes long, much memory, or crashes. A
// part of them goes to real NIXL agents, in child processes that see no network.
import { heapStats } from "bun:jsc";
import { Transport } from "../../index.ts";
import type { LayoutSpec } from "../../index.ts";
import { emptyRegistry } from "../../lib/core/registry.ts";
import { importPackage } from "../../lib/core/registry-import.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import type { PackageFormat } from "../../lib/core/package.ts";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { macOf } from "../../lib/runtime/authentication.ts";
import { checkBlob } from "../../lib/runtime/blob-check.ts";
import type { SecretKey } from "../../lib/runtime/options.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { changedBytesHold, DYNAMO_FORMATS } from "../wire/laws.ts";
import { randomOf } from "../random.ts";
import type { Random } from "../random.ts";
import { mutate, type Mutant } from "./metadata-mutate.ts";
import { feedAgents } from "./metadata-agents.ts";
import type { ProofOptions, ProofResult } from "./proof.ts";

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

/**
 * Damages packages and looks at what becomes of them.
 *
 * @param options - A case is a damaged package; one in 500 goes to NIXL as well, up to 2,000.
 */
export async function run(options: ProofOptions): Promise<ProofResult> {
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
  // What is not damaged must be taken, or refusing the rest would prove nothing.
  for (const { format, plain, signed } of originals) {
    if (attempt(() => decodePackage(plain)) === null) fail(`an original in ${format} is refused`);
    if (signed !== null && attempt(() => decodePackage(signed, { mac: macOf(KEYS) })) === null)
      fail(`a signed original in ${format} is refused`);
  }
  let cases = 0;
  for (; cases < options.cases && performance.now() < until; cases++) {
    const { how, problem, accepted } = tryCase(options.seed, cases, originals);
    tally[how] = (tally[how] ?? 0) + 1;
    if (accepted !== null) tally[accepted] = (tally[accepted] ?? 0) + 1;
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
  /** What it was taken for without a secret; null for a refusal. */
  readonly accepted: string | null;
}

function tryCase(seed: number, index: number, originals: readonly Original[]): Tried {
  const random = randomOf(seed, index);
  const original = pickOriginal(random, originals);
  const other = pickOriginal(random, originals);
  const authentic = original.signed !== null && random.chance(0.5);
  const base = authentic ? (original.signed ?? original.plain) : original.plain;
  const mutant = mutate(random, base, random.pick([other.plain, other.signed ?? other.plain]));
  const how = `${original.format} ${mutant.how}`;
  try {
    const secret = withSecret(mutant, originals);
    const open = withoutSecret(mutant, originals);
    return {
      how,
      problem: secret ?? open.problem ?? costs(mutant.bytes, index % 1_000 === 0),
      accepted: open.accepted,
    };
  } catch (error) {
    return { how, problem: `thrown: ${Bun.inspect(error)}`, accepted: null };
  }
}

/** Any of them; the large ones, which take long to try, seldom. */
function pickOriginal(random: Random, originals: readonly Original[]): Original {
  const picked = random.pick(originals);
  return picked.plain.length > LARGE && !random.chance(0.02) ? pickOriginal(random, originals) : picked;
}

const LARGE = 16_384;

/** Only what a worker with the key made is accepted. */
function withSecret({ bytes }: Mutant, originals: readonly Original[]): string | null {
  const value = attempt(() => decodePackage(bytes, { mac: macOf(KEYS) }));
  if (value === null) return null;
  // Whoever has the key made exactly these bytes.
  return originals.some(({ signed }) => signed !== null && sameBytes(signed, bytes))
    ? null
    : "accepted with a secret though no worker made it";
}

/**
 * Without a secret nobody can tell a worker from a liar: what is accepted is an original as it was, or says exactly what
 * its bytes say. Damage in kvferry's own format, which has a checksum, is refused.
 */
function withoutSecret(
  { how, bytes }: Mutant,
  originals: readonly Original[],
): { readonly problem: string | null; readonly accepted: string | null } {
  const value = attempt(() => decodePackage(bytes));
  if (value === null) return { problem: null, accepted: null };
  const undamaged = originals.some(
    ({ plain, signed }) => sameBytes(plain, bytes) || (signed !== null && sameBytes(signed, bytes)),
  );
  const taken = attempt(() => {
    // Whatever was accepted goes on to the registry and to the checks before NIXL: they refuse or take, no more.
    importPackage(REGISTRY, value, () => ({ kind: "staged", agent: value.wireName }));
    checkBlob(value, "importMetadata");
    return true;
  });
  const accepted = `taken without a secret: ${value.format}, ${undamaged ? "not changed" : "changed"}, ${taken === null ? "refused before NIXL" : "goes on to NIXL"}`;
  if (undamaged) return { problem: null, accepted };
  if (value.format !== "kvferry") {
    const problem = DYNAMO_FORMATS.map((format) => changedBytesHold(bytes, format)).find(
      (verdict) => verdict !== null,
    );
    return { problem: problem ?? null, accepted };
  }
  // A right checksum over other bytes is another package: it must say what its bytes say, and nothing twice.
  if (how !== "signed anew" && how !== "field")
    return { problem: "damaged, and accepted as a package of kvferry's", accepted };
  const again = decodePackage(encodePackage(value, "kvferry"));
  return {
    problem: Bun.deepEquals(again, value, true) ? null : "accepted with another meaning than its bytes",
    accepted,
  };
}

function sameBytes(left: Uint8Array, right: Uint8Array): boolean {
  return left.length === right.length && Buffer.compare(left, right) === 0;
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
  const before = heapStats();
  const value = attempt(() => decodePackage(bytes));
  const after = heapStats();
  Bun.gc(true);
  const kept = heapStats().heapSize - before.heapSize;
  // With garbage: blocks of the heap, and what lies outside it.
  const used = after.heapCapacity - before.heapCapacity + after.extraMemorySize - before.extraMemorySize;
  const grown = Math.max(kept, used);
  return grown > LIMIT.bytes ? `took ${(grown / 2 ** 20).toFixed(1)} MiB (${typeof value})` : null;
}

function once(bytes: Uint8Array): number {
  const before = performance.now();
  attempt(() => decodePackage(bytes));
  return performance.now() - before;
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
  for (const [index, layouts] of [0, 1, 3, 300].entries()) {
    await using open1 = await open(BigInt(10 + index), false);
    await using signed1 = await open(BigInt(20 + index), true);
    for (const transport of [open1, signed1])
      for (let layout = 0; layout < layouts; layout++) await transport.register(specOf(layout));
    for (const format of FORMATS) {
      if (format !== "kvferry" && nixl === false) continue;
      originals.push({
        format,
        plain: await open1.exportMetadata({ format }),
        signed: format === "kvferry" ? await signed1.exportMetadata({ expiresInMs: 3_600_000 }) : null,
      });
    }
  }
  originals.push(await bundleOriginal(open));
  return originals;
}

function specOf(layout: number): LayoutSpec {
  return {
    name: `layout ${layout}`,
    config: { numBlocks: 4 + (layout % 3), numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 16 },
    arrangement: layout % 2 === 0 ? "fully-contiguous" : "layer-separate/block-second",
    memory: { kind: "system" },
  };
}

/** What only kvferry's own format can say: components, windows, strides, a fingerprint, an audience. */
async function bundleOriginal(
  open: (workerId: bigint, secret: boolean) => Promise<Transport>,
): Promise<Original> {
  const make = async (workerId: bigint, secret: boolean): Promise<Uint8Array> => {
    await using transport = await open(workerId, secret);
    const config = {
      numBlocks: 4,
      numLayers: 2,
      outerDim: 2,
      pageSize: 4,
      numHeads: 2,
      headDim: 8,
      dtype: "bf16",
    } as const;
    await transport.register({
      name: "bundle",
      fingerprint: "model-7",
      components: {
        kv: {
          config: { ...config, headWindow: { start: 2, total: 8 }, layers: [1, 5] },
          arrangement: "LBHNC",
          memory: { kind: "system" },
        },
        state: {
          config: { ...config, outerDim: 1, layerWindow: { start: 4, total: 8 } },
          arrangement: { strides: { block: 512, layer: 128, page: 32, head: 16 }, regions: "one" },
          memory: { kind: "system" },
          group: "states",
          wholeBlocks: true,
        },
      },
    });
    return await transport.exportMetadata({ audience: [1n, 2n ** 63n] });
  };
  return { format: "kvferry", plain: await make(14n, false), signed: await make(24n, true) };
}
