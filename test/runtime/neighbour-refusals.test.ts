// Who is no neighbour, and what is not mapped: each is refused with a reason, and reached through NIXL or not at all.
import { describe, expect, test } from "bun:test";
import { dlopen } from "bun:ffi";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { Transport, type RemoteLayout } from "../../index.ts";
import type { LayoutHandle } from "../../lib/core/handle.ts";
import { NativeContext } from "../../lib/native/context.ts";
import { openLibrary } from "../../lib/native/library.ts";
import { mapMemory, type MappedMemory, unmapMemory } from "../../lib/native/memory.ts";
import { inspectFile, mapNeighbourMemory } from "../../lib/native/neighbour.ts";
import { macOf } from "../../lib/runtime/authentication.ts";
import { strangerReason } from "../../lib/runtime/neighbour-host.ts";
import { MEETING_MILLIS } from "../../lib/runtime/neighbour-link.ts";
import { freshNonce, NEIGHBOUR_VERSION, type NeighbourName } from "../../lib/runtime/neighbour-words.ts";
import { decodePackage, encodePackage } from "../../lib/wire/index.ts";
import { forged, hostAt, Impostor } from "./helpers/impostor.ts";
import type { Distances } from "./helpers/neighbour-calls.ts";
import { listedMappings, NeighbourProcess, openDescriptors } from "./helpers/neighbour-process.ts";
import { freshWorker, SMALL, systemSpec, until } from "./helpers/transports.ts";

const MILLIS = 60_000;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
/** A user who is nobody here. */
const NOBODY = 65_534;

function openNear(options: object = {}): Promise<Transport> {
  return Transport.open({ workerId: freshWorker(), nixl: false, cuda: false, ...options });
}

/** Why a layout is not mapped, as the planner says it. */
function reasonOf(layout: RemoteLayout): string {
  const { attachment } = layout.record.components[0] ?? {};
  return attachment !== undefined && "unmapped" in attachment ? (attachment.unmapped ?? "") : "";
}

/** Imports a package that must not be mapped, and says why it was not. */
async function whyNot(at: Transport, bytes: Uint8Array): Promise<string> {
  const peer = await at.importMetadata(bytes);
  const [layout] = peer.layouts;
  if (layout === undefined) throw new Error("no layout");
  expect(layout.distance).toBe("remote");
  const why = reasonOf(layout);
  await peer.forget();
  return why;
}

/** What a good exporter made, whose memory an impostor then hands out. */
async function goodPackage(access: "read" | "read-write" = "read-write"): Promise<Uint8Array> {
  const exporter = await openNear();
  await exporter.register(systemSpec("pool", SMALL, { access }));
  const bytes = await exporter.exportMetadata();
  await exporter.close();
  return bytes;
}

function selfOf(transport: Transport, bytes: Uint8Array): NeighbourName {
  const { wireName, incarnation } = decodePackage(bytes);
  return {
    worker: transport.workerId.toString(),
    agent: transport.agentName,
    wire: wireName,
    incarnation,
  };
}

describe("another user", () => {
  test(
    "is told apart by what the package says, and is turned away when it connects all the same",
    async () => {
      if (process.getuid?.() !== 0) return console.error("NOT TESTED: only root can become another user");
      await using here = await openNear();
      await here.register(systemSpec("pool"));
      const bytes = await here.exportMetadata();
      await using far = new NeighbourProcess();
      await far.call({ do: "open", options: {}, user: NOBODY });
      expect(await far.call<Distances>({ do: "import", bytes })).toEqual({ pool: "remote" });
      await far.call({ do: "forget" });
      // A package that claims to be of the other's own user: the listener's credentials tell.
      const host = decodePackage(bytes).host;
      if (host === null) throw new Error("no host");
      const lying = forged(bytes, () => ({ host: { ...host, userId: NOBODY } }));
      expect(await far.call<Distances>({ do: "import", bytes: lying })).toEqual({ pool: "remote" });
      expect(strangerReason(host, { ...host, userId: NOBODY })).toContain(`user ${NOBODY}`);
    },
    MILLIS,
  );
});

