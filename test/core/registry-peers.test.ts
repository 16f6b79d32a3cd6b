import { describe, expect, test } from "bun:test";
import type {
  ImportOptions,
  MetadataPackage,
  NewLayout,
  PackageComponent,
  PackageLayout,
  RegistrySnapshot,
} from "../../lib/core/index.ts";
import {
  exportPackage,
  forgetPeer,
  getLayout,
  getPeer,
  getRemote,
  handleLayoutId,
  importPackage,
  isLocal,
  isRemote,
  localHandles,
  makeHandle,
  mappedAddresses,
  peers,
  registerLayout,
  remoteCount,
  remoteHandles,
  remoteLayouts,
  REUSES_PER_INCARNATION,
  setAttachment,
  throughNixl,
  throughPeer,
  unregisterLayout,
} from "../../lib/core/index.ts";
import { newLayout, refusalOf, SMALL, worker } from "./builders.ts";

const SYSTEM = { kind: "system" } as const;
const POOL: NewLayout = newLayout({ name: "pool", config: SMALL, memory: SYSTEM });
const SEPARATE: NewLayout = newLayout({
  name: "engine",
  config: SMALL,
  arrangement: "layer-separate/block-second",
  memory: SYSTEM,
});

function withLayouts(snapshot: RegistrySnapshot, layouts: readonly NewLayout[]): RegistrySnapshot {
  return layouts.reduce((current, layout) => registerLayout(current, layout).snapshot, snapshot);
}

/** A package of worker 2 with two layouts. */
function fromPeer(
  incarnation = 5,
  sequence = 1,
  layouts: readonly NewLayout[] = [POOL, SEPARATE],
): MetadataPackage {
  return exportPackage(withLayouts(worker(2n, incarnation), layouts), new Uint8Array([1, 2, 3]), {
    sequence,
  });
}

const attach = (metadata: MetadataPackage) => (_: PackageLayout, component: PackageComponent) =>
  throughNixl(metadata.wireName, component.regionAddresses);

function take(
  snapshot: RegistrySnapshot,
  metadata: MetadataPackage,
  options?: ImportOptions,
): RegistrySnapshot {
  return importPackage(snapshot, metadata, attach(metadata), options).snapshot;
}

const ME = withLayouts(worker(1n), [POOL]);

/** The import must be refused with the code, must not have asked for attachments, and the snapshot must be untouched. */
function refuse(
  word: string,
  metadata: MetadataPackage,
  snapshot = ME,
  options?: ImportOptions,
): Readonly<Record<string, unknown>> {
  const before = { ...snapshot };
  let asked = 0;
  const error = refusalOf(word, () =>
    importPackage(
      snapshot,
      metadata,
      () => {
        asked++;
        return throughPeer("x");
      },
      options,
    ),
  );
  expect(asked).toBe(0);
  expect(snapshot).toEqual(before);
  return error.details;
}

describe("import", () => {
  test("a round trip gives the exporter's handles, in package order, remote and reachable as attached", () => {
    const metadata = fromPeer();
    const { snapshot, peer } = importPackage(ME, metadata, attach(metadata));
    expect(peer.layouts.map(({ handle }) => handle)).toEqual(metadata.layouts.map(({ handle }) => handle));
    expect(remoteHandles(snapshot)).toEqual(metadata.layouts.map(({ handle }) => handle));
    expect(remoteCount(snapshot)).toBe(2);
    expect(localHandles(snapshot)).toEqual(localHandles(ME));
    const [first, second] = peer.layouts;
    if (first === undefined || second === undefined) throw new Error("two layouts were exported");
    expect(getRemote(snapshot, first.handle)).toBe(first);
    expect(getLayout(snapshot, second.handle)).toBe(second);
    expect(isRemote(snapshot, first.handle)).toBe(true);
    expect(isLocal(snapshot, first.handle)).toBe(false);
    expect(first.owner).toBe(2n);
    expect(first.components[0]?.attachment).toEqual(
      throughNixl("worker-2~5", first.components[0]?.regionAddresses ?? new Float64Array(0)),
    );
    expect(second.components[0]?.shape.view.regionCount).toBe(2);
    expect(getPeer(snapshot, 2n)).toBe(peer);
    expect(getPeer(snapshot, 3n)).toBeNull();
    expect(remoteCount(ME)).toBe(0);
  });

  test("a package without layouts is a peer without layouts", () => {
    const { peer } = importPackage(ME, fromPeer(5, 1, []), () => throughPeer("x"));
    expect(peer.layouts).toEqual([]);
  });

  test("peers and their layouts are listed by worker id, then layout id", () => {
    const third = exportPackage(withLayouts(worker(3n), [POOL]), new Uint8Array(0));
    const second = fromPeer();
    const swapped = { ...second, layouts: second.layouts.toReversed() };
    const snapshot = take(take(ME, third), swapped);
    expect(peers(snapshot).map(({ workerId }) => workerId)).toEqual([2n, 3n]);
    expect(remoteLayouts(snapshot).map(({ owner, layoutId }) => [owner, layoutId])).toEqual([
      [2n, 0],
      [2n, 1],
      [3n, 0],
    ]);
    expect(getPeer(snapshot, 2n)?.layouts.map(({ layoutId }) => layoutId)).toEqual([1, 0]);
  });

  test("an attachment that cannot be made leaves no trace", () => {
    const metadata = fromPeer();
    const fail = (): never => {
      throw new Error("mapping failed");
    };
    expect(() => importPackage(ME, metadata, fail)).toThrow("mapping failed");
    expect(remoteCount(take(ME, metadata))).toBe(2);
  });
});

