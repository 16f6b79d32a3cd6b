// Peers that lie. Each test is one lie; what is refused must leave no trace.
import { describe, expect, spyOn, test } from "bun:test";
import { isKvferryError } from "../../lib/core/errors.ts";
import type { MetadataPackage, PackageLayout } from "../../lib/core/package.ts";
import { makeHandle } from "../../lib/core/handle.ts";
import { NixlAgent } from "../../lib/native/agent.ts";
import { macOf } from "../../lib/runtime/authentication.ts";
import { handleBody, importedBody } from "../../lib/runtime/control-bodies.ts";
import { CONTROL, MAX_CONTROL_BODY, writeControl } from "../../lib/runtime/control-message.ts";
import type { SecretKey } from "../../lib/runtime/options.ts";
import { unpackBlobs } from "../../lib/runtime/nixl-blobs.ts";
import { withoutTcp } from "../../lib/runtime/nixl-session.ts";
import type { Transport } from "../../lib/runtime/transport.ts";
import { decodePackage, encodeDynamoPackage, encodePackage } from "../../lib/wire/index.ts";
import { readNixlBlob } from "../../lib/wire/nixl-blob.ts";
import { forged, kvbmOf, poke, rawOf } from "../wire/builders.ts";
import { hostileInputs } from "../wire/hostile-inputs.ts";
import { refused } from "./helpers/refusal.ts";
import { simPair, type SimPair } from "./helpers/simulated.ts";
import { freshWorker, nixlTest, openLocal, openPair, openRemote, systemSpec } from "./helpers/transports.ts";

const KEYS: readonly SecretKey[] = [
  { keyId: "new", key: new Uint8Array(32).fill(1) },
  { keyId: "old", key: new Uint8Array(32).fill(2) },
];

/** A package as somebody else would write it. */
async function packageOf(transport: Transport, change: Partial<MetadataPackage> = {}): Promise<Uint8Array> {
  return encodePackage({ ...decodePackage(await transport.exportMetadata()), ...change }, "kvferry");
}

async function withLayouts(
  transport: Transport,
  change: (layouts: readonly PackageLayout[]) => readonly PackageLayout[],
): Promise<Uint8Array> {
  const { layouts } = decodePackage(await transport.exportMetadata());
  return packageOf(transport, { layouts: change(layouts) });
}

/** Refusing leaves the registry as it was, and a good import after it works. */
async function refusedWithoutTrace(
  importer: Transport,
  word: Parameters<typeof refused>[0],
  bytes: Uint8Array,
): Promise<void> {
  const before = importer.registry;
  await refused(word, importer.importMetadata(bytes));
  expect(importer.registry).toBe(before);
  expect(importer.remoteLayouts).toEqual([]);
}

describe("a peer that claims", () => {
  test("our worker id is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    const bytes = await packageOf(liar, { workerId: importer.workerId, layouts: [] });
    await refusedWithoutTrace(importer, "DUPLICATE_WORKER", bytes);
  });

  test("our agent name is refused", async () => {
    await using importer = await openLocal({ agentName: "me" });
    await using liar = await openLocal();
    await refusedWithoutTrace(importer, "AGENT_MISMATCH", await packageOf(liar, { agentName: "me" }));
  });

  test("our name on the wire is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    const { wireName } = importer.registry;
    await refusedWithoutTrace(importer, "AGENT_MISMATCH", await packageOf(liar, { wireName }));
  });

  test("a known worker id under another agent name is refused, and the known one stays", async () => {
    await using importer = await openLocal();
    await using known = await openLocal();
    await using liar = await openLocal();
    const peer = await importer.importMetadata(await known.exportMetadata());
    const bytes = await packageOf(liar, { workerId: known.workerId, layouts: [], incarnation: 2 ** 35 });
    await refused("AGENT_MISMATCH", importer.importMetadata(bytes));
    expect(importer.peers).toEqual([peer]);
  });

  test("a known agent name under another worker id is refused, and the known one stays", async () => {
    await using importer = await openLocal();
    await using known = await openLocal();
    await using liar = await openLocal();
    const peer = await importer.importMetadata(await known.exportMetadata());
    await refused(
      "AGENT_MISMATCH",
      importer.importMetadata(await packageOf(liar, { agentName: known.agentName })),
    );
    expect(importer.peers).toEqual([peer]);
  });

  test("another peer's handles is refused, whatever the format", async () => {
    await using importer = await openLocal();
    // kvferry's own format has no place for it: a handle's worker is the package's.
    for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const) {
      const raw = rawOf({}, {}, 8n);
      const value = format === "dynamo-1.0" ? raw : kvbmOf(raw, null, "Unknown");
      await refusedWithoutTrace(importer, "METADATA_MALFORMED", encodeDynamoPackage(value, format));
    }
  });

  test("one handle twice is refused", async () => {
    await using importer = await openLocal();
    const raw = rawOf();
    const twice = { ...raw, layouts: [...raw.layouts, ...raw.layouts] };
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", encodeDynamoPackage(twice, "dynamo-1.0"));
  });

  test("handles of an incarnation that is not its own is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await liar.register(systemSpec("x"));
    const value = decodePackage(await liar.exportMetadata());
    const bytes = forged(value, (body) => {
      body["incarnation"] = value.incarnation - 1;
    });
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", bytes);
  });
});

