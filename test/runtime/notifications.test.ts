// Messages: none lost, none twice, in order, whoever reads them and whenever.
import { describe, expect, test } from "bun:test";
import type { Notification, QuarantineEvent } from "../../index.ts";
import { CONTROL, writeControl } from "../../lib/runtime/control-message.ts";
import { inSendingOrder, Messenger } from "../../lib/runtime/messenger.ts";
import { NotificationQueue } from "../../lib/runtime/notifications.ts";
import { refused } from "./helpers/refusal.ts";
import { SMALL, nixlTest, openPair, pairTest, systemSpec, until } from "./helpers/transports.ts";

const text = ({ payload }: Notification): string => new TextDecoder().decode(payload);
const made = (index: number): Notification => ({ from: "x", payload: new TextEncoder().encode(`${index}`) });

test("control messages of a batch are sorted by number in their own places, users' messages stay where they are", () => {
  const ends = { sender: "a", receiver: "b" };
  const control = (number: number) => ({
    payload: writeControl(CONTROL.alive, number, new Uint8Array(1), ends, []),
  });
  const user = { payload: new TextEncoder().encode("user") };
  const [one, two, nine, short] = [
    control(1),
    control(2),
    control(9),
    { payload: control(3).payload.subarray(0, 9) },
  ];
  expect(inSendingOrder([nine, user, one, two])).toEqual([one, user, two, nine]);
  expect(inSendingOrder([user, nine])).toEqual([user, nine]);
  expect(inSendingOrder([two, short, one])).toEqual([short, one, two]);
});

test("a message that makes somebody wait for more does not let the next batch overtake its own", () => {
  const ends = { sender: "a", receiver: "b" };
  const message = (number: number) => ({
    from: "a",
    payload: writeControl(CONTROL.staging, number, Uint8Array.of(number), ends, []),
  });
  const batches = [[1, 2, 3], [4, 5], [6]].map((numbers) => numbers.map(message));
  const context = { isOpen: true, holdProcess: () => undefined, onNotifications: (): void => undefined };
  const agent = { takeNotifications: () => batches.shift() ?? [], listen: () => undefined };
  // No more of a session than what receiving takes.
  const session = { context, agent, neighbours: null, wireName: "b", options: { secrets: [] } };
  const queue = new NotificationQueue(() => undefined);
  const messenger = new Messenger(session as never, {} as never, {} as never, queue);
  const taken: number[] = [];
  messenger.onControl(CONTROL.staging, (_from, body) => {
    taken.push(body[0] ?? 0);
    messenger.wait(true);
  });
  context.onNotifications();
  expect(taken).toEqual([1, 2, 3, 4, 5, 6]);
});

