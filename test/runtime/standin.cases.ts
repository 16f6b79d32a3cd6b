// Run by standin.test.ts in a process of its own: the library of KVFERRY_NIXL_LIBRARY is the stand-in.
import { dlopen, ptr } from "bun:ffi";
import { readFileSync } from "node:fs";
import { afterEach, describe, expect, test } from "bun:test";
import {
  Transport,
  type LayoutConfig,
  type LayoutSpec,
  type LocalLayout,
  type Peer,
  type QuarantineEvent,
  type RemoteLayout,
} from "../../index.ts";
import { cString } from "../../lib/native/context.ts";
import { refused } from "./helpers/refusal.ts";
import { freshWorker, systemSpec, until } from "./helpers/transports.ts";

const library = process.env["KVFERRY_NIXL_LIBRARY"] ?? "";
const { symbols } = dlopen(library, { standin_control: { args: ["ptr"], returns: "i32" } } as const);

/** Tells the stand-in what to do, and gives what it answers. */
function standin(command: string): number {
  const answer = symbols.standin_control(cString(command));
  if (answer < 0) throw new Error(`the stand-in does not understand: ${command}`);
  return answer;
}

/** Makes the next call of a function fail. */
const failNext = (name: string, code = -2): void => void standin(`fail ${name} 1 ${code}`);

afterEach(() => void standin("reset"));

const CONFIG: LayoutConfig = { numBlocks: 8, numLayers: 4, outerDim: 2, pageSize: 16, innerDim: 64 };
const OPTIONS = { cuda: false, neighbours: false, nixl: { backends: { UCX: {} }, library } } as const;
const IDS = [0, 1, 2, 3];

interface Meeting extends AsyncDisposable {
  readonly a: Transport;
  readonly b: Transport;
  readonly here: LocalLayout;
  readonly there: LocalLayout;
  readonly peer: Peer;
  readonly remote: RemoteLayout;
  /** The name of b's agent on the wire. */
  readonly wire: string;
}

async function meet(): Promise<Meeting> {
  const a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
  const b = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
  const here = await a.register(systemSpec("here", CONFIG));
  const there = await b.register(systemSpec("there", CONFIG));
  await here.fill({ random: 1 });
  const peer = await a.importMetadata(await b.exportMetadata());
  await settled();
  return {
    a,
    b,
    here,
    there,
    peer,
    remote: peer.layout("there"),
    wire: peer.wireName,
    async [Symbol.asyncDispose]() {
      standin("reset");
      await a.close();
      await b.close();
    },
  };
}

/** Waits until what the two say to each other behind the scenes is said: it loads metadata too. */
async function settled(): Promise<void> {
  for (let last = -1, now = 0; now !== last;) {
    last = standin("calls load_remote_md") + standin("calls gen_notif");
    await Bun.sleep(40);
    now = standin("calls load_remote_md") + standin("calls gen_notif");
  }
}

const push = ({ here, remote }: Meeting): Parameters<Transport["transfer"]>[0] => ({
  source: here,
  destination: remote,
  sourceBlocks: IDS,
  destinationBlocks: IDS,
});
const pull = ({ here, remote }: Meeting): Parameters<Transport["transfer"]>[0] => ({
  source: remote,
  destination: here,
  sourceBlocks: IDS,
  destinationBlocks: IDS,
});

