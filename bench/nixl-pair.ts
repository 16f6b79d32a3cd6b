// Two processes that know each other over NIXL, each with layouts.
import { Transport } from "../index.ts";
import type { LayoutSpec, LocalLayout, OpenOptions, Peer } from "../index.ts";
import { BenchPeer, registerAll } from "./nixl-peer.ts";

/** What both ends of a pair are opened with. */
export interface PairSpecs {
  /** Of this end. */
  readonly options: Partial<OpenOptions>;
  readonly near: readonly LayoutSpec[];
  readonly far: readonly LayoutSpec[];
  /** How the far end uses its GPU; left out: it has none. */
  readonly gpu?: "nixl" | "staged";
  /** The far end's staging memory, where not as much as by default. */
  readonly staging?: OpenOptions["staging"];
  /** The far end's use of NIXL, where not as by default. */
  readonly nixl?: OpenOptions["nixl"];
  /** The far end's memory may be one that this machine has not, as well as this end's. */
  readonly farMayLack?: boolean;
}

/** Both ends of a bench over NIXL, no neighbour mapping: this process, and another one. */
export class BenchPair implements AsyncDisposable {
  readonly transport: Transport;
  readonly far: BenchPeer;
  /** The far end, as it was imported here. */
  readonly remote: Peer;
  readonly #near: ReadonlyMap<string, LocalLayout>;
  readonly #opened: AsyncDisposableStack;

  private constructor(
    transport: Transport,
    near: ReadonlyMap<string, LocalLayout>,
    far: BenchPeer,
    remote: Peer,
    opened: AsyncDisposableStack,
  ) {
    this.transport = transport;
    this.#near = near;
    this.far = far;
    this.remote = remote;
    this.#opened = opened;
  }

  /** @returns Null where this machine has not the memory that the layouts lie in. */
  static async open({
    options,
    near,
    far,
    gpu,
    staging,
    nixl,
    farMayLack = false,
  }: PairSpecs): Promise<BenchPair | null> {
    await using opened = new AsyncDisposableStack();
    const transport = opened.use(
      await Transport.open({ workerId: 1n, nixl: {}, neighbours: false, ...options }),
    );
    const layouts = await registerAll(transport, near, []).catch(() => null);
    if (layouts === null) return null;
    const peer = opened.use(new BenchPeer());
    const metadata = await peer
      .call<Uint8Array>({
        do: "open",
        specs: far,
        alias: [],
        ...(gpu === undefined ? {} : { gpu }),
        ...(staging === undefined ? {} : { staging }),
        ...(nixl === undefined ? {} : { nixl }),
      })
      .catch((error: unknown) => {
        if (farMayLack) return null;
        throw error;
      });
    if (metadata === null) return null;
    const remote = await transport.importMetadata(metadata);
    await peer.call({ do: "import", bytes: await transport.exportMetadata() });
    return new BenchPair(transport, layouts, peer, remote, opened.move());
  }

  /** A layout of this end. */
  layout(name: string): LocalLayout {
    const layout = this.#near.get(name);
    if (layout === undefined) throw new Error(`no layout ${name} here`);
    return layout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened.disposeAsync();
  }
}

/** Starts processes with UCX's choice of transports, which it reads once in a process; null leaves it alone. */
export async function withTransports<T>(names: string | null, work: () => Promise<T>): Promise<T> {
  const before = process.env["UCX_TLS"];
  if (names !== null) process.env["UCX_TLS"] = names;
  try {
    return await work();
  } finally {
    if (before === undefined) delete process.env["UCX_TLS"];
    else process.env["UCX_TLS"] = before;
  }
}
