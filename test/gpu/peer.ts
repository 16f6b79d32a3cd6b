// The other process of the NIXL cases: layouts of its own on GPU and host, told what to do over the channel.
import { Transport, type LocalLayout, type Peer } from "../../index.ts";
import { specOf } from "../cuda/harness.ts";

/** What the parent asks for; every call is answered once. */
export type Call =
  | { readonly id: number; readonly do: "open"; readonly workerId: number; readonly device: number }
  | { readonly id: number; readonly do: "import"; readonly bytes: Uint8Array }
  | { readonly id: number; readonly do: "fill"; readonly name: string; readonly seed: number }
  | {
      readonly id: number;
      readonly do: "checksums";
      readonly name: string;
      readonly blocks: readonly number[];
    }
  | { readonly id: number; readonly do: "close" };

/** Blocks of each layout. */
export const PEER_BLOCKS = 16;
export const PEER_KINDS = ["device", "pinned", "system"] as const;

let transport: Transport | undefined;
const layouts: Map<string, LocalLayout> = new Map();
let peer: Peer | undefined;

async function answer(call: Call): Promise<unknown> {
  switch (call.do) {
    case "open": {
      transport = await Transport.open({
        workerId: call.workerId,
        neighbours: false,
        nixl: { backends: { UCX: {} } },
        cuda: { device: call.device },
        capabilities: { gpuRdma: true },
      });
      for (const kind of PEER_KINDS)
        for (const arrangement of ["FC", "LS"] as const) {
          const name = `${kind} ${arrangement}`;
          const spec = specOf(kind, arrangement, { numBlocks: PEER_BLOCKS });
          layouts.set(name, await transport.register({ ...spec, name }));
        }
      return await transport.exportMetadata();
    }
    case "import":
      peer = await transport?.importMetadata(call.bytes);
      return null;
    case "fill":
      await layouts.get(call.name)?.fill({ random: call.seed });
      return null;
    case "checksums":
      return await layouts.get(call.name)?.checksums(call.blocks);
    case "close":
      await peer?.forget();
      return await transport?.close();
  }
}

if (import.meta.main) {
  process.on("message", (call: Call) => {
    answer(call).then(
      (value) => process.send?.({ id: call.id, value }),
      (error: unknown) =>
        process.send?.({
          id: call.id,
          error: error instanceof Error ? `${error.name}: ${error.message}` : String(error),
        }),
    );
  });
}