describe("the queue", () => {
  test("gives each message to exactly one of the iterators, in order", async () => {
    const waits: boolean[] = [];
    const queue = new NotificationQueue((on) => waits.push(on));
    const got: string[][] = [[], []];
    const reading = got.map(async (into) => {
      for await (const message of queue.iterate({})) into.push(text(message));
    });
    for (let index = 0; index < 1000; index++) {
      queue.push(made(index));
      if (index % 7 === 0) await Promise.resolve();
      if (index % 97 === 0) await Bun.sleep(0);
    }
    await until("all were read", () => (got[0]?.length ?? 0) + (got[1]?.length ?? 0) === 1000);
    queue.close();
    await Promise.all(reading);
    const all = got.flat().map(Number);
    expect(all.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_unused, index) => index));
    for (const one of got) expect(one.map(Number)).toEqual(one.map(Number).toSorted((a, b) => a - b));
    expect(waits.at(-1)).toBe(false);
    expect(waits.filter((on) => on).length).toBe(waits.filter((on) => !on).length);
  });

  test("keeps messages while nobody reads, and after an iterator was aborted or left", async () => {
    const queue = new NotificationQueue(() => undefined);
    for (let index = 0; index < 5; index++) queue.push(made(index));
    const first = queue.iterate({});
    expect(text((await first.next()).value as Notification)).toBe("0");
    await first.return();
    const controller = new AbortController();
    const seen: string[] = [];
    for await (const message of queue.iterate({ signal: controller.signal })) {
      seen.push(text(message));
      if (seen.length === 2) controller.abort();
    }
    expect(seen).toEqual(["1", "2"]);
    const waiting = new AbortController();
    const rest: string[] = [];
    const reading = (async () => {
      for await (const message of queue.iterate({ signal: waiting.signal })) rest.push(text(message));
    })();
    await Bun.sleep(1);
    waiting.abort();
    await reading;
    queue.push(made(5));
    expect(rest).toEqual(["3", "4"]);
    expect(text((await queue.iterate({}).next()).value as Notification)).toBe("5");
    for await (const message of queue.iterate({ signal: AbortSignal.abort() }))
      throw new Error(text(message));
  });

  test("lets somebody take a message out of turn, and only that one", async () => {
    const queue = new NotificationQueue(() => undefined);
    for (let index = 0; index < 4; index++) queue.push(made(index));
    expect(text(queue.takeMatching((message) => text(message) === "2") as Notification)).toBe("2");
    expect(queue.takeMatching((message) => text(message) === "2")).toBeUndefined();
    const stop = queue.intercept((message) => text(message) === "5");
    queue.push(made(4));
    queue.push(made(5));
    stop();
    queue.push(made(5));
    const left: string[] = [];
    for await (const message of queue.iterate({})) {
      left.push(text(message));
      if (left.length === 5) break;
    }
    expect(left).toEqual(["0", "1", "3", "4", "5"]);
  });

  test("ends every iterator when it closes", async () => {
    const queue = new NotificationQueue(() => undefined);
    const ends = [queue.iterate({}).next(), queue.iterate({}).next()];
    await Bun.sleep(0);
    queue.close();
    for (const end of await Promise.all(ends)) expect(end.done).toBe(true);
    expect((await queue.iterate({}).next()).done).toBe(true);
  });
});

describe("between two transports", () => {
  pairTest(
    "nothing is lost and the order is kept, before and after somebody begins to read",
    async (open) => {
      await using pair = await open();
      const { a, b } = pair;
      const { b: there } = await pair.meetBoth();
      const count = 500;
      const sending = (async () => {
        for (let index = 0; index < count; index++) await a.notify(there, `${index}`);
      })();
      await Bun.sleep(5);
      const got: number[] = [];
      for await (const message of b.notifications({ signal: AbortSignal.timeout(20_000) })) {
        expect(message.from).toBe(a.agentName);
        got.push(Number(text(message)));
        if (got.length === count) break;
      }
      await sending;
      expect(got).toEqual(Array.from({ length: count }, (_unused, index) => index));
    },
  );

  pairTest("payloads of every size and content arrive as they were", async (open) => {
    await using pair = await open();
    const { a, b } = pair;
    const { b: there } = await pair.meetBoth();
    const payloads = [0, 1, 3, 64, 4095, 70_000].map((length) =>
      Uint8Array.from({ length }, (_unused, index) => (index * 7 + length) & 255),
    );
    payloads.push(new TextEncoder().encode("\0kvf"), new Uint8Array([0, 0, 0]));
    for (const payload of payloads) await a.notify(there, payload);
    const got: string[] = [];
    for await (const { payload } of b.notifications({ signal: AbortSignal.timeout(20_000) })) {
      got.push(payload.toHex());
      if (got.length === payloads.length) break;
    }
    expect(got).toEqual(payloads.map((payload) => payload.toHex()));
  });

  pairTest("what is neither bytes nor text is refused", async (open) => {
    await using pair = await open();
    const { b: there } = await pair.meetBoth();
    for (const nonsense of [7, null, undefined, {}] as never[])
      await refused("INVALID_CONFIG", pair.a.notify(there, nonsense));
  });
});

