import { KvferryError } from "../core/errors.ts";
import { getLocal } from "../core/registry-queries.ts";
import { CONTROL } from "./control-message.ts";
import { SumClient, type SendSums } from "./sum-client.ts";
import { SumServer } from "./sum-server.ts";
import { readSumWord } from "./sum-words.ts";
import { notThere, type Marks, type SumsParts } from "./sums.ts";

/** Asks peers for sums, and answers them, in control messages. */
export function openPeerSums(parts: SumsParts, marks: Marks): void {
  const { session, state, messenger, peers, integrity, fences } = parts;
  const { clock, options } = session;
  const watched = new WeakSet<object>();
  const send: SendSums = async (wireName, body) => {
    const peer = peers.byWireName(wireName);
    if (peer !== undefined && !watched.has(peer)) {
      watched.add(peer);
      void peer.lost.then(() => {
        client.lost(wireName);
        server.lost(wireName);
      });
    }
    if (!(await fences.reach.ensure(wireName))) throw notThere(wireName);
    await messenger.controlTo(wireName, CONTROL.sums, body);
  };
  const client = new SumClient(send, clock, (on) => messenger.wait(on), options.deadlineMillis);
  const server = new SumServer({
    send,
    waiting: (on) => messenger.wait(on),
    layout: (handle) => getLocal(state.snapshot, handle, "transfer"),
    demandGood: (layout, group, blocks) => integrity.demandGood(layout, () => new Map([[group, blocks]])),
    sums: (layout, component, shape, side, count) =>
      integrity.comparison.sums(layout, component, shape, side, count),
  });
  integrity.comparison.peers = {
    unable: (name) => (peers.byWireName(name)?.understandsControl === true ? null : foreign(name)),
    ready: async (name, layout, blocks) => {
      await fences.greetings.introduced(name);
      await client.ready(name, layout, blocks);
    },
    sums: (name, layout, component, shape, side, count) =>
      client.sums(name, layout, component, shape, side, count),
    tell: (layout, group, ids, bad) => marks.tellOwner(layout, group, ids, bad),
  };
  messenger.onControl(CONTROL.sums, (from, body) => {
    const word = readSumWord(body);
    if (word === null) return;
    if (word.word === "sums" || word.word === "refused") client.answer(from, word);
    else if (word.word === "mark") marks.take(from, word);
    else server.take(from, word);
  });
}

function foreign(agent: string): KvferryError {
  return new KvferryError(
    "NO_ROUTE",
    "transfer",
    `checksum: true needs the sums of peer ${agent}, which is no kvferry transport`,
    "Leave checksum out, or compare the blocks at both workers by other means.",
    { agent },
  );
}