describe("who a package may claim to be", () => {
  test("this worker's own id is refused", () => {
    refuse("DUPLICATE_WORKER", exportPackage(ME, new Uint8Array(0)));
    refuse("DUPLICATE_WORKER", { ...fromPeer(), workerId: 1n });
  });

  test("this worker's own agent name is refused, also on the wire", () => {
    refuse("AGENT_MISMATCH", { ...fromPeer(), agentName: "worker-1" });
    refuse("AGENT_MISMATCH", { ...fromPeer(), agentName: "worker-1~7" });
    refuse("AGENT_MISMATCH", { ...fromPeer(), wireName: "worker-1~7" });
  });

  test("a known worker id under another agent name is refused", () => {
    const known = take(ME, fromPeer());
    expect(refuse("AGENT_MISMATCH", { ...fromPeer(6), agentName: "other" }, known)).toMatchObject({
      known: "worker-2",
    });
  });

  test("a known agent name under another worker id is refused", () => {
    const known = take(ME, fromPeer());
    const third = exportPackage(worker(3n), new Uint8Array(0));
    expect(refuse("AGENT_MISMATCH", { ...third, agentName: "worker-2" }, known)).toMatchObject({
      known: "2",
    });
    refuse("AGENT_MISMATCH", { ...third, wireName: "worker-2~5" }, known);
  });

  test("handles of another worker, of another incarnation, doubled or past the last id are refused", () => {
    const metadata = fromPeer();
    const [first, second] = metadata.layouts;
    if (first === undefined || second === undefined) throw new Error("two layouts were exported");
    const withHandle = (handle: bigint): MetadataPackage => ({
      ...metadata,
      layouts: [{ ...first, handle: handle as typeof first.handle }, second],
    });
    refuse("METADATA_MALFORMED", withHandle(makeHandle(1n, 0, 5 * REUSES_PER_INCARNATION)));
    refuse("METADATA_MALFORMED", withHandle(makeHandle(2n, 0, 4 * REUSES_PER_INCARNATION)));
    refuse("METADATA_MALFORMED", withHandle(makeHandle(2n, 0)));
    refuse("METADATA_MALFORMED", withHandle(second.handle));
    refuse("METADATA_MALFORMED", withHandle(makeHandle(2n, 65_535, 5 * REUSES_PER_INCARNATION)));
    refuse("METADATA_MALFORMED", { ...metadata, incarnation: 2 ** 36 });
  });

  test("a package for others, or past its time, is refused", () => {
    refuse("METADATA_UNAUTHENTICATED", { ...fromPeer(), audience: [3n, 4n] });
    expect(remoteCount(take(ME, { ...fromPeer(), audience: [3n, 1n] }))).toBe(2);
    refuse("METADATA_EXPIRED", { ...fromPeer(), expiresAtMs: 1000 }, ME, { nowMs: 1000 });
    expect(remoteCount(take(ME, { ...fromPeer(), expiresAtMs: 1000 }, { nowMs: 999 }))).toBe(2);
  });
});

