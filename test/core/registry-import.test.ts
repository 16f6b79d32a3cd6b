import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { LayoutHandle, MetadataPackage, PackageLayout } from "../../lib/core/index.ts";
import {
  exportPackage,
  forgetPeer,
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  importPackage,
  makeHandle,
  MAX_LAYOUT_ID,
  registerLayout,
  REUSES_PER_INCARNATION,
  throughPeer,
} from "../../lib/core/index.ts";
import { checkImport, importChecked } from "../../lib/core/registry-import.ts";
import { newLayout, refusalOf, SMALL, worker } from "./builders.ts";

const ME = worker(1n);
const INCARNATION = 5;
const GENERATION = INCARNATION * REUSES_PER_INCARNATION;

const attach = () => throughPeer("worker-2~5");

/** A package of worker 2 with one layout. */
function fromPeer(sequence = 1): MetadataPackage {
  const layout = newLayout({ name: "pool", config: SMALL, memory: { kind: "system" } });
  const { snapshot } = registerLayout(worker(2n, INCARNATION), layout);
  return exportPackage(snapshot, new Uint8Array(0), { sequence });
}

/** The same package with a layout of each of these handles. */
function withHandles(handles: readonly bigint[], metadata = fromPeer()): MetadataPackage {
  const [first] = metadata.layouts;
  if (first === undefined) throw new Error("one layout was exported");
  const layouts = handles.map((handle): PackageLayout => ({ ...first, handle: handle as LayoutHandle }));
  return { ...metadata, layouts };
}

describe("handles that follow each other", () => {
  const step = fc.oneof(
    { weight: 8, arbitrary: fc.constant({ ids: 1, reuses: 0, workers: 0 }) },
    {
      weight: 1,
      arbitrary: fc.record({
        ids: fc.integer({ min: -2, max: 3 }),
        reuses: fc.constantFrom(-1, 0, 1, REUSES_PER_INCARNATION),
        workers: fc.constantFrom(-1, 0, 1),
      }),
    },
  );

  test("are read and refused as each of them alone", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(0, 1, 40, MAX_LAYOUT_ID - 3, MAX_LAYOUT_ID, 65_535),
        fc.array(step, { maxLength: 12 }),
        fc.constantFrom("kvferry" as const, "dynamo-1.0" as const),
        (firstId, steps, format) => {
          let handle: bigint = makeHandle(2n, firstId, GENERATION + 1);
          const handles = [handle];
          for (const { ids, reuses, workers } of steps) {
            handle += (BigInt(ids) << 64n) + (BigInt(reuses) << 80n) + BigInt(workers);
            handles.push(handle);
          }
          const metadata = { ...withHandles(handles), format };
          const ids = handles.map((each) => handleLayoutId(each as LayoutHandle));
          const right =
            new Set(ids).size === ids.length &&
            handles.every((each) => handleWorkerId(each as LayoutHandle) === 2n) &&
            (format !== "kvferry" ||
              handles.every((each, index) => {
                const generation = handleGeneration(each as LayoutHandle);
                return (
                  Math.floor(generation / REUSES_PER_INCARNATION) === INCARNATION &&
                  (ids[index] ?? 0) <= MAX_LAYOUT_ID
                );
              }));
          if (right) {
            const { peer } = importPackage(ME, metadata, attach);
            expect(peer.layouts.map(({ layoutId }) => layoutId)).toEqual(ids);
            expect(peer.layouts.map(({ generation }) => generation)).toEqual(
              handles.map((each) => handleGeneration(each as LayoutHandle)),
            );
          } else refusalOf("METADATA_MALFORMED", () => importPackage(ME, metadata, attach));
        },
      ),
      { numRuns: 1_000 },
    );
  });

  test("do not run over from the last id into the next generation", () => {
    const last = makeHandle(2n, 65_535, GENERATION);
    const next = makeHandle(2n, 0, GENERATION + 1);
    expect(next).toBe((last + (1n << 64n)) as LayoutHandle);
    refusalOf("METADATA_MALFORMED", () => importPackage(ME, withHandles([last, next]), attach));
    const { peer } = importPackage(ME, { ...withHandles([last, next]), format: "dynamo-1.0" }, attach);
    expect(peer.layouts.map(({ layoutId, generation }) => [layoutId, generation])).toEqual([
      [65_535, GENERATION],
      [0, GENERATION + 1],
    ]);
  });
});

describe("a package that was checked before", () => {
  test("is taken as one that is checked and taken at once", () => {
    const metadata = withHandles([makeHandle(2n, 3, GENERATION), makeHandle(2n, 4, GENERATION)]);
    const checked = checkImport(ME, metadata);
    expect(importChecked(ME, checked, attach)).toEqual(importPackage(ME, metadata, attach));
    const known = importPackage(ME, metadata, attach).snapshot;
    const newer = withHandles([makeHandle(2n, 4, GENERATION + 1)], fromPeer(2));
    const updates = { updates: 2n };
    expect(importChecked(known, checkImport(known, newer, updates), attach, updates)).toEqual(
      importPackage(known, newer, attach, updates),
    );
  });

  test("is judged anew by a snapshot that changed since", () => {
    const checked = checkImport(ME, fromPeer(3));
    const known = importPackage(ME, fromPeer(3), attach).snapshot;
    refusalOf("DUPLICATE_WORKER", () => importChecked(known, checked, attach));
    const later = importPackage(ME, fromPeer(4), attach).snapshot;
    refusalOf("METADATA_EXPIRED", () => importChecked(forgetPeer(later, 2n), checked, attach));
    const impostor = { ...exportPackage(worker(3n), new Uint8Array(0)), agentName: "worker-2" };
    refusalOf("AGENT_MISMATCH", () =>
      importChecked(importPackage(ME, impostor, attach).snapshot, checked, attach),
    );
    refusalOf("PEER_LOST", () => importChecked(ME, checked, attach, { updates: 2n }));
    refusalOf("DUPLICATE_WORKER", () => importChecked(worker(2n, 9), checked, attach));
  });

  test("that contradicts itself is refused before anything of it is asked for", () => {
    refusalOf("METADATA_MALFORMED", () => checkImport(ME, withHandles([makeHandle(3n, 0, GENERATION)])));
  });
});
