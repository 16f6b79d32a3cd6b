// Memory in which random cases lie, and layouts over it.
import { toArrayBuffer } from "bun:ffi";
import type { LayoutSpec } from "../../../index.ts";
import { resolveShape } from "../../../lib/core/component-shape.ts";
import { resolveConfig } from "../../../lib/core/config-resolve.ts";
import { openLibrary } from "../../../lib/native/library.ts";
import { KVF_MEMORY_SHARED } from "../../../lib/native/symbols.ts";
import type { BlockSelection } from "../../../lib/core/request.ts";
import { expectedRows, type OracleComponent, type OracleRequest } from "../../oracle.ts";
import type { CaseSide, PlannerCase } from "../../proof/planner-case.ts";
import { randomOf } from "../../random.ts";

/** Bytes before the first region of a case. */
export const GUARD = 64;

/** Memory that this process owns, with random starting bytes: a file in memory, so that others can map it. */
export interface Arena {
  readonly address: number;
  readonly descriptor: number;
  readonly memory: Uint8Array<ArrayBuffer>;
  readonly pristine: Uint8Array<ArrayBuffer>;
}

export function makeArena(bytes: number): Arena {
  const out = new Float64Array(new ArrayBuffer(32));
  if (openLibrary().kvf_memory_map(bytes, KVF_MEMORY_SHARED, 0, out) !== 0)
    throw new Error("no memory for an arena");
  const [address = 0, , descriptor = -1] = out;
  const memory = new Uint8Array(toArrayBuffer(address as never, 0, bytes));
  const pristine = new Uint8Array(new ArrayBuffer(bytes));
  const random = randomOf(2, 2);
  for (let index = 0; index < bytes; index++) pristine[index] = random.between(0, 255);
  memory.set(pristine);
  return { address, descriptor, memory, pristine };
}

/**
 * The layout that a side of a case describes, over the memory where the case put it.
 *
 * @param handed - The arena, when neighbours shall be able to map it.
 */
export function specOf(name: string, side: CaseSide, handed: Arena | null = null): LayoutSpec {
  return {
    name,
    ...(side.fingerprint === null ? {} : { fingerprint: side.fingerprint }),
    components: Object.fromEntries(
      side.components.map((component) => [component.name, partOf(component, handed)]),
    ),
  };
}

function partOf(
  component: OracleComponent,
  handed: Arena | null,
): Extract<LayoutSpec, { components: object }>["components"][string] {
  const { name, arrangement, group, wholeBlocks } = component;
  // Engine presets and strides already say their order.
  const ordered =
    arrangement === "fully-contiguous" ||
    (typeof arrangement === "string" && arrangement.startsWith("layer-separate"));
  const order = ordered
    ? (component.order as ["layer", ...("layer" | "outer" | "page" | "head")[]])
    : undefined;
  const config = resolveConfig(component.config, "test");
  const { view } = resolveShape(
    { name, config, arrangement, order, group, wholeBlocks, alias: false },
    "test",
  );
  return {
    config: component.config,
    arrangement,
    ...(order === undefined ? {} : { order }),
    group,
    wholeBlocks,
    memory:
      handed === null
        ? {
            kind: "external",
            storage: "system",
            regions: component.regions.map((address) => ({ address, size: view.regionBytes })),
          }
        : {
            kind: "external-fd",
            regions: component.regions.map((address) => ({
              fd: handed.descriptor,
              offset: address - handed.address,
              size: view.regionBytes,
            })),
          },
  };
}

export function oracleRequest(given: PlannerCase): OracleRequest {
  const { components, layers, tokens } = given.options;
  return {
    source: given.source.components,
    destination: given.destination.components,
    sourceBlocks: given.sourceBlocks,
    destinationBlocks: given.destinationBlocks,
    ...(components === undefined ? {} : { components }),
    ...(layers === undefined ? {} : { layers }),
    ...(tokens === undefined ? {} : { tokens }),
  };
}

export function selectionOf(
  given: PlannerCase,
  lists: Readonly<Record<string, readonly number[]>>,
): BlockSelection {
  const made = Object.entries(lists).map(
    ([group, ids]) => [group, given.typed ? Uint32Array.from(ids) : ids] as const,
  );
  const [only] = made;
  if (made.length === 1 && only !== undefined && given.plain) return only[1];
  return Object.fromEntries(made);
}

/** What the arena must hold after a transfer, by definition, or null when it reads what it writes. */
export function expectedBytes(arena: Arena, request: OracleRequest): Uint8Array | null {
  const { rows } = expectedRows(request);
  const expected = arena.pristine.slice();
  const read = new Uint8Array(expected.byteLength);
  for (let row = 0; row < rows.length; row += 4) {
    const from = (rows[row + 1] as number) - arena.address; // four numbers a row
    read.fill(1, from, from + (rows[row + 3] as number));
  }
  for (let row = 0; row < rows.length; row += 4) {
    const from = (rows[row + 1] as number) - arena.address;
    const to = (rows[row + 2] as number) - arena.address;
    const end = to + (rows[row + 3] as number);
    if (read.subarray(to, end).includes(1)) return null;
    expected.set(arena.pristine.subarray(from, from + (rows[row + 3] as number)), to);
  }
  return expected;
}