describe("age", () => {
  test("a worker that is known is refused, whatever the sequence", () => {
    const known = take(ME, fromPeer(5, 3));
    refuse("DUPLICATE_WORKER", fromPeer(5, 3), known);
    refuse("DUPLICATE_WORKER", fromPeer(5, 4), known);
    refuse("METADATA_EXPIRED", fromPeer(5, 2), known);
  });

  test("a worker that came back replaces its earlier self, whose handles become stale", () => {
    const known = take(ME, fromPeer(5));
    const back = take(known, fromPeer(6));
    expect(remoteCount(back)).toBe(2);
    for (const handle of remoteHandles(known)) refusalOf("STALE_HANDLE", () => getRemote(back, handle));
    expect(remoteHandles(back).every((handle) => isRemote(back, handle))).toBe(true);
    refuse("METADATA_EXPIRED", fromPeer(5, 9), back);
  });

  test("an update of the same incarnation replaces the layouts in place", () => {
    const known = take(ME, fromPeer(5, 1));
    const updated = take(known, fromPeer(5, 2, [POOL, SEPARATE, POOL]), { updates: 2n });
    expect(remoteCount(updated)).toBe(3);
    for (const handle of remoteHandles(known)) expect(isRemote(updated, handle)).toBe(true);
    refuse("METADATA_EXPIRED", fromPeer(5, 2), updated, { updates: 2n });
    refuse("METADATA_EXPIRED", fromPeer(5, 1), updated, { updates: 2n });
    refuse("METADATA_EXPIRED", fromPeer(4, 9), updated, { updates: 2n });
    refuse("AGENT_MISMATCH", fromPeer(6, 9), updated, { updates: 2n });
    refuse("AGENT_MISMATCH", fromPeer(5, 9), updated, { updates: 3n });
    refuse("PEER_LOST", fromPeer(5, 9), ME, { updates: 2n });
  });

  test("a layout that an update takes away is stale, one that was never there unknown", () => {
    let exporter = withLayouts(worker(2n, 5), [POOL, SEPARATE]);
    const known = take(ME, exportPackage(exporter, new Uint8Array(0), { sequence: 1 }));
    const [gone, stays] = localHandles(exporter);
    if (gone === undefined || stays === undefined) throw new Error("two layouts were registered");
    exporter = unregisterLayout(exporter, gone);
    const updated = take(known, exportPackage(exporter, new Uint8Array(0), { sequence: 2 }), { updates: 2n });
    refusalOf("STALE_HANDLE", () => getRemote(updated, gone));
    expect(getRemote(updated, stays).name).toBe("engine");
    refusalOf("UNKNOWN_HANDLE", () => getRemote(updated, makeHandle(2n, 9, 5 * REUSES_PER_INCARNATION)));
    const again = take(updated, exportPackage(exporter, new Uint8Array(0), { sequence: 3 }), { updates: 2n });
    refusalOf("STALE_HANDLE", () => getRemote(again, gone));
  });

  test("Dynamo's packages, which have no age, are imported again only after forgetting", () => {
    const exporter = withLayouts(worker(2n, 5), [POOL]);
    const metadata = exportPackage(exporter, new Uint8Array([1]), { format: "dynamo-1.0" });
    const known = take(ME, metadata);
    expect(remoteHandles(known)).toEqual([makeHandle(2n, 0)]);
    refuse("DUPLICATE_WORKER", metadata, known);
    refuse("DUPLICATE_WORKER", metadata, known, { updates: 2n });
    const forgotten = forgetPeer(known, 2n);
    refusalOf("STALE_HANDLE", () => getRemote(forgotten, makeHandle(2n, 0)));
    expect(remoteHandles(take(forgotten, metadata))).toEqual([makeHandle(2n, 0)]);
  });
});

describe("forgetting", () => {
  test("a forgotten peer's handles are stale, others are unaffected, its package may come again", () => {
    const third = exportPackage(withLayouts(worker(3n), [POOL]), new Uint8Array(0));
    const known = take(take(ME, fromPeer(5, 4)), third);
    const forgotten = forgetPeer(known, 2n);
    expect(remoteCount(forgotten)).toBe(1);
    expect(peers(forgotten).map(({ workerId }) => workerId)).toEqual([3n]);
    refusalOf("STALE_HANDLE", () => getLayout(forgotten, makeHandle(2n, 0, 5 * REUSES_PER_INCARNATION)));
    refusalOf("UNKNOWN_HANDLE", () => getLayout(forgotten, makeHandle(2n, 0, 6 * REUSES_PER_INCARNATION)));
    refusalOf("UNKNOWN_HANDLE", () => getLayout(forgotten, makeHandle(4n, 0)));
    expect(remoteCount(take(forgotten, fromPeer(5, 4)))).toBe(3);
    expect(forgetPeer(forgotten, 2n)).toBe(forgotten);
    expect(remoteCount(known)).toBe(3);
  });

  test("an older package of a forgotten peer is a replay", () => {
    const forgotten = forgetPeer(take(ME, fromPeer(5, 4)), 2n);
    refuse("METADATA_EXPIRED", fromPeer(5, 3), forgotten);
    refuse("METADATA_EXPIRED", fromPeer(4, 9), forgotten);
  });
});

