// Run by standin.test.ts in a process of its own: the library of KVFERRY_NIXL_LIBRARY is the stand-in.
import { afterEach, describe, expect, test } from "bun:test";
import type { QuarantineEvent } from "../../index.ts";
import { refused } from "./helpers/refusal.ts";
import { CONFIG, failNext, IDS, meet, pull, push, standin } from "./helpers/standin.ts";
import { systemSpec, until } from "./helpers/transports.ts";

afterEach(() => void standin("reset"));

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

test("what transports say to each other is taken in order when NIXL hands over a batch in another one", async () => {
  await using made = await meet();
  const { a, b, here, peer } = made;
  const disk = await b.register({ ...systemSpec("disk", CONFIG), memory: { kind: "disk" } });
  await peer.update(await b.exportMetadata());
  await b.importMetadata(await a.exportMetadata());
  standin("disorder on");
  // What arrives meanwhile is fetched together.
  standin("delay get_notifs 20000");
  const all = Array.from({ length: CONFIG.numBlocks }, (_unused, block) => block);
  await Promise.all(
    all.flatMap((block) =>
      [0, 1, 2].map(() =>
        a.transfer({
          source: here,
          sourceBlocks: [block],
          destination: peer.layout("disk"),
          destinationBlocks: [block],
          deadlineMs: 10_000,
        }),
      ),
    ),
  );
  expect(await disk.checksums(all)).toEqual(await here.checksums(all));
}, 20_000);

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
