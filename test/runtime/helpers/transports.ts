// Opens transports for tests. What needs NIXL is skipped, loudly, where NIXL was not found.
import { test } from "bun:test";
import {
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type OpenOptions,
  type Peer,
} from "../../../index.ts";
import { findNixl } from "../../../lib/native/find-nixl.ts";

/** Path of NIXL's library, or null. */
export const NIXL: string | null = findNixl()?.library ?? null;

/** `test` where NIXL is, else a skip that says what was not tested. */
export const nixlTest: typeof test =
  NIXL === null
    ? (Object.assign(
        (name: string) => {
          console.error(`NOT TESTED, for NIXL was not found: ${name}`);
          test.skip(name, () => undefined);
        },
        { each: test.skip.each },
      ) as unknown as typeof test)
    : test;

/** 4 blocks of 2 layers, K and V, 4 tokens of 16 two-byte elements: 512 bytes in a block. */
export const SMALL: LayoutConfig = { numBlocks: 4, numLayers: 2, outerDim: 2, pageSize: 4, innerDim: 16 };

/** A layout over memory of its own. */
export function systemSpec(name: string, config: LayoutConfig = SMALL, more: object = {}): LayoutSpec {
  return { name, config, arrangement: "fully-contiguous", memory: { kind: "system" }, ...more };
}

let lastWorker = 1_000n;

/** A worker id that no other transport of this process has. */
export function freshWorker(): bigint {
  return ++lastWorker;
}

/** A transport without NIXL and CUDA. */
export function openLocal(options: Partial<OpenOptions> = {}): Promise<Transport> {
  return Transport.open({ workerId: freshWorker(), nixl: false, cuda: false, neighbours: false, ...options });
}

/** A transport with a NIXL agent, which reaches others through NIXL only. */
export function openRemote(options: Partial<OpenOptions> = {}): Promise<Transport> {
  return Transport.open({
    workerId: freshWorker(),
    nixl: { backends: { UCX: {} } },
    cuda: false,
    neighbours: false,
    ...options,
  });
}

/** Two transports of this process that reach each other only through NIXL; closed at the end of the scope. */
export interface Pair extends AsyncDisposable {
  readonly a: Transport;
  readonly b: Transport;
  /** Exports from `b` and imports at `a`. */
  meet(): Promise<Peer>;
  /** Both ways: `b` as `a` sees it, and `a` as `b` does. */
  meetBoth(): Promise<{ readonly b: Peer; readonly a: Peer }>;
}

export async function openPair(options: Partial<OpenOptions> = {}): Promise<Pair> {
  const [a, b] = await Promise.all([openRemote(options), openRemote(options)]);
  return {
    a,
    b,
    meet: async () => await a.importMetadata(await b.exportMetadata()),
    async meetBoth() {
      const [fromA, fromB] = await Promise.all([a.exportMetadata(), b.exportMetadata()]);
      return { b: await a.importMetadata(fromB), a: await b.importMetadata(fromA) };
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([a.close(), b.close()]);
    },
  };
}

/** Two transports of this process without NIXL, which map each other's memory. */
export function openNeighbours(options: Partial<OpenOptions> = {}): Promise<Pair> {
  return openPair({ nixl: false, neighbours: true, ...options });
}

/** Two agents take their time on a busy machine. */
const PAIR_MILLIS = 30_000;

/**
 * One test at both distances: over NIXL, and between neighbours that map each other's memory. The test is given what
 * opens its pair.
 */
export function pairTest(
  name: string,
  work: (open: typeof openPair, distance: "remote" | "neighbour") => Promise<void>,
): void {
  nixlTest(`${name} (over NIXL)`, () => work(openPair, "remote"), PAIR_MILLIS);
  test(`${name} (between neighbours)`, () => work(openNeighbours, "neighbour"), PAIR_MILLIS);
}

/** Resolves when a condition holds; throws when it does not within the time. */
export async function until(what: string, holds: () => boolean, millis = 10_000): Promise<void> {
  const end = performance.now() + millis;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`${what}: not within ${millis} ms`);
    await Bun.sleep(2);
  }
}