describe("what a package may say about bytes", () => {
  const metadata = fromPeer(5, 1, [SEPARATE]);
  const change = (edit: (component: PackageComponent) => Partial<PackageComponent>): MetadataPackage => ({
    ...metadata,
    layouts: metadata.layouts.map((layout) => ({
      ...layout,
      components: layout.components.map((component) => ({ ...component, ...edit(component) })),
    })),
  });

  test("regions must be present, large enough, whole and below 2^53", () => {
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionAddresses: new Float64Array([4096]) })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionSizes: new Float64Array(0), regionAddresses: new Float64Array(0) })),
    );
    expect(
      refuse(
        "METADATA_MALFORMED",
        change(() => ({ regionSizes: new Float64Array([768, 767]) })),
      ),
    ).toMatchObject({ region: 1, needed: 768 });
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionAddresses: new Float64Array([4096, 2 ** 53 - 700]) })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionAddresses: new Float64Array([4096, -4096]) })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionAddresses: new Float64Array([4096, Number.NaN]) })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ regionSizes: new Float64Array([768, Number.POSITIVE_INFINITY]) })),
    );
  });

  test("regions may share bytes only where the component says alias", () => {
    const same = { regionAddresses: new Float64Array([4096, 4096 + 700]) };
    expect(
      refuse(
        "METADATA_MALFORMED",
        change(() => same),
      ),
    ).toMatchObject({ leftRegion: 0, rightRegion: 1 });
    expect(
      remoteCount(
        take(
          ME,
          change(() => ({ ...same, alias: true })),
        ),
      ),
    ).toBe(1);
  });

  test("a view that contradicts its config is refused by the field", () => {
    const details = refuse(
      "METADATA_MALFORMED",
      change(({ view }) => ({ view: { ...view, strideBlock: 64 } })),
    );
    expect(details).toMatchObject({ field: "strideBlock", found: 64, expected: 128 });
    refuse(
      "METADATA_MALFORMED",
      change(({ view }) => ({ view: { ...view, blocks: 99 } })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ arrangement: "MLA" as const })),
    );
    refuse(
      "METADATA_MALFORMED",
      change(() => ({ arrangement: "sideways" as "NHD" })),
    );
  });

  test("components must be there, and have names of their own", () => {
    const layouts = metadata.layouts.map((layout) => ({ ...layout, components: [] }));
    refuse("METADATA_MALFORMED", { ...metadata, layouts });
    const twice = metadata.layouts.map((layout) => ({
      ...layout,
      components: [...layout.components, ...layout.components],
    }));
    refuse("METADATA_MALFORMED", { ...metadata, layouts: twice });
  });

  test("components over the same bytes are refused, on another device they are other bytes", () => {
    const twin = (storage: PackageComponent["storage"]): MetadataPackage => ({
      ...metadata,
      layouts: metadata.layouts.map((layout) => ({
        ...layout,
        components: layout.components.flatMap((component) => [
          component,
          { ...component, name: "twin", storage },
        ]),
      })),
    });
    refuse("METADATA_MALFORMED", twin({ kind: "pinned" }));
    expect(remoteCount(take(ME, twin({ kind: "device", device: 1 })))).toBe(1);
  });

  test("bytes on disk come without addresses", () => {
    const disk = newLayout({ name: "cold", config: SMALL, memory: { kind: "disk" } }, 0);
    const cold = fromPeer(5, 1, [disk]);
    expect(cold.layouts[0]?.components[0]?.regionAddresses).toHaveLength(0);
    const { peer } = importPackage(ME, cold, () => throughPeer("worker-2~5"));
    expect(peer.layouts[0]?.stagedOnly).toBe(true);
    expect(peer.layouts[0]?.components[0]?.attachment.kind).toBe("staged");
  });
});