describe("regions that", () => {
  async function withRegion(address: number, size?: number): Promise<void> {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await liar.register(systemSpec("x"));
    const value = decodePackage(await liar.exportMetadata());
    const bytes = forged(value, (body) => {
      poke(body, "addresses", 0, address, false);
      if (size !== undefined) poke(body, "sizes", 0, size, false);
    });
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", bytes);
  }

  test("wrap are refused", () => withRegion(2 ** 53 - 8));
  test("begin before zero are refused", () => withRegion(-8));
  test("begin between two bytes are refused", () => withRegion(0.5));
  test("are too small for their config are refused", () => withRegion(4096, 1));
  test("end nowhere are refused", () => withRegion(4096, Number.POSITIVE_INFINITY));

  test("overlap without leave are refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await liar.register({
      ...systemSpec("x"),
      arrangement: "layer-separate/block-first",
    } as Parameters<Transport["register"]>[0]);
    const value = decodePackage(await liar.exportMetadata());
    const first = value.layouts[0]?.components[0]?.regionAddresses[0] ?? 0;
    const bytes = forged(value, (body) => poke(body, "addresses", 1, first + 8, false));
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", bytes);
  });

  nixlTest("lie outside what the NIXL metadata of the package register are refused", async () => {
    await using pair = await openPair();
    await pair.b.register(systemSpec("x"));
    for (const distance of [-4096, 4096, 2 ** 40]) {
      const bytes = await withLayouts(pair.b, (layouts) =>
        layouts.map((layout) => ({
          ...layout,
          components: layout.components.map((component) => ({
            ...component,
            regionAddresses: component.regionAddresses.map((address) => address + distance),
          })),
        })),
      );
      await refusedWithoutTrace(pair.a, "METADATA_MALFORMED", bytes);
    }
    expect((await pair.meet()).layout("x").name).toBe("x");
  });

  nixlTest("have a memory type that NIXL would look up outside its table never reach it", async () => {
    await using pair = await openPair();
    await pair.b.register(systemSpec("x"));
    const value = decodePackage(await pair.b.exportMetadata());
    const blob = value.nixlMetadata.slice();
    const at = Buffer.from(blob).indexOf("nixlSDList|t") + "nixlSDList|t".length + 8;
    blob[at] = 6;
    const loads = spyOn(NixlAgent.prototype, "loadPeer");
    try {
      await refusedWithoutTrace(
        pair.a,
        "METADATA_MALFORMED",
        encodePackage({ ...value, nixlMetadata: blob }, "kvferry"),
      );
      expect(loads).not.toHaveBeenCalled();
    } finally {
      loads.mockRestore();
    }
  });

  nixlTest("are named by another agent's NIXL metadata are refused before NIXL sees them", async () => {
    await using pair = await openPair();
    await using third = await openRemote();
    const { nixlMetadata } = decodePackage(await third.exportMetadata());
    const loads = spyOn(NixlAgent.prototype, "loadPeer");
    try {
      await refusedWithoutTrace(pair.a, "AGENT_MISMATCH", await packageOf(pair.b, { nixlMetadata }));
      expect(loads).not.toHaveBeenCalled();
    } finally {
      loads.mockRestore();
    }
  });
});