describe("opening", () => {
  test("a step that fails leaves no agent and no backend, and a later opening succeeds", async () => {
    const before = standin("live");
    for (const step of ["create_configured_agent", "create_params", "create_backend", "create_opt_args"]) {
      failNext(step);
      await refused("NIXL", Transport.open({ ...OPTIONS, workerId: 1n }));
      await until(`nothing is left after ${step}`, () => standin("live") === before);
    }
    await using transport = await Transport.open({ ...OPTIONS, workerId: 1n });
    expect(transport.nixlLibrary).toContain("libnixl_capi.so");
  });

  test("NIXL that was not asked for and does not work is missing, and local work goes on", async () => {
    failNext("create_backend");
    await using transport = await Transport.open({ workerId: 1n, cuda: false, neighbours: false });
    expect(transport.nixlProblem?.code).toBe("ERR_KVF_NIXL");
    const layout = await transport.register(systemSpec("x"));
    await transport.transfer({
      source: layout,
      destination: layout,
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
  });
});

describe("registering", () => {
  test("a step that fails leaves snapshot, NIXL and memory as they were, and uses no id", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    await a.register(systemSpec("first"));
    for (const step of ["create_reg_dlist", "reg_dlist_add_desc", "register_mem"]) {
      const [before, live] = [a.registry, standin("live")];
      const mapped = mappings();
      failNext(step);
      await refused("NIXL", a.register(systemSpec("refused", CONFIG)));
      expect(a.registry).toBe(before);
      expect(standin("live")).toBe(live);
      expect(mappings()).toBeLessThanOrEqual(mapped);
    }
    expect((await a.register(systemSpec("second"))).record.layoutId).toBe(1);
  });

  test("of several at once only the one that failed is missing, and ids follow the order of the calls", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    standin("fail register_mem 2 -2");
    const [first, second, third] = await Promise.allSettled(
      ["one", "two", "three"].map((name) => a.register(systemSpec(name))),
    );
    expect([first?.status, second?.status, third?.status]).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect(a.localLayouts.map(({ name, record }) => [name, record.layoutId])).toEqual([
      ["one", 0],
      ["three", 1],
    ]);
  });

  test("a bundle whose second memory fails gives the first one back", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    const live = standin("live");
    const huge = {
      config: { ...CONFIG, numBlocks: 2 ** 31, innerDim: 2 ** 12 },
      memory: { kind: "system" as const },
    };
    await refused(
      "OUT_OF_MEMORY",
      a.register({ components: { kv: { config: CONFIG, memory: { kind: "system" } }, other: huge } }),
    );
    expect(standin("live")).toBe(live);
    expect(a.localLayouts).toEqual([]);
  });

  test("a deregistration that NIXL refuses keeps the memory, for NIXL may still use it", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    const layout = await a.register(systemSpec("x"));
    const [bytes] = layout.bytes;
    failNext("deregister_mem");
    await refused("NIXL", layout.unregister());
    expect(a.localLayouts).toEqual([]);
    expect(bytes?.byteLength).toBe(0);
  });
});

describe("importing", () => {
  test("a step that fails leaves snapshot, peers and NIXL as they were, and a later import succeeds", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    await using b = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    await b.register(systemSpec("there", CONFIG));
    const here = await a.register(systemSpec("here", CONFIG));
    const bytes = await b.exportMetadata();
    const before = a.registry;
    failNext("load_remote_md");
    await refused("NIXL", a.importMetadata(bytes));
    expect(a.registry).toBe(before);
    expect(a.peers).toEqual([]);
    const peer = await a.importMetadata(bytes);
    await a.transfer({
      source: here,
      destination: peer.layout("there"),
      sourceBlocks: [0],
      destinationBlocks: [1],
    });
  });

  test("of two imports of one worker at once one succeeds, also when the first one fails later", async () => {
    await using a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    await using b = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    const bytes = await b.exportMetadata();
    const newer = await b.exportMetadata();
    standin("delay load_remote_md 20000");
    const both = await Promise.allSettled([a.importMetadata(bytes), a.importMetadata(newer)]);
    expect(both.map((one) => one.status)).toEqual(["fulfilled", "rejected"]);
    await refused("DUPLICATE_WORKER", Promise.reject((both[1] as PromiseRejectedResult).reason));
    await a.peers[0]?.forget();
    failNext("load_remote_md");
    const again = await Promise.allSettled([a.importMetadata(bytes), a.importMetadata(newer)]);
    expect(again.map((one) => one.status)).toEqual(["rejected", "rejected"]);
    expect((await a.importMetadata(newer)).workerId).toBe(b.workerId);
  });

  test("a transport that closes during an import ends it and keeps nothing", async () => {
    await using b = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    const a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
    const bytes = await b.exportMetadata();
    standin("delay load_remote_md 50000");
    const importing = a.importMetadata(bytes);
    const closing = a.close();
    await refused("CLOSED", importing);
    expect(await closing).toEqual({ layouts: [], stuck: 0, inDoubt: 0 });
  });
});