describe("a mapping that arrives later", () => {
  const known = take(ME, fromPeer());
  const [pool] = remoteHandles(known);
  if (pool === undefined) throw new Error("a layout was imported");

  test("replaces the attachment of that component and of nothing else", () => {
    const mapped = setAttachment(known, pool, "kv", mappedAddresses(new Float64Array([0x7000])));
    expect(getRemote(mapped, pool).components[0]?.attachment).toMatchObject({
      kind: "addresses",
      origin: "mapped",
    });
    expect(getPeer(mapped, 2n)?.layouts[0]).toBe(getRemote(mapped, pool));
    expect(getPeer(mapped, 2n)?.layouts[1]).toBe(getPeer(known, 2n)?.layouts[1] as never);
    expect(getRemote(known, pool).components[0]?.attachment.kind).toBe("nixl");
    expect(remoteCount(mapped)).toBe(2);
  });

  test("is refused for local layouts, unknown components and a wrong number of bases", () => {
    const [own] = localHandles(known);
    if (own === undefined) throw new Error("a layout was registered");
    refusalOf("INVALID_CONFIG", () => setAttachment(known, own, "kv", throughPeer("x")));
    refusalOf("INVALID_CONFIG", () => setAttachment(known, pool, "scales", throughPeer("x")));
    refusalOf("INVALID_CONFIG", () => setAttachment(known, pool, "kv", mappedAddresses(new Float64Array(2))));
    refusalOf("UNKNOWN_HANDLE", () => setAttachment(known, makeHandle(9n, 0), "kv", throughPeer("x")));
  });
});

describe("export", () => {
  const exporter = withLayouts(worker(4n, 3), [
    POOL,
    SEPARATE,
    newLayout({ name: "cold", config: SMALL, memory: { kind: "disk" } }, 0),
  ]);
  const handles = localHandles(exporter);

  test("layouts are in id order, whatever the order of the subset", () => {
    const metadata = exportPackage(exporter, new Uint8Array([9]), {
      layouts: [handles[1], handles[0], handles[1]] as typeof handles,
    });
    expect(metadata.layouts.map(({ handle }) => handleLayoutId(handle))).toEqual([0, 1]);
    expect(metadata.nixlMetadata).toEqual(new Uint8Array([9]));
    expect(exportPackage(exporter, new Uint8Array(0), { layouts: [] }).layouts).toEqual([]);
    refusalOf("UNKNOWN_HANDLE", () =>
      exportPackage(exporter, new Uint8Array(0), {
        layouts: [makeHandle(4n, 77, 3 * REUSES_PER_INCARNATION)],
      }),
    );
  });

  test("what was asked for travels: sequence, times, audience, host", () => {
    const host = {
      bootId: "b",
      namespaces: { pid: "1", ipc: "2", net: "3", user: "4" },
      userId: 5,
      processId: 6,
      rendezvous: "r",
    };
    const metadata = exportPackage(exporter, new Uint8Array(0), {
      sequence: 8,
      issuedAtMs: 1,
      expiresAtMs: 2,
      audience: [5n],
      host,
    });
    expect(metadata).toMatchObject({
      format: "kvferry",
      workerId: 4n,
      agentName: "worker-4",
      wireName: "worker-4~3",
      incarnation: 3,
      sequence: 8,
      issuedAtMs: 1,
      expiresAtMs: 2,
      audience: [5n],
      host,
    });
    expect(exportPackage(exporter, new Uint8Array(0))).toMatchObject({
      sequence: exporter.revision,
      issuedAtMs: null,
      expiresAtMs: null,
      audience: null,
      host: null,
    });
  });

  test("Dynamo's formats leave disk out, zero the generation, carry the wire name, and refuse what they cannot say", () => {
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const) {
      const metadata = exportPackage(exporter, new Uint8Array(0), { format, sequence: 4 });
      expect(metadata.layouts.map(({ handle }) => handle)).toEqual([makeHandle(4n, 0), makeHandle(4n, 1)]);
      expect(metadata).toMatchObject({
        agentName: "worker-4~3",
        wireName: "worker-4~3",
        incarnation: 0,
        sequence: 0,
      });
      for (const field of ["layouts", "expiresAtMs", "audience"])
        expect(
          refusalOf("INVALID_CONFIG", () =>
            exportPackage(exporter, new Uint8Array(0), { format, [field]: field === "expiresAtMs" ? 1 : [] }),
          ).details,
        ).toMatchObject({ field, format });
    }
    const early = exportPackage(withLayouts(worker(5n, 0), [POOL]), new Uint8Array(0), {
      format: "dynamo-1.0",
    });
    expect(early.layouts[0]?.handle).toBe(makeHandle(5n, 0));
  });
});