describe("a package that is", () => {
  for (const { name, bytes } of hostileInputs())
    test(`made to cost much (${name}) is refused or empty, and leaves nothing`, async () => {
      await using importer = await openLocal();
      const before = importer.registry;
      const outcome = await importer.importMetadata(bytes).catch((error: unknown) => error);
      if (outcome instanceof Error) {
        expect(isKvferryError(outcome) ? outcome.code : outcome).toMatch(/METADATA_MALFORMED|ACCESS/);
        expect(importer.registry).toBe(before);
      } else await importer.peers[0]?.forget();
      expect(importer.remoteLayouts).toEqual([]);
    });

  test("said to have a billion layouts is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await liar.register(systemSpec("x"));
    const value = decodePackage(await liar.exportMetadata());
    const bytes = forged(value, (body) => {
      // As many rows as fit into the claim of a column of 4 GiB: the bytes are not there.
      body["layouts"] = new Uint8Array(20 * 65_536);
      body["generations"] = new Uint8Array(8 * 65_536);
    });
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", bytes);
    const dynamo = new Uint8Array([7, 1, 0x77, 2, 1, 2, 253, 0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0]);
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", dynamo);
  });

  test("one huge string is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    const bytes = await packageOf(liar, { agentName: "x".repeat(8 * 2 ** 20) });
    await refusedWithoutTrace(importer, "METADATA_MALFORMED", bytes);
  });

  test("expired is refused, also when its time lies far back", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await refusedWithoutTrace(importer, "METADATA_EXPIRED", await packageOf(liar, { expiresAtMs: 1 }));
  });

  test("meant for others is refused", async () => {
    await using importer = await openLocal();
    await using liar = await openLocal();
    await refusedWithoutTrace(importer, "ACCESS", await packageOf(liar, { audience: [99_999n] }));
    await refusedWithoutTrace(importer, "ACCESS", await packageOf(liar, { audience: [] }));
  });

  test("an old one replayed is refused as an update and as an import", async () => {
    await using importer = await openLocal();
    await using exporter = await openLocal();
    const [first, second, third] = [
      await exporter.exportMetadata(),
      await exporter.exportMetadata(),
      await exporter.exportMetadata(),
    ];
    const peer = await importer.importMetadata(second);
    await refused("METADATA_EXPIRED", peer.update(first));
    await refused("METADATA_EXPIRED", peer.update(second));
    await peer.update(third);
    await refused("METADATA_EXPIRED", importer.importMetadata(second));
    await peer.forget();
    await refused("METADATA_EXPIRED", importer.importMetadata(second));
    expect((await importer.importMetadata(third)).workerId).toBe(exporter.workerId);
  });

  test("of an earlier incarnation is refused once the worker came back, also after it was forgotten", async () => {
    await using importer = await openLocal();
    const workerId = freshWorker();
    const before = await openLocal({ workerId });
    const old = await before.exportMetadata();
    const peer = await importer.importMetadata(old);
    await before.close();
    await using after = await openLocal({ workerId });
    const back = await importer.importMetadata(await after.exportMetadata());
    expect(peer.loss?.reason).toContain("new incarnation");
    await refused("METADATA_EXPIRED", importer.importMetadata(old));
    await back.forget();
    await refused("METADATA_EXPIRED", importer.importMetadata(old));
  });
});

test("formats without generations are imported again only after the peer was forgotten", async () => {
  await using importer = await openLocal();
  for (const format of ["dynamo-1.0", "kvbm-physical-1"] as const) {
    const raw = rawOf();
    const bytes = encodeDynamoPackage(format === "dynamo-1.0" ? raw : kvbmOf(raw, null, "Unknown"), format);
    const peer = await importer.importMetadata(bytes);
    const before = importer.registry;
    await refused("DUPLICATE_WORKER", importer.importMetadata(bytes));
    await refused("DUPLICATE_WORKER", peer.update(bytes));
    expect(importer.registry).toBe(before);
    await peer.forget();
    const again = await importer.importMetadata(bytes);
    expect(again.layouts.map(({ handle }) => handle)).toEqual(peer.layouts.map(({ handle }) => handle));
    await again.forget();
  }
});

