import { describe, expect, test } from "bun:test";
import type { LayoutHandle, NewLayout, RegistrySnapshot } from "../../lib/core/index.ts";
import {
  emptyRegistry,
  getLayout,
  getLocal,
  handleGeneration,
  handleLayoutId,
  handleWorkerId,
  isLocal,
  isRemote,
  localCount,
  localHandles,
  localLayouts,
  makeHandle,
  MAX_LAYOUT_ID,
  registerLayout,
  remoteCount,
  remoteHandles,
  REUSES_PER_INCARNATION,
  unregisterLayout,
} from "../../lib/core/index.ts";
import { newLayout, refusalOf, SMALL, worker } from "./builders.ts";

const LAYOUT: NewLayout = newLayout({ name: "pool", config: SMALL, memory: { kind: "system" } });

function registered(count: number, from: RegistrySnapshot = worker(1n)): RegistrySnapshot {
  let snapshot = from;
  for (let index = 0; index < count; index++) snapshot = registerLayout(snapshot, LAYOUT).snapshot;
  return snapshot;
}

describe("ids and handles", () => {
  test("ids start at 0 and rise by one; handles carry worker, id and generation", () => {
    let snapshot = worker(42n, 9);
    for (let id = 0; id < 5; id++) {
      const entered = registerLayout(snapshot, LAYOUT);
      snapshot = entered.snapshot;
      expect(entered.layout.layoutId).toBe(id);
      expect(entered.layout.owner).toBeNull();
      expect(handleWorkerId(entered.layout.handle)).toBe(42n);
      expect(handleLayoutId(entered.layout.handle)).toBe(id);
      expect(handleGeneration(entered.layout.handle)).toBe(9 * REUSES_PER_INCARNATION);
      expect(getLocal(snapshot, entered.layout.handle)).toBe(entered.layout);
    }
    expect(localHandles(snapshot).map(handleLayoutId)).toEqual([0, 1, 2, 3, 4]);
    expect(localCount(snapshot)).toBe(5);
    expect(remoteCount(snapshot)).toBe(0);
    expect(remoteHandles(snapshot)).toEqual([]);
  });

  test("the largest incarnation still fits the handle", () => {
    const { layout } = registerLayout(worker(2n ** 64n - 1n, 2 ** 36 - 1), LAYOUT);
    expect(handleWorkerId(layout.handle)).toBe(2n ** 64n - 1n);
    expect(handleGeneration(layout.handle)).toBe((2 ** 36 - 1) * 4096);
  });

  test("a layout without a name is called after its id", () => {
    const { layout } = registerLayout(registered(3), { ...LAYOUT, name: null });
    expect(layout.name).toBe("layout-3");
  });

  test("a refused registration uses no id and leaves the snapshot as it was", () => {
    const snapshot = registered(2);
    const { components } = LAYOUT;
    const [component] = components;
    if (component === undefined) throw new Error("no component");
    const bad = (change: object): NewLayout => ({ ...LAYOUT, components: [{ ...component, ...change }] });
    const field = (layout: NewLayout): Readonly<Record<string, unknown>> =>
      refusalOf("INVALID_CONFIG", () => registerLayout(snapshot, layout)).details;
    expect(field(bad({ regionSizes: new Float64Array([1535]) }))).toMatchObject({ region: 0, needed: 1536 });
    expect(field(bad({ regionAddresses: new Float64Array([2 ** 53 - 8]) }))).toMatchObject({ region: 0 });
    expect(field(bad({ regionAddresses: new Float64Array([-1]) }))).toMatchObject({ region: 0 });
    expect(field(bad({ regionAddresses: new Float64Array([0.5]) }))).toMatchObject({ region: 0 });
    expect(field(bad({ regionAddresses: new Float64Array(2) }))).toMatchObject({ expected: 1, found: 2 });
    const aligned = newLayout({ config: { ...SMALL, alignment: 4096 }, memory: { kind: "system" } }, 0x10008);
    expect(field(aligned)).toMatchObject({ alignment: 4096 });
    refusalOf("INVALID_CONFIG", () => registerLayout(snapshot, { ...LAYOUT, components: [] }));
    expect(registerLayout(snapshot, LAYOUT).layout.layoutId).toBe(2);
  });

  test("who the registry speaks for is checked", () => {
    const identity = { workerId: 1n, agentName: "a", wireName: "a", incarnation: 0 };
    const field = (change: object): unknown =>
      refusalOf("INVALID_CONFIG", () => emptyRegistry({ ...identity, ...change })).details["field"];
    expect(field({ workerId: -1n })).toBe("workerId");
    expect(field({ workerId: 2n ** 64n })).toBe("workerId");
    expect(field({ workerId: 1 })).toBe("workerId");
    expect(field({ incarnation: 2 ** 36 })).toBe("incarnation");
    expect(field({ agentName: "" })).toBe("agentName");
    expect(field({ wireName: 3 })).toBe("wireName");
  });
});

