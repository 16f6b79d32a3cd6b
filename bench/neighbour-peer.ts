// The far side of a bench between neighbours: a process that registers memory and hands it out until its parent lets go.
import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, OpenOptions, Peer } from "../index.ts";
import { FarProcess, serve } from "./far-process.ts";

/** What the process is asked. */
export type FarCall =
  | {
      readonly do: "open";
      readonly options: Partial<OpenOptions>;
      readonly specs: readonly LayoutSpec[];
    }
  | { readonly do: "fill"; readonly layout: string; readonly seed: number }
  | { readonly do: "checksums"; readonly layout: string; readonly blocks: readonly number[] }
  /** Imports a package and sends every message back from now on. */
  | { readonly do: "echo"; readonly bytes: Uint8Array };

const WORKER = 2n;

/** The process, from its parent. */
export class NeighbourPeer extends FarProcess<FarCall> {
  constructor() {
    super(import.meta.path);
  }
}

function answerCalls(): void {
  let transport: Transport | undefined;
  const layouts = new Map<string, LocalLayout>();
  const named = (name: string): LocalLayout => {
    const layout = layouts.get(name);
    if (layout === undefined) throw new Error(`no layout ${name}`);
    return layout;
  };
  const echo = async (peer: Peer): Promise<void> => {
    for await (const { payload } of transport?.notifications() ?? []) await transport?.notify(peer, payload);
  };
  const answer = async (call: FarCall): Promise<unknown> => {
    switch (call.do) {
      case "open":
        transport = await Transport.open({ workerId: WORKER, ...call.options });
        for (const spec of call.specs) {
          const layout = await transport.register(spec);
          layouts.set(layout.name, layout);
        }
        return await transport.exportMetadata();
      case "fill":
        await named(call.layout).fill({ random: call.seed });
        return null;
      case "checksums":
        return await named(call.layout).checksums(call.blocks);
      case "echo": {
        const peer = await transport?.importMetadata(call.bytes);
        if (peer !== undefined) void echo(peer);
        return null;
      }
    }
  };
  serve(answer, () => transport?.close() ?? Promise.resolve());
}

if (import.meta.main) answerCalls();
