// Messages are taken in the order in which they came, whoever asks for more of them meanwhile; those that leave after data may
// be overtaken, but none is taken twice.
import { expect, test } from "bun:test";
import { CONTROL, writeControl } from "../../lib/runtime/control-message.ts";
import { Messenger } from "../../lib/runtime/messenger.ts";
import type { NotificationQueue } from "../../lib/runtime/notifications.ts";
import type { PeerBook } from "../../lib/runtime/peer-book.ts";
import type { Session } from "../../lib/runtime/session.ts";
import type { TransportState } from "../../lib/runtime/state.ts";

const ends = { sender: "peer", receiver: "here" };
const message = (sequence: number, type: number = CONTROL.staging) => ({
  from: ends.sender,
  payload: writeControl(type, sequence, Uint8Array.of(sequence), ends, []),
});

/** A messenger to which these batches come, one after the other. */
function receiving(arriving: ReturnType<typeof message>[][]) {
  const context: { isOpen: boolean; holdProcess(): void; onNotifications?: () => void } = {
    isOpen: true,
    holdProcess: () => undefined,
  };
  const session = {
    context,
    agent: { takeNotifications: () => arriving.shift() ?? [], listen: () => undefined },
    neighbours: null,
    wireName: ends.receiver,
    options: { secrets: [] },
  };
  const messenger = new Messenger(
    session as unknown as Session, // what receiving needs of it
    {} as TransportState,
    {} as PeerBook,
    {} as NotificationQueue,
  );
  return { context, messenger };
}

test("a message whose taker waits for more is not overtaken by what arrived behind it", () => {
  const { context, messenger } = receiving([
    [message(1), message(2)],
    [message(3)],
    [message(4), message(5)],
  ]);
  const taken: number[] = [];
  let dropped = 0;
  messenger.onDropped = () => dropped++;
  messenger.onControl(CONTROL.staging, (_from, body) => {
    taken.push(body[0] ?? -1);
    messenger.wait(true);
  });
  context.onNotifications?.();
  expect(taken).toEqual([1, 2, 3, 4, 5]);
  expect(dropped).toBe(0);
});

test("a word that leaves with data is taken once, whenever it comes; others that come late are replays", () => {
  const landed = (sequence: number) => message(sequence, CONTROL.landed);
  const { context, messenger } = receiving([
    [message(5)],
    [landed(2), message(6), landed(3)],
    [landed(3), message(5), landed(2), message(4)],
    [landed(7), message(7)],
  ]);
  const taken: [number, number][] = [];
  let dropped = 0;
  messenger.onDropped = () => dropped++;
  for (const type of [CONTROL.staging, CONTROL.landed])
    messenger.onControl(type, (_from, body) => taken.push([type, body[0] ?? -1]));
  for (let batch = 0; batch < 4; batch++) context.onNotifications?.();
  expect(taken).toEqual([
    [CONTROL.staging, 5],
    [CONTROL.landed, 2],
    // Of one batch those sent first are taken first.
    [CONTROL.landed, 3],
    [CONTROL.staging, 6],
    [CONTROL.landed, 7],
    [CONTROL.staging, 7],
  ]);
  expect(dropped).toBe(4);
});

test("before a message of another kind leaves, whoever gathers words is told", async () => {
  const { messenger } = receiving([]);
  const told: string[] = [];
  messenger.onOther = (wireName) => told.push(wireName);
  const sent = [CONTROL.staging, CONTROL.released].map((type) => messenger.controlTo("peer", type));
  await Promise.allSettled(sent);
  expect(told).toEqual(["peer"]);
});
