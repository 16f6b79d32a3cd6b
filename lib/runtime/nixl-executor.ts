import { KvferryError } from "../core/errors.ts";
import type { Hop } from "../core/plan.ts";
import type { NixlAgent } from "../native/agent.ts";
import { cString } from "../native/c-string.ts";
import type { NativeContext } from "../native/context.ts";
import { KVF_NIXL_READ, KVF_NIXL_WRITE } from "../native/symbols.ts";
import type { Executor, RunningHop } from "./executor.ts";
import { hopEncoder } from "./hop-encoder.ts";
import { outcomeOf, runningJob } from "./job-hop.ts";

const NOTHING: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(8));

/** Runs hops to and from peers through NIXL, in pieces, on the library's lanes. */
export function nixlExecutor(context: NativeContext, agent: NixlAgent): Executor {
  const encode = hopEncoder();
  let lastPeer = "";
  let lastName = cString("");
  // Many transfers in a row go to one peer.
  const nameOf = (peer: string): Uint8Array<ArrayBuffer> => {
    if (peer !== lastPeer) [lastPeer, lastName] = [peer, cString(peer)];
    return lastName;
  };
  return {
    start(hop: Hop, { notification, watch }, done): RunningHop {
      const peer = hop.agent;
      if (peer === null) {
        throw new KvferryError(
          "NO_ROUTE",
          "transfer",
          "a NIXL hop names no peer",
          "This is a defect: please report the request.",
          { method: hop.method },
        );
      }
      const encoded = encode(hop.programs);
      const payload = notification === null ? NOTHING : ownBytes(notification);
      const slot = context.submit(
        "transfer",
        (free) =>
          context.library.kvf_nixl_transfer_job(
            context.address,
            free,
            agent.address,
            nameOf(peer),
            hop.op === "read" ? KVF_NIXL_READ : KVF_NIXL_WRITE,
            encoded,
            encoded.length,
            0,
            0,
            payload,
            notification?.byteLength ?? 0,
            notification === null ? 0 : 1,
          ),
        (completion, ended) => done(outcomeOf(context, completion, ended)),
        watch,
      );
      return runningJob(context, slot, () => agent.abandon(slot));
    },
  };
}

/** A call must be given a buffer whose storage cannot move. */
function ownBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(new ArrayBuffer(Math.max(8, bytes.byteLength)));
  copy.set(bytes);
  return copy;
}