describe("the limit", () => {
  test("65,535 layouts are registered, one more is refused, an unregistered id is given out again", () => {
    let snapshot = registered(MAX_LAYOUT_ID + 1);
    expect(localCount(snapshot)).toBe(65_535);
    const last = localHandles(snapshot).at(-1) as LayoutHandle;
    expect(handleLayoutId(last)).toBe(65_534);
    const error = refusalOf("TOO_MANY_LAYOUTS", () => registerLayout(snapshot, LAYOUT));
    expect(error.details).toMatchObject({ limit: 65_535, registered: 65_535 });

    const old = makeHandle(1n, 5, 7 * REUSES_PER_INCARNATION);
    const later = makeHandle(1n, 3, 7 * REUSES_PER_INCARNATION);
    snapshot = unregisterLayout(unregisterLayout(snapshot, old), later);
    expect(localCount(snapshot)).toBe(65_533);
    const first = registerLayout(snapshot, LAYOUT);
    expect(first.layout.layoutId).toBe(5);
    expect(first.layout.generation).toBe(7 * REUSES_PER_INCARNATION + 1);
    expect(first.layout.handle).toBe(makeHandle(1n, 5, 7 * REUSES_PER_INCARNATION + 1));
    refusalOf("STALE_HANDLE", () => getLocal(first.snapshot, old));
    const second = registerLayout(first.snapshot, LAYOUT);
    expect(second.layout.layoutId).toBe(3);
    refusalOf("TOO_MANY_LAYOUTS", () => registerLayout(second.snapshot, LAYOUT));
  });

  test("while fresh ids are left, an unregistered id is not reused", () => {
    const snapshot = unregisterLayout(registered(3), makeHandle(1n, 1, 7 * REUSES_PER_INCARNATION));
    expect(registerLayout(snapshot, LAYOUT).layout.layoutId).toBe(3);
    expect(localLayouts(snapshot).map((layout) => layout.layoutId)).toEqual([0, 2]);
  });

  test("an id whose reuses are spent is retired, so no generation comes twice", () => {
    let snapshot = registered(MAX_LAYOUT_ID + 1);
    let handle = makeHandle(1n, 8, 7 * REUSES_PER_INCARNATION);
    for (let reuse = 1; reuse < REUSES_PER_INCARNATION; reuse++) {
      const entered = registerLayout(unregisterLayout(snapshot, handle), LAYOUT);
      expect(handleGeneration(entered.layout.handle)).toBe(7 * REUSES_PER_INCARNATION + reuse);
      ({ snapshot } = entered);
      ({ handle } = entered.layout);
    }
    snapshot = unregisterLayout(snapshot, handle);
    refusalOf("TOO_MANY_LAYOUTS", () => registerLayout(snapshot, LAYOUT));
    refusalOf("STALE_HANDLE", () => getLocal(snapshot, handle));
  });
});

describe("snapshots", () => {
  test("earlier snapshots keep what they held", () => {
    const before = registered(40);
    const handle = makeHandle(1n, 20, 7 * REUSES_PER_INCARNATION);
    const after = unregisterLayout(before, handle);
    expect(getLocal(before, handle).layoutId).toBe(20);
    expect(isLocal(before, handle)).toBe(true);
    expect(isLocal(after, handle)).toBe(false);
    expect([localCount(before), localCount(after)]).toEqual([40, 39]);
    expect(after.revision).toBe(before.revision + 1);
  });

  test("two branches of one snapshot give the same id to different layouts and stay apart", () => {
    const trunk = registered(10);
    const left = registerLayout(trunk, { ...LAYOUT, name: "left" });
    const right = registerLayout(trunk, { ...LAYOUT, name: "right" });
    expect(left.layout.handle).toBe(right.layout.handle);
    expect(getLocal(left.snapshot, left.layout.handle).name).toBe("left");
    expect(getLocal(right.snapshot, left.layout.handle).name).toBe("right");
  });
});

describe("wrong handles", () => {
  const snapshot = unregisterLayout(registered(3), makeHandle(1n, 1, 7 * REUSES_PER_INCARNATION));
  const local = (handle: unknown, word: string): void =>
    void refusalOf(word, () => getLocal(snapshot, handle as LayoutHandle));

  test("an unregistered layout and an earlier run of the worker are stale", () => {
    local(makeHandle(1n, 1, 7 * REUSES_PER_INCARNATION), "STALE_HANDLE");
    local(makeHandle(1n, 0, 6 * REUSES_PER_INCARNATION), "STALE_HANDLE");
    local(makeHandle(1n, 900, 6 * REUSES_PER_INCARNATION), "STALE_HANDLE");
    local(makeHandle(1n, 0), "STALE_HANDLE");
  });

  test("ids and generations that were never given out are unknown, as are other workers and other types", () => {
    local(makeHandle(1n, 3, 7 * REUSES_PER_INCARNATION), "UNKNOWN_HANDLE");
    local(makeHandle(1n, 0, 7 * REUSES_PER_INCARNATION + 1), "UNKNOWN_HANDLE");
    local(makeHandle(1n, 1, 7 * REUSES_PER_INCARNATION + 1), "UNKNOWN_HANDLE");
    local(makeHandle(2n, 0, 7 * REUSES_PER_INCARNATION), "UNKNOWN_HANDLE");
    for (const handle of [0, "1", null, undefined, {}, -1n]) {
      local(handle, "UNKNOWN_HANDLE");
      refusalOf("UNKNOWN_HANDLE", () => getLayout(snapshot, handle as LayoutHandle));
      expect(isLocal(snapshot, handle as LayoutHandle)).toBe(false);
      expect(isRemote(snapshot, handle as LayoutHandle)).toBe(false);
    }
    // A number that has this worker's id in its low bits and more than 128 bits in all.
    local((1n << 140n) | makeHandle(1n, 0, 7 * REUSES_PER_INCARNATION), "UNKNOWN_HANDLE");
  });

  test("unregistering twice is refused, and names the operation", () => {
    const handle = makeHandle(1n, 1, 7 * REUSES_PER_INCARNATION);
    expect(refusalOf("STALE_HANDLE", () => unregisterLayout(snapshot, handle)).operation).toBe("unregister");
    expect(getLayout(snapshot, makeHandle(1n, 2, 7 * REUSES_PER_INCARNATION)).layoutId).toBe(2);
  });
});