describe("expecting a push", () => {
  pairTest("is done when the tag comes, early or late, and takes it out of the messages", async (open) => {
    await using pair = await open();
    const { a, b } = pair;
    const here = await a.register(systemSpec("here"));
    const target = await b.register(systemSpec("target"));
    await here.fill({ random: 4 });
    const { a: from, b: there } = await pair.meetBoth();
    const push = (notify: string): PromiseLike<unknown> =>
      a.transfer({
        source: here,
        destination: there.layout("target"),
        sourceBlocks: [0, 1],
        destinationBlocks: [2, 3],
        notify,
      });
    const late = b.expect({ layout: target, blocks: [2, 3], from, tag: "late" });
    await refused("IN_USE", target.unregister());
    await push("late");
    expect(await late).toMatchObject({ settlement: "done", from: a.agentName });
    expect(await late.settled).toEqual({ settlement: "done", proof: "completed" });
    expect(await target.checksums([2, 3])).toEqual(await here.checksums([0, 1]));

    await push("other");
    await push("early");
    await Bun.sleep(50);
    expect(await b.expect({ layout: target, blocks: [2, 3], from, tag: "early" })).toMatchObject({
      settlement: "done",
    });
    const next = await b.notifications({ signal: AbortSignal.timeout(5_000) }).next();
    expect(text(next.value as Notification)).toBe("other");
    await target.unregister();
  });

  nixlTest(
    "that does not come in time, or whose peer goes, quarantines the blocks until there is proof",
    async () => {
      await using pair = await openPair();
      const { a, b } = pair;
      await a.register(systemSpec("here"));
      const target = await b.register(systemSpec("target"));
      const { a: from } = await pair.meetBoth();
      const events: QuarantineEvent[] = [];
      b.on("quarantine", (event) => events.push(event));
      const slow = b.expect({ layout: target, blocks: [1], from, tag: "x", deadlineMs: 20 });
      // In the very turn in which it fails nobody can have proven anything.
      const inDoubt = slow.then(
        () => [],
        () => target.quarantinedBlocks().map(({ block }) => block),
      );
      const error = await refused("TIMEOUT", slow);
      expect(error.settlement).toBe("in-doubt");
      expect(await inDoubt).toEqual([1]);
      const left = b.expect({ layout: target, blocks: Uint32Array.of(2), from, tag: "x" });
      await from.forget();
      await refused("PEER_LOST", left);
      await b.transfer({ source: target, destination: target, sourceBlocks: [0], destinationBlocks: [3] });
      expect((await b.close()).stuck).toBe(0);
      expect((await slow.settled).settlement).toBe("in-doubt");
      expect(events.filter(({ change }) => change === "begin").map(({ blocks }) => [...blocks])).toEqual([
        [1],
        [2],
      ]);
    },
  );

  pairTest("of what cannot be is refused at once and leases nothing", async (open) => {
    await using pair = await open();
    const { b } = pair;
    const target = await b.register(systemSpec("target"));
    const { a: from } = await pair.meetBoth();
    const ask =
      (more: object): (() => unknown) =>
      () =>
        b.expect({ layout: target, blocks: [0], from, tag: "x", ...more });
    for (const blocks of [[4], [-1], [0.5], [2 ** 32], ["0"], { default: [9] }])
      await refused("BLOCK_OUT_OF_RANGE", ask({ blocks }));
    await refused("DUPLICATE_BLOCK", ask({ blocks: [1, 1] }));
    await refused("LENGTH_MISMATCH", ask({ blocks: { other: [0] } }));
    await refused("INVALID_CONFIG", ask({ deadlineMs: 0 }));
    await refused("INVALID_CONFIG", ask({ tag: 7 }));
    await target.unregister();
    await refused("STALE_HANDLE", ask({}));
    expect(SMALL.numBlocks).toBe(4);
  });
});
