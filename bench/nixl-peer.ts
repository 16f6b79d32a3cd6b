// The far side of a bench over NIXL: a process that registers memory and serves it until its parent lets go.
import { Transport } from "../index.ts";
import type { LayoutConfig, LayoutSpec, LocalLayout } from "../index.ts";

/** What a peer is asked. */
export type PeerCall =
  | { readonly do: "open"; readonly specs: readonly LayoutSpec[]; readonly alias: readonly AliasSpec[] }
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
export class BenchPeer implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #answers: ((answer: { readonly value?: unknown; readonly error?: string }) => void)[] = [];

  constructor(environment: Readonly<Record<string, string>> = {}) {
    this.#child = Bun.spawn([process.execPath, import.meta.path], {
      env: { ...process.env, ...environment },
      stdin: "ignore",
      stdout: 2,
      stderr: "inherit",
      serialization: "advanced",
      ipc: (message: { readonly value?: unknown; readonly error?: string }) =>
        this.#answers.shift()?.(message),
      onExit: () => {
        for (const answer of this.#answers.splice(0)) answer({ error: "the peer's process ended" });
      },
    });
  }

  async call<Value>(request: PeerCall): Promise<Value> {
    const { promise, resolve } = Promise.withResolvers<{
      readonly value?: unknown;
      readonly error?: string;
    }>();
    this.#answers.push(resolve);
    this.#child.send(request);
    const answer = await promise;
    if (answer.error !== undefined) throw new Error(`${request.do} at the peer: ${answer.error}`);
    return answer.value as Value;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5_000);
    await this.#child.exited;
    clearTimeout(timer);
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

function serve(): void {
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
        transport = await Transport.open({ workerId: WORKER, nixl: {}, cuda: false, neighbours: false });
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
  process.on("message", (call: PeerCall) => {
    answer(call).then(
      (value) => process.send?.({ value }),
      (error: unknown) => process.send?.({ error: error instanceof Error ? error.message : String(error) }),
    );
  });
  process.once("disconnect", () => {
    void (transport?.close() ?? Promise.resolve()).finally(() => process.exit(0));
  });
}

if (import.meta.main) serve();
