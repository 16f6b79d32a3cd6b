// Messages are taken in the order in which they came, whoever asks for more of them meanwhile.
import { expect, test } from "bun:test";
import { CONTROL, writeControl } from "../../lib/runtime/control-message.ts";
import { Messenger } from "../../lib/runtime/messenger.ts";
import type { NotificationQueue } from "../../lib/runtime/notifications.ts";
import type { PeerBook } from "../../lib/runtime/peer-book.ts";
import type { Session } from "../../lib/runtime/session.ts";
import type { TransportState } from "../../lib/runtime/state.ts";

test("a message whose taker waits for more is not overtaken by what arrived behind it", () => {
  const ends = { sender: "peer", receiver: "here" };
  const message = (sequence: number) => ({
    from: ends.sender,
    payload: writeControl(CONTROL.staging, sequence, Uint8Array.of(sequence), ends, []),
  });
  const arriving = [[message(1), message(2)], [message(3)], [message(4), message(5)]];
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
