// The far side of a bench between neighbours: a process that registers memory and hands it out until its parent lets go.
import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, OpenOptions, Peer } from "../index.ts";

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
export class FarProcess implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #answers: ((answer: { readonly value?: unknown; readonly error?: string }) => void)[] = [];

  constructor() {
    this.#child = Bun.spawn([process.execPath, import.meta.path], {
      stdin: "ignore",
      stdout: 2,
      stderr: "inherit",
      serialization: "advanced",
      ipc: (message: { readonly value?: unknown; readonly error?: string }) =>
        this.#answers.shift()?.(message),
      onExit: () => {
        for (const answer of this.#answers.splice(0)) answer({ error: "the process ended" });
      },
    });
  }

  async call<Value>(request: FarCall): Promise<Value> {
    const { promise, resolve } = Promise.withResolvers<{
      readonly value?: unknown;
      readonly error?: string;
    }>();
    this.#answers.push(resolve);
    this.#child.send(request);
    const answer = await promise;
    if (answer.error !== undefined) throw new Error(`${request.do} at the neighbour: ${answer.error}`);
    return answer.value as Value; // as `serve` answers each call
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5_000);
    await this.#child.exited;
    clearTimeout(timer);
  }
}

function serve(): void {
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
  process.on("message", (call: FarCall) => {
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
