// Something is expected from a peer whose goodbye lies unread: it is taken in while `expect` runs, and ends the arrival.
import { expect, spyOn, test } from "bun:test";
import { Messenger } from "../../lib/runtime/messenger.ts";
import { refused } from "./helpers/refusal.ts";
import { simPair } from "./helpers/simulated.ts";

test("an arrival whose peer's goodbye is found while it is announced ends for the loss of the peer, and holds nothing", async () => {
  const pair = await simPair();
  const [layout] = pair.a.transport.localLayouts;
  if (layout === undefined) throw new Error("a has a layout");
  const wait = Messenger.prototype.wait;
  let unread = true;
  using _patched = spyOn(Messenger.prototype, "wait").mockImplementation(function (
    this: Messenger,
    on: boolean,
  ): void {
    wait.call(this, on);
    if (!on || !unread) return;
    unread = false;
    pair.world.act(() => void pair.b.transport.close());
    pair.pass(100);
  });
  const arrival = pair.a.transport.expect({
    layout,
    blocks: [1],
    from: pair.peers.b,
    tag: "it",
    deadlineMs: 300,
  });
  expect(unread).toBe(false);
  await pair.settle(refused("PEER_LOST", arrival));
  // Nothing of it stays: no timer, and the layout can go.
  pair.pass(1_000);
  await pair.settle(arrival.settled);
  await pair.settle(layout.unregister());
  expect(pair.a.transport.localLayouts).toEqual([]);
});
