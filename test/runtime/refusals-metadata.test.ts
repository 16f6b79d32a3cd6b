// Metadata that must not be taken, and peers that cannot be reached or must not be written to.
import { describe, expect, test } from "bun:test";
import type { LayoutSpec } from "../../index.ts";
import { bench } from "./helpers/bench.ts";
import { refused } from "./helpers/refusal.ts";
import { nixlTest, openLocal, openPair, systemSpec } from "./helpers/transports.ts";

describe("without NIXL", () => {
  test("Dynamo's formats and notifications are refused with the remedy, and local work goes on", async () => {
    await using made = await bench();
    const { transport, source, destination } = made;
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const)
      await refused("NO_NIXL", transport.exportMetadata({ format }));
    await using other = await openLocal();
    const peer = await other.importMetadata(await transport.exportMetadata());
    await refused("NO_NIXL", other.notify(peer, "hello"));
    expect(
      (await transport.transfer({ source, destination, sourceBlocks: [0], destinationBlocks: [0] })).bytes,
    ).toBe(512);
  });
});

nixlTest("a transfer to a peer with NIXL is refused with the remedy where NIXL is missing", async () => {
  await using pair = await openPair();
  await using made = await bench();
  const { transport, source, destination } = made;
  const there = await pair.b.register(systemSpec("there"));
  await there.fill(0xee);
  const peer = await transport.importMetadata(await pair.b.exportMetadata());
  for (const request of [
    { source, destination: peer.layout("there") },
    { source: peer.layout("there"), destination },
  ]) {
    const error = await refused(
      "NO_NIXL",
      transport.transfer({ ...request, sourceBlocks: [0], destinationBlocks: [0] }),
    );
    expect(error.remedy).toMatch(/nixl/i);
  }
  made.untouched();
  expect(there.bytes[0]?.every((byte) => byte === 0xee)).toBe(true);
});

nixlTest("a push into a layout that peers may only read is refused, and reading it is not", async () => {
  await using pair = await openPair();
  const { a, b } = pair;
  const here = await a.register(systemSpec("here"));
  const there = await b.register({ ...systemSpec("there"), access: "read" } as LayoutSpec);
  await there.fill(0x5a);
  const peer = await pair.meet();
  const ids = { sourceBlocks: [0], destinationBlocks: [1] };
  const error = await refused(
    "ACCESS",
    a.transfer({ source: here, destination: peer.layout("there"), ...ids }),
  );
  expect(error.settlement).toBe("never-started");
  await a.transfer({ source: peer.layout("there"), destination: here, ...ids });
  expect((await here.read(1)).every((byte) => byte === 0x5a)).toBe(true);
  expect(there.bytes[0]?.every((byte) => byte === 0x5a)).toBe(true);
});

describe("metadata", () => {
  test("that is no package, cut, grown, flipped or of a later version is refused and leaves nothing", async () => {
    await using exporter = await openLocal();
    await using importer = await openLocal();
    await exporter.register(systemSpec("x"));
    const bytes = await exporter.exportMetadata();
    const before = importer.registry;
    const grown = new Uint8Array([...bytes, 0]);
    const later = bytes.slice();
    for (const wrong of [
      new Uint8Array(0),
      new TextEncoder().encode("hello"),
      grown,
      null,
      "text",
    ] as never[])
      await refused("METADATA_MALFORMED", importer.importMetadata(wrong));
    for (let length = 0; length < bytes.byteLength; length += 7)
      await refused("METADATA_MALFORMED", importer.importMetadata(bytes.slice(0, length)));
    for (let at = 0; at < bytes.byteLength; at++) {
      later.set(bytes);
      later[at] = (later[at] ?? 0) ^ (1 << (at % 8));
      await refused("METADATA_MALFORMED", importer.importMetadata(later));
    }
    expect(importer.registry).toBe(before);
    expect((await importer.importMetadata(bytes)).layout("x").name).toBe("x");
  });

  test("from this very worker is refused", async () => {
    await using transport = await openLocal();
    await transport.register(systemSpec("x"));
    await refused("DUPLICATE_WORKER", transport.importMetadata(await transport.exportMetadata()));
    expect(transport.remoteLayouts).toEqual([]);
  });

  test("of another worker with this worker's agent name, or a known agent name, is refused", async () => {
    await using importer = await openLocal({ agentName: "me" });
    await using thief = await openLocal({ agentName: "me" });
    await refused("AGENT_MISMATCH", importer.importMetadata(await thief.exportMetadata()));
    await using known = await openLocal({ agentName: "known" });
    await using double = await openLocal({ agentName: "known" });
    await importer.importMetadata(await known.exportMetadata());
    await refused("AGENT_MISMATCH", importer.importMetadata(await double.exportMetadata()));
    expect(importer.peers.map((peer) => peer.workerId)).toEqual([known.workerId]);
  });

  test("that has expired, or is for others, is refused", async () => {
    await using exporter = await openLocal();
    await using importer = await openLocal();
    const soon = await exporter.exportMetadata({ expiresInMs: 1 });
    await Bun.sleep(5);
    await refused("METADATA_EXPIRED", importer.importMetadata(soon));
    const others = await exporter.exportMetadata({ audience: [importer.workerId + 1n] });
    await refused("ACCESS", importer.importMetadata(others));
    const ours = await exporter.exportMetadata({ audience: [importer.workerId], expiresInMs: 60_000 });
    expect((await importer.importMetadata(ours)).workerId).toBe(exporter.workerId);
  });

  test("without the secret that both should share is refused", async () => {
    const secret = new Uint8Array(32).fill(7);
    await using open = await openLocal();
    await using closed = await openLocal({ secret });
    await using other = await openLocal({ secret: new Uint8Array(32).fill(8) });
    await using friend = await openLocal({ secret });
    await refused("METADATA_UNAUTHENTICATED", closed.importMetadata(await open.exportMetadata()));
    await refused("METADATA_UNAUTHENTICATED", closed.importMetadata(await other.exportMetadata()));
    expect((await closed.importMetadata(await friend.exportMetadata())).workerId).toBe(friend.workerId);
  });

  test("options of an export that make no sense are refused", async () => {
    await using transport = await openLocal();
    await using other = await openLocal();
    const stranger = await other.register(systemSpec("stranger"));
    await refused("INVALID_CONFIG", transport.exportMetadata({ expiresInMs: -1 }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ expiresInMs: Number.NaN }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ audience: [-1] }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ audience: [0.5] }));
    await refused("UNKNOWN_HANDLE", transport.exportMetadata({ layouts: [stranger] }));
    await refused("INVALID_CONFIG", transport.exportMetadata({ format: "pigeon" as never }));
  });

  nixlTest("over NIXL, a mutated package never disturbs a later good import", async () => {
    await using pair = await openPair();
    await pair.b.register(systemSpec("x"));
    const bytes = await pair.b.exportMetadata();
    for (const at of [0, 5, 100, bytes.byteLength - 1]) {
      const flipped = bytes.slice();
      flipped[at] = (flipped[at] ?? 0) ^ 1;
      await refused("METADATA_MALFORMED", pair.a.importMetadata(flipped));
    }
    const peer = await pair.a.importMetadata(bytes);
    const own = await pair.a.register(systemSpec("own"));
    await own.fill(3);
    await pair.a.transfer({
      source: own,
      destination: peer.layout("x"),
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
  });
});