describe("with a secret, a package", () => {
  test("whose audience, expiry or sequence was changed without the key is refused", async () => {
    await using importer = await openLocal({ secret: KEYS });
    await using exporter = await openLocal({ secret: KEYS });
    const bytes = await exporter.exportMetadata({ audience: [5n], expiresInMs: 60_000 });
    const value = decodePackage(bytes, { mac: macOf(KEYS) });
    for (const change of [{ audience: null }, { expiresAtMs: null }, { sequence: value.sequence + 1 }]) {
      await refusedWithoutTrace(
        importer,
        "METADATA_UNAUTHENTICATED",
        encodePackage({ ...value, ...change }, "kvferry"),
      );
      const wrongKey = {
        keyId: "new",
        mac: macOf([{ keyId: "new", key: new Uint8Array(32).fill(9) }]),
      };
      await refusedWithoutTrace(
        importer,
        "METADATA_UNAUTHENTICATED",
        encodePackage({ ...value, ...change }, "kvferry", { signing: wrongKey }),
      );
    }
  });

  test("signed by an older key is taken while the keys rotate, by an unknown one refused", async () => {
    await using importer = await openLocal({ secret: KEYS });
    await using rotated = await openLocal({ secret: KEYS.slice(1) });
    await using stranger = await openLocal({ secret: [{ keyId: "other", key: new Uint8Array(32).fill(1) }] });
    const foreign = await stranger.exportMetadata();
    await refusedWithoutTrace(importer, "METADATA_UNAUTHENTICATED", foreign);
    expect((await importer.importMetadata(await rotated.exportMetadata())).workerId).toBe(rotated.workerId);
  });

  nixlTest("that is not authentic never reaches NIXL, in any format", async () => {
    await using importer = await openRemote({ secret: KEYS, trustedNetwork: true });
    await using liar = await openRemote();
    await liar.register(systemSpec("x"));
    const loads = spyOn(NixlAgent.prototype, "loadPeer");
    try {
      for (const format of ["kvferry", "dynamo-1.0", "kvbm-physical-1"] as const)
        await refusedWithoutTrace(
          importer,
          "METADATA_UNAUTHENTICATED",
          await liar.exportMetadata({ format }),
        );
      const good = await liar.exportMetadata();
      for (let at = 0; at < good.byteLength; at += 7) {
        const bytes = good.slice();
        bytes[at] = (bytes[at] ?? 0) ^ 0x40;
        await importer.importMetadata(bytes).catch(() => undefined);
      }
      expect(loads).not.toHaveBeenCalled();
      expect(importer.peers).toEqual([]);
    } finally {
      loads.mockRestore();
    }
  });

  nixlTest("UCX over TCP is used only where the network is trusted", async () => {
    const key = new Uint8Array(32).fill(1);
    const outcome = await openRemote({ secret: key }).then(
      (transport) => transport.close().then(() => "open" as const),
      (error: { readonly code: string }) => error.code,
    );
    // Hosts with RDMA hardware have another way.
    expect(["ERR_KVF_ACCESS", "open"]).toContain(outcome);
    await using trusting = await openRemote({ secret: key, trustedNetwork: true });
    expect(trusting.nixlLibrary).not.toBeNull();
    expect([undefined, "all", "^cma", "tcp", "tcp,sm", "rc,sm"].map(withoutTcp)).toEqual([
      "^tcp",
      "^tcp",
      "^cma,tcp",
      "^tcp",
      "sm",
      "rc,sm",
    ]);
  });
});

nixlTest("without a secret a transport says once that nothing is authenticated", async () => {
  await using transport = await openRemote();
  const warnings: string[] = [];
  transport.on("warning", ({ code }) => warnings.push(code));
  await transport.exportMetadata();
  await transport.exportMetadata();
  expect(warnings).toEqual(["NO_SECRET"]);
  await using silent = await openRemote({ secret: KEYS, trustedNetwork: true });
  silent.on("warning", ({ code }) => warnings.push(code));
  await silent.exportMetadata();
  expect(warnings).toEqual(["NO_SECRET"]);
});