describe("a stale package", () => {
  test(
    "of a process that is gone finds nobody at the rendezvous",
    async () => {
      await using here = await openNear();
      const far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("pool")] });
      const bytes = await far.call<Uint8Array>({ do: "export" });
      await far.kill();
      expect(await whyNot(here, bytes)).toContain("Nobody listens at the peer's rendezvous");
    },
    MILLIS,
  );

  test("of an earlier incarnation is refused by the present one", async () => {
    await using here = await openNear();
    const workerId = freshWorker();
    const first = await openNear({ workerId });
    await first.register(systemSpec("pool"));
    const old = await first.exportMetadata();
    await first.close();
    await using again = await openNear({ workerId });
    await again.register(systemSpec("pool"));
    const { host } = decodePackage(await again.exportMetadata());
    expect(
      await whyNot(
        here,
        forged(old, () => ({ host })),
      ),
    ).toContain("its package is stale");
  });

  test("names a layout that was taken back: the others are mapped", async () => {
    await using here = await openNear();
    await using there = await openNear();
    const gone = await there.register(systemSpec("gone"));
    await there.register(systemSpec("kept"));
    const bytes = await there.exportMetadata();
    await gone.unregister();
    const peer = await here.importMetadata(bytes);
    expect(peer.layouts.map(({ name, distance }) => [name, distance])).toEqual([
      ["gone", "remote"],
      ["kept", "neighbour"],
    ]);
    expect(reasonOf(peer.layout("gone"))).toContain("gone");
  });
});

describe("a secret", () => {
  const [right, wrong] = [new Uint8Array(32).fill(1), new Uint8Array(32).fill(2)];

  test("that both know lets them map; one that only one side has does not", async () => {
    for (const [mine, theirs, distance, why] of [
      [right, right, "neighbour", ""],
      [right, wrong, "remote", "does not know the secret"],
      [right, undefined, "remote", "it has a secret and this worker has none"],
    ] as const) {
      await using here = await openNear({ secret: mine, acceptUnauthenticated: true });
      await using there = await openNear(theirs === undefined ? {} : { secret: theirs });
      await there.register(systemSpec("pool"));
      const metadata = decodePackage(
        await there.exportMetadata(),
        theirs === undefined ? {} : { mac: macOf([{ keyId: "default", key: theirs }]) },
      );
      // Signed by whoever holds the importer's key, for an exporter that does not.
      const bytes = encodePackage(metadata, "kvferry", {
        signing: { keyId: "default", mac: macOf([{ keyId: "default", key: mine }]) },
      });
      const peer = await here.importMetadata(bytes);
      expect(peer.layout("pool").distance).toBe(distance);
      expect(reasonOf(peer.layout("pool"))).toContain(why);
    }
  });

  test("is asked of importers: without a right proof nothing is handed out", async () => {
    await using there = await openNear({ secret: right });
    const pool = await there.register(systemSpec("pool"));
    const warnings: string[] = [];
    there.on("warning", ({ message }) => warnings.push(message));
    const bytes = await there.exportMetadata();
    const metadata = decodePackage(bytes, { mac: macOf([{ keyId: "default", key: right }]) });
    const to: NeighbourName = {
      worker: metadata.workerId.toString(),
      agent: metadata.agentName,
      wire: metadata.wireName,
      incarnation: metadata.incarnation,
    };
    const from: NeighbourName = { worker: "9", agent: "thief", wire: "thief#1", incarnation: 1 };
    for (const proof of [null, "00".repeat(32), "not hex"] as const) {
      using thief = new Impostor();
      const end = thief.sockets.connect(metadata.host?.rendezvous ?? "");
      if (end === null) throw new Error("nobody accepts");
      const { connection } = end;
      const nonce = freshNonce();
      thief.say(connection, { say: "hello", version: NEIGHBOUR_VERSION, from, to, nonce, keys: ["default"] });
      expect((await thief.hears()).word.say).toBe("welcome");
      // Asked for before the answer to the proof is known.
      thief.say(connection, { say: "proof", proof });
      thief.say(connection, { say: "want", layouts: [pool.handle.toString()] });
      for (let event = await thief.next(); event.kind !== "closed"; event = await thief.next())
        if (event.kind === "message") expect(event.descriptors).toEqual([]);
    }
    expect(warnings).toHaveLength(3);
    expect(await there.close()).toEqual({ layouts: [], stuck: 0, inDoubt: 0 });
  });

  test(
    "of one meeting proves nothing in another: a relay that passes words on is refused",
    async () => {
      await using there = await openNear({ secret: right });
      await there.register(systemSpec("pool"));
      const metadata = decodePackage(await there.exportMetadata(), {
        mac: macOf([{ keyId: "default", key: right }]),
      });
      // The relay is another process: the exporter sees its process id, the importer means its own.
      await using relay = new NeighbourProcess();
      await relay.call({ do: "open", options: {} });
      await relay.call({ do: "register", specs: [systemSpec("bait")] });
      const bait = decodePackage(await relay.call<Uint8Array>({ do: "export" }));
      await using here = await openNear({ secret: right });
      const bytes = encodePackage({ ...metadata, host: bait.host }, "kvferry", {
        signing: { keyId: "default", mac: macOf([{ keyId: "default", key: right }]) },
      });
      expect(await whyNot(here, bytes)).toMatch(/stale|none of this worker's keys/);
    },
    MILLIS,
  );
});

describe("a squatted rendezvous", () => {
  test(
    "is told by the process that listens there",
    async () => {
      await using here = await openNear();
      const far = new NeighbourProcess();
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("pool")] });
      const bytes = await far.call<Uint8Array>({ do: "export" });
      const rendezvous = decodePackage(bytes).host?.rendezvous ?? "";
      const { pid } = far;
      await far.kill();
      using squatter = new Impostor();
      squatter.listen(rendezvous);
      expect(await whyNot(here, bytes)).toBe(
        `Process ${process.pid} of user ${process.geteuid?.()} listens at the peer's rendezvous instead of process ${pid}.`,
      );
      expect((await squatter.next()).kind).toBe("accepted");
      expect((await squatter.next()).kind).toBe("closed");
    },
    MILLIS,
  );

  test("where nobody answers is given up in time", async () => {
    await using here = await openNear();
    using silent = new Impostor();
    const bytes = forged(await goodPackage(), () => ({ host: hostAt(silent.listen()) }));
    const started = performance.now();
    expect(await whyNot(here, bytes)).toContain("did not answer");
    expect(performance.now() - started).toBeGreaterThan(MEETING_MILLIS / 2);
  });
});

