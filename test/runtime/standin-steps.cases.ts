// Run by standin.test.ts in a process of its own: the library of KVFERRY_NIXL_LIBRARY is the stand-in.
import { readFileSync } from "node:fs";
import { ptr } from "bun:ffi";
import { afterEach, describe, expect, test } from "bun:test";
import { Transport, type LayoutSpec } from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { CONFIG, failNext, IDS, meet, OPTIONS, push, standin } from "./helpers/standin.ts";
import { freshWorker, systemSpec, until } from "./helpers/transports.ts";

afterEach(() => void standin("reset"));

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
    const loads = standin("calls load_remote_md");
    standin("delay load_remote_md 20000");
    const both = await Promise.allSettled([a.importMetadata(bytes), a.importMetadata(newer)]);
    expect(both.map((one) => one.status)).toEqual(["fulfilled", "rejected"]);
    await refused("DUPLICATE_WORKER", Promise.reject((both[1] as PromiseRejectedResult).reason));
    // b loads a as well, to answer it: it must not be its call that fails.
    await until("b has loaded a", () => standin("calls load_remote_md") === loads + 2);
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

describe("closing", () => {
  test("lets go of peers without making NIXL connect with them once more", async () => {
    await using made = await meet();
    const { a, b } = made;
    await b.importMetadata(await a.exportMetadata());
    await a.transfer(push(made));
    const loads = standin("calls load_remote_md");
    await a.close();
    expect(standin("calls load_remote_md")).toBe(loads);
  });
});

describe("updating", () => {
  test("metadata that NIXL refuses to add are loaded anew, and what failed twice leaves the peer as it was", async () => {
    await using made = await meet();
    const { a, b, here, peer } = made;
    const more = await b.register(systemSpec("more", CONFIG));
    failNext("load_remote_md");
    await peer.update(await b.exportMetadata());
    // Once to go back to what it knew while transfers end, and once before it is given all of the new.
    expect(standin("calls invalidate_remote_md")).toBe(2);
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
    await until("NIXL is back at what it knew", () => standin("calls load_remote_md") === calls + 2);
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

function mappings(): number {
  return readFileSync("/proc/self/maps", "utf8").split("\n").length;
}