describe("updating", () => {
  test("metadata that NIXL refuses to add are loaded anew, and what failed twice leaves the peer as it was", async () => {
    await using made = await meet();
    const { a, b, here, peer } = made;
    const more = await b.register(systemSpec("more", CONFIG));
    failNext("load_remote_md");
    await peer.update(await b.exportMetadata());
    expect(standin("calls invalidate_remote_md")).toBe(1);
    await a.transfer({ ...push(made), destination: peer.layout("more") });
    expect(await more.checksums(IDS)).toEqual(await here.checksums(IDS));

    await b.register(systemSpec("third", CONFIG));
    const newest = await b.exportMetadata();
    standin("fail load_remote_md 0 -2");
    const before = a.registry;
    const update = peer.update(newest);
    await refused("NIXL", update);
    expect(peer.loss?.reason).toBeDefined(); // not even the old metadata could be loaded again
    expect(a.registry).not.toBe(before);
    standin("reset");
    const again = await a.importMetadata(newest);
    expect(again.layouts.map((layout) => layout.name)).toEqual(["there", "more", "third"]);
  });

  test("a second failure goes back to what NIXL knew, and traffic goes on", async () => {
    await using made = await meet();
    const { a, b, peer } = made;
    await b.register(systemSpec("more", CONFIG));
    const newer = await b.exportMetadata();
    const before = a.registry;
    const calls = standin("calls load_remote_md");
    standin("fail load_remote_md 1 -2");
    standin("delay invalidate_remote_md 30000");
    const update = peer.update(newer);
    await until("the first load failed", () => standin("calls load_remote_md") === calls + 1);
    standin("fail load_remote_md 1 -2");
    await refused("NIXL", update);
    expect(a.registry).toBe(before);
    expect(peer.loss).toBeUndefined();
    await a.transfer(push(made));
    await peer.update(newer);
    await a.transfer({ ...push(made), destination: peer.layout("more") });
  });

  test("a peer that is renewed from scratch lets transfers end first and keeps new ones waiting", async () => {
    await using made = await meet();
    const { a, b, peer, here } = made;
    const memory = new Uint8Array(new ArrayBuffer(here.config.totalBytes));
    const regions = [{ address: Number(ptr(memory)), size: memory.byteLength }];
    const spec = (name: string): LayoutSpec => ({
      name,
      config: CONFIG,
      arrangement: "fully-contiguous",
      memory: { kind: "external", storage: "system", regions },
    });
    const first = await b.register(spec("first"));
    await peer.update(await b.exportMetadata());
    const before = peer.layout("first");
    expect(standin("calls invalidate_remote_md")).toBe(0);
    // The same memory under another layout: NIXL's registration is another one.
    const leaving = first.unregister({ wait: true });
    const second = await b.register(spec("second"));
    const newer = await b.exportMetadata();
    standin("block post_xfer_req");
    const running = a.transfer(push(made));
    await until("the post hangs", () => standin("blocked post_xfer_req") > 0);
    const updating = peer.update(newer);
    await Bun.sleep(20);
    const waiting = a.transfer({ ...push(made), destinationBlocks: [4, 5, 6, 7] });
    expect(waiting.state).toBe("waiting");
    const stale = a.transfer({ ...push(made), destination: before });
    standin("unblock post_xfer_req");
    expect((await running).settlement).toBe("done");
    expect(standin("calls invalidate_remote_md")).toBe(0);
    await updating;
    expect(standin("calls invalidate_remote_md")).toBe(1);
    expect((await waiting).settlement).toBe("done");
    expect(await made.there.checksums([4, 5, 6, 7])).toEqual(await here.checksums(IDS));
    await refused("STALE_HANDLE", stale);
    await leaving;
    await a.transfer({ ...push(made), destination: peer.layout("second") });
    expect(await second.checksums(IDS)).toEqual(await here.checksums(IDS));
  });
});