describe("another namespace", () => {
  test(
    "of processes is told apart, not guessed",
    async () => {
      const unshared = Bun.spawnSync(["unshare", "--pid", "--fork", "true"]);
      if (unshared.exitCode !== 0) return console.error("NOT TESTED: no right to make a pid namespace");
      await using here = await openNear();
      await here.register(systemSpec("pool"));
      await using far = new NeighbourProcess(["unshare", "--pid", "--fork", "--mount-proc"]);
      await far.call({ do: "open", options: {} });
      await far.call({ do: "register", specs: [systemSpec("theirs")] });
      expect(await far.call<Distances>({ do: "import", bytes: await here.exportMetadata() })).toEqual({
        pool: "remote",
      });
      expect(await whyNot(here, await far.call<Uint8Array>({ do: "export" }))).toContain(
        "another pid namespace",
      );
    },
    MILLIS,
  );

  test("of any kind, or another boot, is told apart", () => {
    const here = hostAt("x");
    expect(strangerReason(here, here)).toBeNull();
    for (const kind of ["pid", "ipc", "net", "user"] as const)
      expect(strangerReason(here, { ...here, namespaces: { ...here.namespaces, [kind]: "1" } })).toContain(
        `another ${kind} namespace`,
      );
    expect(strangerReason(here, { ...here, bootId: "other" })).toContain("another host");
  });
});

describe("a layout for reading", () => {
  test("cannot be written by whoever was handed its descriptor, not even when it is opened anew", async () => {
    await using there = await openNear();
    const pool = await there.register(systemSpec("pool", SMALL, { access: "read" }));
    await pool.fill(5);
    const bytes = await there.exportMetadata();
    const metadata = decodePackage(bytes);
    using thief = new Impostor();
    const end = thief.sockets.connect(metadata.host?.rendezvous ?? "");
    if (end === null) throw new Error("nobody accepts");
    const { connection } = end;
    const to = selfOf(there, bytes);
    const from: NeighbourName = { worker: "9", agent: "thief", wire: "thief#1", incarnation: 1 };
    thief.say(connection, {
      say: "hello",
      version: NEIGHBOUR_VERSION,
      from,
      to,
      nonce: freshNonce(),
      keys: [],
    });
    expect((await thief.hears()).word.say).toBe("welcome");
    thief.say(connection, { say: "proof", proof: null });
    expect((await thief.hears()).word.say).toBe("ready");
    thief.say(connection, { say: "want", layouts: [pool.handle.toString()] });
    const { word, descriptors } = await thief.hears();
    if (word.say !== "layout") throw new Error(`heard ${word.say}`);
    expect(word.readOnly).toBe(true);
    const [descriptor = -1] = descriptors;
    const one = new Uint8Array([1]);
    expect(() => writeSync(descriptor, one, 0, 1, 0)).toThrow("EBADF");
    let again = -1;
    try {
      again = openSync(`/proc/self/fd/${descriptor}`, "r+");
    } catch {
      // Some kernels do not even let it be opened.
    }
    if (again >= 0) {
      expect(() => writeSync(again, one, 0, 1, 0)).toThrow("EPERM");
      const context = NativeContext.open(openLibrary(), 64);
      expect(() => mapNeighbourMemory(context, [{ descriptor: again, bytes: 4096 }], false)).toThrow(
        "Operation not permitted",
      );
      context.close(100);
    }
    closeSync(descriptor);
    expect((await pool.read(0))[0]).toBe(5);
    thief.say(connection, { say: "bye" });
  });
});