nixlTest("an export of some layouts names nothing else, NIXL's metadata included", async () => {
  await using pair = await openPair();
  const shown = await pair.b.register(systemSpec("shown"));
  const hidden = await pair.b.register(systemSpec("hidden"));
  await hidden.fill(1);
  const bytes = await pair.b.exportMetadata({ layouts: [shown] });
  const { layouts, nixlMetadata } = decodePackage(bytes);
  expect(layouts.map(({ name }) => name)).toEqual(["shown"]);
  const named = unpackBlobs(nixlMetadata).flatMap((blob) => readNixlBlob(blob)?.regions ?? []);
  expect(named.map(({ address }) => address)).toEqual([shown.regions[0]?.address ?? 0]);
  // What a liar adds is refused by NIXL's own word.
  const whole = decodePackage(await pair.b.exportMetadata());
  const added = encodePackage({ ...whole, nixlMetadata }, "kvferry");
  await refusedWithoutTrace(pair.a, "METADATA_MALFORMED", added);
  const peer = await pair.a.importMetadata(bytes);
  const own = await pair.a.register(systemSpec("own"));
  await shown.fill(5);
  await pair.a.transfer({
    source: peer.layout("shown"),
    sourceBlocks: [0, 1, 2, 3],
    destination: own,
    destinationBlocks: [3, 2, 1, 0],
  });
  expect(await own.checksums([0, 1, 2, 3])).toEqual(await shown.checksums([0, 1, 2, 3]));
});

test("a layout that peers may only read is refused as destination", async () => {
  await using exporter = await openLocal();
  await using importer = await openLocal();
  await exporter.register(systemSpec("ours", undefined, { access: "read" }));
  const peer = await importer.importMetadata(await exporter.exportMetadata());
  const own = await importer.register(systemSpec("own"));
  await refused(
    "ACCESS",
    importer.transfer({
      source: own,
      sourceBlocks: [0],
      destination: peer.layout("ours"),
      destinationBlocks: [0],
    }),
  );
});

nixlTest("a layout that peers may only read is announced as not enforced where NIXL cannot", async () => {
  await using exporter = await openRemote({ secret: KEYS, trustedNetwork: true });
  const warnings: string[] = [];
  exporter.on("warning", ({ code }) => warnings.push(code));
  const ours = await exporter.register(systemSpec("ours", undefined, { access: "read" }));
  const open = await exporter.register(systemSpec("open"));
  await exporter.exportMetadata({ layouts: [open] });
  expect(warnings).toEqual([]);
  await exporter.exportMetadata({ layouts: [ours] });
  expect(warnings).toEqual(["ACCESS"]);
  await exporter.exportMetadata();
  expect(warnings).toEqual(["ACCESS"]);
});