describe("a transfer that fails", () => {
  for (const [step, settlement] of [
    ["create_xfer_dlist", "never-started"],
    ["xfer_dlist_add_desc", "never-started"],
    ["create_xfer_req", "never-started"],
    ["post_xfer_req", "in-doubt"],
  ] as const)
    test(`in ${step} is ${settlement}`, async () => {
      await using made = await meet();
      failNext(step);
      const transfer = made.a.transfer(push(made));
      const error = await refused("NIXL", transfer);
      expect(error.settlement).toBe(settlement);
      if (settlement === "never-started") {
        expect((await transfer.settled).settlement).toBe("never-started");
        expect(made.there.bytes[0]?.every((byte) => byte === 0)).toBe(true);
        await made.a.transfer(push(made));
        expect(await made.there.checksums(IDS)).toEqual(await made.here.checksums(IDS));
      } else {
        expect(made.a.metrics()).toBeDefined();
        await refused("QUARANTINED", made.a.transfer(push(made)));
        await made.a.transfer({ ...push(made), destinationBlocks: [4, 5, 6, 7] });
      }
    });

  test("after its notification could not be sent says so, though the data is there", async () => {
    await using made = await meet();
    failNext("gen_notif");
    const error = await made.a.transfer({ ...push(made), notify: "x" }).catch((reason: unknown) => reason);
    expect(error).toHaveProperty("settlement", "in-doubt");
    expect(await made.there.checksums(IDS)).toEqual(await made.here.checksums(IDS));
  });

  for (const direction of [push, pull])
    test(`because the peer died is PEER_LOST: ${direction.name}`, async () => {
      await using made = await meet();
      standin(`lose ${made.wire}`);
      const error = await refused("PEER_LOST", made.a.transfer(direction(made)));
      expect(error.settlement).toBe("in-doubt");
      await refused("PEER_LOST", made.a.notify(made.peer, "x"));
    });
});

describe("a transfer that hangs", () => {
  test("in its post settles in doubt within its deadline, holds its blocks, and the late end frees them", async () => {
    await using made = await meet();
    const { a, here } = made;
    const events: QuarantineEvent[] = [];
    a.on("quarantine", (event) => events.push(event));
    await made.there.fill(5);
    standin("block post_xfer_req");
    const transfer = a.transfer({ ...pull(made), deadlineMs: 50 });
    const started = performance.now();
    const error = await refused("TIMEOUT", transfer);
    expect(performance.now() - started).toBeLessThan(50 + 2_000);
    expect(error.settlement).toBe("in-doubt");
    let settled = false;
    void transfer.settled.then(() => (settled = true));
    expect(here.quarantinedBlocks().map(({ block }) => block)).toEqual(IDS);
    expect(events).toMatchObject([{ change: "begin", blocks: IDS, layout: here.handle }]);
    await refused("QUARANTINED", a.transfer({ ...push(made), destinationBlocks: [4, 5, 6, 7] }));
    await refused("QUARANTINED", here.write(0, new Uint8Array(here.config.blockBytes)));
    await refused("IN_USE", here.unregister());
    const leaving = here.unregister({ wait: true });
    await Bun.sleep(20);
    expect(settled).toBe(false);
    expect(a.localLayouts).toHaveLength(1);

    standin("unblock post_xfer_req");
    expect(await transfer.settled).toEqual({ settlement: "in-doubt", proof: "backend-ended" });
    expect(events[1]).toMatchObject({ change: "end", blocks: IDS });
    await leaving;
    expect(a.localLayouts).toEqual([]);
  });

  test("is one of many: others go on over a new lane", async () => {
    await using made = await meet();
    standin("block post_xfer_req");
    const stuck = made.a.transfer({ ...push(made), deadlineMs: 30 });
    await refused("TIMEOUT", stuck);
    standin("unblock post_xfer_req");
    await stuck.settled;
    for (let count = 0; count < 5; count++)
      await made.a.transfer({ ...push(made), destinationBlocks: [4, 5, 6, 7] });
    expect(await made.there.checksums([4, 5, 6, 7])).toEqual(await made.here.checksums(IDS));
  });

  test("is settled by cancelling, though the cancel itself cannot stop it", async () => {
    await using made = await meet();
    standin("mode stuck");
    const transfer = made.a.transfer(pull(made));
    await Bun.sleep(5);
    const reason = new Error("enough");
    const started = performance.now();
    transfer.cancel(reason);
    expect(await transfer.catch((error: unknown) => error)).toBe(reason);
    expect(performance.now() - started).toBeLessThan(2_000);
    expect(made.here.quarantinedBlocks()).toHaveLength(4);
    standin("mode inline");
    expect((await transfer.settled).proof).toBe("backend-ended");
    expect(made.here.quarantinedBlocks()).toEqual([]);
  });

  test("to a peer that is forgotten is PEER_LOST at once", async () => {
    await using made = await meet();
    standin("mode stuck");
    const transfer = made.a.transfer(push(made));
    await Bun.sleep(5);
    const forgetting = made.peer.forget();
    const error = await refused("PEER_LOST", transfer);
    expect(error.settlement).toBe("in-doubt");
    await forgetting;
    expect(made.peer.loss).toEqual({ reason: "forgotten" });
  });

  test("each of many that are given up at once has an error of its own", async () => {
    await using made = await meet();
    standin("mode stuck");
    const transfers = [0, 1, 2, 3].map((block) =>
      made.a.transfer({ ...push(made), sourceBlocks: [block], destinationBlocks: [block] }),
    );
    await Bun.sleep(5);
    void made.peer.forget();
    const errors = await Promise.all(transfers.map((transfer) => refused("PEER_LOST", transfer)));
    expect(new Set(errors).size).toBe(4);
    standin("mode inline");
  });

  test("does not keep the transport from closing, which says what it left", async () => {
    const made = await meet();
    standin("block post_xfer_req");
    const transfer = made.a.transfer({ ...pull(made), deadlineMs: 60_000 });
    await until("the post hangs", () => standin("blocked post_xfer_req") > 0);
    const started = performance.now();
    const report = await made.a.close();
    expect(performance.now() - started).toBeLessThan(12_000);
    expect(report.layouts).toEqual(["here"]);
    expect(report.inDoubt).toBe(1);
    expect(report.stuck).toBeGreaterThan(0);
    await refused("CLOSED", transfer);
    // Its memory is still there: the copy that comes late writes into it and nowhere else.
    standin("unblock post_xfer_req");
    await Bun.sleep(50);
    await made.b.close();
  }, 30_000);
});