describe("what is handed over", () => {
  const context = NativeContext.open(openLibrary(), 64);
  const sealed = (bytes: number): MappedMemory => mapMemory(context, bytes, true);
  const descriptorsOf = ({ files }: MappedMemory): number[] => files.map(({ descriptor }) => descriptor);

  /** Hands descriptors and words to an importer, and says why it did not map them. */
  async function handing(
    describe: (layout: string) => {
      /** Bytes of the files of each segment. */
      readonly segments: readonly (readonly number[])[];
      readonly region: readonly [number, number, number];
      readonly descriptors: readonly number[];
      readonly name?: string;
    },
  ): Promise<string> {
    const before = { mappings: listedMappings("self").length, descriptors: openDescriptors("self") };
    let why = "";
    {
      await using here = await openNear();
      using impostor = new Impostor();
      const bytes = forged(await goodPackage(), () => ({ host: hostAt(impostor.listen()) }));
      const answering = whyNot(here, bytes);
      const { connection, wanted } = await impostor.admit();
      const [layout = ""] = wanted;
      const { segments, region, descriptors, name = "kv" } = describe(layout);
      impostor.say(
        connection,
        {
          say: "layout",
          layout,
          readOnly: false,
          segments: segments.map((files) => ({ files })),
          components: [{ name, regions: [region], why: null }],
        },
        descriptors,
      );
      expect((await impostor.hears()).word).toMatchObject({ say: "released", layouts: [layout] });
      why = await answering;
    }
    expect(listedMappings("self")).toHaveLength(before.mappings);
    await until("descriptors are closed", () => openDescriptors("self") <= before.descriptors);
    return why;
  }

  test("with a descriptor of the wrong size is refused", async () => {
    const memory = sealed(8192);
    for (const size of [4096, 12_288])
      expect(
        await handing(() => ({
          segments: [[size]],
          region: [0, 0, 2048],
          descriptors: descriptorsOf(memory),
        })),
      ).toContain(`has 8192 bytes instead of ${size}`);
    unmapMemory(context, memory);
  });

  test("in a segment that is not sealed, or was shrunk before it was sealed, is refused", async () => {
    const libc = dlopen("libc.so.6", { memfd_create: { args: ["ptr", "u32"], returns: "i32" } });
    const file = libc.symbols.memfd_create(new Uint8Array([0x78, 0]), MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ftruncateSync(file, 8192);
    const handed = { segments: [[8192]], region: [0, 0, 2048], descriptors: [file] } as const;
    expect(await handing(() => handed)).toContain("is not sealed: it could shrink");
    ftruncateSync(file, 1024);
    // Seals it, for it can be.
    const { sealed: isSealed, descriptor } = inspectFile(context, file);
    expect(isSealed).toBe(true);
    expect(() => ftruncateSync(file, 512)).toThrow("EPERM");
    expect(await handing(() => handed)).toContain("has 1024 bytes instead of 8192");
    closeSync(descriptor);
    closeSync(file);
  });

  test("in several files is refused whole when one of them is wrong, missing or could shrink", async () => {
    const STEP = 2 ** 21;
    const memory = mapMemory(context, 3 * STEP, true, STEP);
    const good = descriptorsOf(memory);
    const region = [0, STEP - 1024, 2048] as const;
    const libc = dlopen("libc.so.6", { memfd_create: { args: ["ptr", "u32"], returns: "i32" } });
    const made = libc.symbols.memfd_create(new Uint8Array([0x78, 0]), MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const handing3 = (at: number, bytes: number, descriptor = good[at] ?? -1): Promise<string> =>
      handing(() => ({
        segments: [[0, 1, 2].map((index) => (index === at ? bytes : STEP))],
        region,
        descriptors: good.with(at, descriptor),
      }));
    ftruncateSync(made, STEP);
    for (const at of [0, 1, 2]) {
      expect(await handing3(at, 2 * STEP)).toContain(`has ${STEP} bytes instead of ${2 * STEP}`);
      expect(await handing3(at, STEP, made)).toContain("is not sealed: it could shrink");
      const fewer = good.toSpliced(at, 1);
      expect(await handing(() => ({ segments: [[STEP, STEP, STEP]], region, descriptors: fewer }))).toContain(
        "2 descriptors came for 3 files",
      );
    }
    expect(await handing3(0, STEP / 2)).toContain("could not follow at once");
    expect(await handing3(2, STEP / 2)).toContain(`has ${STEP} bytes instead of ${STEP / 2}`);
    expect(await handing(() => ({ segments: [[STEP, STEP]], region, descriptors: good }))).toContain(
      "3 descriptors came for 2 files",
    );
    expect(
      await handing(() => ({
        segments: [[STEP, STEP, STEP]],
        region: [0, 3 * STEP - 1024, 2048],
        descriptors: good,
      })),
    ).toContain("does not lie in its segment");
    ftruncateSync(made, 4096);
    const { sealed: isSealed, descriptor } = inspectFile(context, made);
    expect(isSealed).toBe(true);
    for (const at of [0, 1, 2])
      expect(await handing3(at, STEP, made)).toContain(`has 4096 bytes instead of ${STEP}`);
    closeSync(descriptor);
    closeSync(made);
    unmapMemory(context, memory);
  });

  test("with regions outside their segment, too few or of other components, is refused", async () => {
    const memory = sealed(8192);
    const descriptors = descriptorsOf(memory);
    for (const region of [
      [0, 8192, 2048],
      [0, 6145, 2048],
      [0, 0, 2047],
      [0, 2 ** 53 - 1, 2048],
      [1, 0, 2048],
    ] as const)
      expect(await handing(() => ({ segments: [[8192]], region, descriptors }))).toContain(
        "does not lie in its segment",
      );
    expect(
      await handing(() => ({ segments: [[8192], [8192]], region: [0, 0, 2048], descriptors })),
    ).toContain("1 descriptors came for 2 files");
    expect(await handing(() => ({ segments: [], region: [0, 0, 2048], descriptors }))).toContain(
      "1 descriptors came for 0 files",
    );
    unmapMemory(context, memory);
  });

  test("by a pipe, a directory or a device is refused", async () => {
    for (const path of ["/dev/zero", "/tmp", "/proc/self/status"]) {
      const descriptor = openSync(path, "r");
      expect(
        await handing(() => ({ segments: [[4096]], region: [0, 0, 2048], descriptors: [descriptor] })),
      ).toContain("What the peer handed over was refused");
      closeSync(descriptor);
    }
  });

  test("that nobody asked for is closed and given back; words that are none end the connection", async () => {
    await using here = await openNear();
    using impostor = new Impostor();
    const memory = sealed(4096);
    const bytes = forged(await goodPackage(), () => ({ host: hostAt(impostor.listen()) }));
    const importing = here.importMetadata(bytes);
    const { connection, wanted } = await impostor.admit();
    impostor.say(connection, { say: "no", layouts: wanted, why: "Not today." });
    const peer = await importing;
    expect(reasonOf(peer.layouts[0] as RemoteLayout)).toBe("Not today.");
    const before = openDescriptors("self");
    const layout = (1n as LayoutHandle).toString();
    impostor.say(
      connection,
      { say: "layout", layout, readOnly: false, segments: [{ files: [4096] }], components: [] },
      descriptorsOf(memory),
    );
    expect((await impostor.hears()).word).toEqual({ say: "released", layouts: [layout] });
    expect(openDescriptors("self")).toBe(before);
    impostor.sockets.send(connection, new Uint8Array([0, 123, 1, 2]));
    expect((await peer.lost).reason).toContain("cannot be understood");
    unmapMemory(context, memory);
  });
});