describe("control messages", () => {
  const ends = (pair: SimPair): { readonly sender: string; readonly receiver: string } => ({
    sender: pair.b.agent.name,
    receiver: pair.a.agent.name,
  });
  /** Puts bytes on the wire from b to a, as if b's transport had sent them. */
  const inject = (pair: SimPair, payload: Uint8Array): void => {
    pair.b.agent.deliver(pair.a.agent, Uint8Array.from(payload));
    pair.pass(10);
  };
  const handle = (pair: SimPair): ReturnType<typeof makeHandle> => {
    const [layout] = pair.b.transport.localLayouts;
    if (layout === undefined) throw new Error("b has no layout");
    return layout.handle;
  };

  test("that are doubled are taken once", async () => {
    const pair = await simPair();
    const gone = writeControl(CONTROL.layoutGone, 900, handleBody(handle(pair)), ends(pair), []);
    inject(pair, gone);
    expect(pair.peers.b.layouts).toEqual([]);
    const heard: number[] = [];
    pair.b.agent.onNotifications = () => heard.push(pair.b.agent.takeNotifications().length);
    inject(pair, gone);
    inject(pair, gone);
    expect(heard).toEqual([]);
  });

  test("that come out of order are dropped", async () => {
    const pair = await simPair();
    inject(pair, writeControl(CONTROL.alive, 50, new Uint8Array(0), ends(pair), []));
    inject(pair, writeControl(CONTROL.bye, 49, new Uint8Array(0), ends(pair), []));
    expect(pair.peers.b.loss).toBeUndefined();
    for (const sequence of [0, -60, 60.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53])
      inject(pair, writeControl(CONTROL.bye, sequence, new Uint8Array(0), ends(pair), []));
    // Numbers never begin anew.
    inject(pair, writeControl(CONTROL.alive, 2 ** 32 + 50, new Uint8Array(0), ends(pair), []));
    inject(pair, writeControl(CONTROL.bye, 51, new Uint8Array(0), ends(pair), []));
    expect(pair.peers.b.loss).toBeUndefined();
    inject(pair, writeControl(CONTROL.bye, 2 ** 32 + 51, new Uint8Array(0), ends(pair), []));
    expect(pair.peers.b.loss?.reason).toBe("it closed");
  });

  test("that are forged without the secret, with another key, or for others are dropped", async () => {
    const pair = await simPair({ secret: KEYS });
    const own = ends(pair);
    const bye = (keys: readonly SecretKey[], between = own): Uint8Array =>
      writeControl(CONTROL.bye, 1_000, new Uint8Array(0), between, keys);
    inject(pair, bye([]));
    inject(pair, bye([{ keyId: "new", key: new Uint8Array(32).fill(9) }]));
    inject(pair, bye([{ keyId: "none", key: new Uint8Array(32).fill(1) }]));
    inject(pair, bye(KEYS, { sender: own.sender, receiver: "worker-3#3" }));
    inject(pair, bye(KEYS, { sender: own.receiver, receiver: own.sender }));
    const cut = bye(KEYS);
    inject(pair, cut.subarray(0, cut.byteLength - 1));
    for (let at = 0; at < cut.byteLength; at++) {
      const flipped = cut.slice();
      flipped[at] = (flipped[at] ?? 0) ^ 1;
      inject(pair, flipped);
    }
    expect(pair.peers.b.loss).toBeUndefined();
    inject(pair, bye(KEYS.slice(1)));
    expect(pair.peers.b.loss?.reason).toBe("it closed");
  });

  test("of which every single bit is wrong change nothing", async () => {
    const pair = await simPair();
    const before = pair.a.transport.registry;
    for (let type = 0; type < 256; type++)
      inject(
        pair,
        writeControl(type === CONTROL.bye ? 255 : type, 2_000 + type, new Uint8Array(7), ends(pair), []),
      );
    inject(
      pair,
      writeControl(CONTROL.layoutGone, 3_000, new Uint8Array(MAX_CONTROL_BODY + 1), ends(pair), []),
    );
    inject(pair, writeControl(CONTROL.layoutGone, 3_001, handleBody(makeHandle(77n, 0)), ends(pair), []));
    expect(pair.a.transport.registry).toBe(before);
    expect(pair.peers.b.loss).toBeUndefined();
    expect(pair.world.findings).toEqual([]);
  });

  test("with a secret, nothing that is not authentic reaches NIXL by them", async () => {
    const pair = await simPair({ secret: KEYS });
    const loads = spyOn(pair.a.agent, "loadPeer");
    const body = importedBody({
      number: 1,
      sequence: 1,
      process: null,
      connection: new TextEncoder().encode("blob of worker-2#2"),
    });
    inject(pair, writeControl(CONTROL.imported, 5_000, body, ends(pair), []));
    expect(loads).not.toHaveBeenCalled();
  });

  test("never show, and a user's message that begins like one arrives as it is", async () => {
    const pair = await simPair();
    const payload = writeControl(CONTROL.bye, 7, new Uint8Array(3), ends(pair), []);
    const received: Uint8Array[] = [];
    void (async () => {
      for await (const message of pair.a.transport.notifications()) received.push(message.payload);
    })();
    await pair.settle(pair.b.transport.notify(pair.peers.a, payload));
    await pair.settle(pair.b.transport.notify(pair.peers.a, "plain"));
    pair.pass(10);
    await Promise.resolve();
    expect(received.map((bytes) => Buffer.from(bytes).toString("hex"))).toEqual([
      Buffer.from(payload).toString("hex"),
      Buffer.from("plain").toString("hex"),
    ]);
    expect(pair.peers.b.loss).toBeUndefined();
  });
});