describe("pending transfers", () => {
  test("are done when NIXL says so, and their progress is seen", async () => {
    await using made = await meet();
    standin("mode pending 50");
    const transfer = made.a.transfer({ ...push(made), notify: "done" });
    expect(transfer.state).toBe("running");
    expect((await transfer).bytes).toBe(made.here.config.blockBytes * 4);
    expect(await made.there.checksums(IDS)).toEqual(await made.here.checksums(IDS));
    for await (const { payload } of made.b.notifications({ signal: AbortSignal.timeout(5_000) })) {
      expect(new TextDecoder().decode(payload)).toBe("done");
      break;
    }
  });

  test("are all settled when they are very many", async () => {
    await using made = await meet();
    standin("mode pending 3");
    const config = { ...CONFIG, numBlocks: 256 };
    const many = await made.a.register(systemSpec("many", config));
    await many.fill({ random: 8 });
    const transfers = Array.from({ length: 256 }, (_unused, index) =>
      made.a.transfer({
        source: many,
        destination: made.remote,
        sourceBlocks: [index],
        destinationBlocks: [index % 8],
      }),
    );
    const results = await Promise.all(transfers);
    expect(results.every((result) => result.settlement === "done")).toBe(true);
  });
});

test("messages that nobody reads are dropped beyond a limit, with a warning, and hold nothing else up", async () => {
  await using made = await meet();
  const { a, b, peer } = made;
  const from = await b.importMetadata(await a.exportMetadata());
  const warnings: string[] = [];
  b.on("warning", ({ code }) => warnings.push(code));
  const payload = new Uint8Array(2 ** 20);
  for (let index = 0; index < 80; index++) {
    new DataView(payload.buffer).setUint32(0, index);
    await a.notify(peer, payload);
  }
  await until("the warning", () => warnings.includes("NOTIFICATIONS"));
  expect(warnings.filter((code) => code === "NOTIFICATIONS")).toHaveLength(1);
  // What the transports say to each other still arrives.
  await a.close();
  expect((await from.lost).reason).not.toBe("");
  const kept: number[] = [];
  for await (const message of b.notifications({ signal: AbortSignal.timeout(1_000) })) {
    kept.push(new DataView(message.payload.buffer).getUint32(0));
    if (kept.length === 63) break;
  }
  expect(kept).toEqual(Array.from({ length: 63 }, (_unused, index) => index));
});

test("nothing that NIXL made is left when everything is closed", async () => {
  const before = standin("live");
  const made = await meet();
  await made.a.transfer(push(made));
  await made.a.transfer({ ...pull(made), notify: "x" });
  await made.a.close();
  await made.b.close();
  await until("all is gone", () => standin("live") === before);
});

/** How many mappings this process has. */
function mappings(): number {
  return readFileSync("/proc/self/maps", "utf8").split("\n").length;
}
