// The far side of a bench over NIXL: a process that registers memory and serves it until its parent lets go.
import { Transport } from "../index.ts";
import type { LayoutConfig, LayoutSpec, LocalLayout, OpenOptions } from "../index.ts";
import { FarProcess, serve } from "./far-process.ts";

/** What a peer is asked. */
export type PeerCall =
  | {
      readonly do: "open";
      readonly specs: readonly LayoutSpec[];
      readonly alias: readonly AliasSpec[];
      /** With the CUDA driver, and GPU memory moved by NIXL or through staging memory; without it where left out. */
      readonly gpu?: "nixl" | "staged";
      readonly staging?: OpenOptions["staging"];
      readonly nixl?: OpenOptions["nixl"];
    }
  | { readonly do: "import"; readonly bytes: Uint8Array }
  | { readonly do: "fill"; readonly layout: string; readonly seed: number }
  | { readonly do: "checksums"; readonly layout: string; readonly blocks: readonly number[] };

/** A layout over the first region of another one. */
export interface AliasSpec {
  readonly name: string;
  readonly of: string;
  readonly config: LayoutConfig;
}

const WORKER = 2n;

/** A peer's process, from its parent. */
export class BenchPeer extends FarProcess<PeerCall> {
  constructor(environment: Readonly<Record<string, string>> = {}) {
    super(import.meta.path, environment);
  }
}

/** Registers layouts, and others over the same memory. */
export async function registerAll(
  transport: Transport,
  specs: readonly LayoutSpec[],
  alias: readonly AliasSpec[],
): Promise<Map<string, LocalLayout>> {
  const layouts = new Map<string, LocalLayout>();
  for (const spec of specs) {
    const layout = await transport.register(spec);
    layouts.set(layout.name, layout);
  }
  for (const { name, of, config } of alias) {
    const regions = Object.values(layouts.get(of)?.components ?? {})[0]?.regions ?? [];
    layouts.set(
      name,
      await transport.register({ name, config, memory: { kind: "external", storage: "system", regions } }),
    );
  }
  return layouts;
}

function answerCalls(): void {
  let transport: Transport | undefined;
  let layouts = new Map<string, LocalLayout>();
  const named = (name: string): LocalLayout => {
    const layout = layouts.get(name);
    if (layout === undefined) throw new Error(`no layout ${name}`);
    return layout;
  };
  const answer = async (call: PeerCall): Promise<unknown> => {
    switch (call.do) {
      case "open":
        transport = await Transport.open({
          workerId: WORKER,
          nixl: call.nixl ?? {},
          neighbours: false,
          ...(call.staging === undefined ? {} : { staging: call.staging }),
          ...(call.gpu === undefined ? { cuda: false } : { capabilities: { gpuRdma: call.gpu === "nixl" } }),
        });
        layouts = await registerAll(transport, call.specs, call.alias);
        return await transport.exportMetadata();
      case "import":
        await transport?.importMetadata(call.bytes);
        return null;
      case "fill":
        await named(call.layout).fill({ random: call.seed });
        return null;
      case "checksums":
        return await named(call.layout).checksums(call.blocks);
    }
  };
  serve(answer, () => transport?.close() ?? Promise.resolve());
}

if (import.meta.main) answerCalls();
