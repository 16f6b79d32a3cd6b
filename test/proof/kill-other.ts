// Another process of the kill proof, as the survivor sees it.
import type { Peer, Transport } from "../../index.ts";
import type { PeerWord, SurvivorWord } from "./kill-words.ts";

/** How long a process may take to answer that was not stopped. */
const ANSWER_MILLIS = 20_000;

/** A process that runs `kill-peer.ts`. */
export class Other {
  readonly workerId: number;
  readonly child: Bun.Subprocess<"ignore", "ignore", "inherit">;
  /** What the survivor imported of it. */
  peer: Peer | undefined;
  /** Checksums of its blocks as they were last filled. */
  sums: readonly string[] = [];
  /** How often it was forgotten and imported anew. */
  reconnections = 0;
  #waiting: ((word: PeerWord) => void)[] = [];

  constructor(workerId: number) {
    this.workerId = workerId;
    this.child = Bun.spawn([process.execPath, `${import.meta.dir}/kill-peer.ts`, String(workerId)], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
      serialization: "advanced",
      ipc: (word: PeerWord) => this.#waiting.shift()?.(word),
    });
  }

  tell(word: SurvivorWord): void {
    this.child.send(word);
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  async ask<Say extends PeerWord["say"]>(
    word: SurvivorWord,
    say: Say,
  ): Promise<Extract<PeerWord, { readonly say: Say }>> {
    const answer = new Promise<PeerWord>((resolve) => this.#waiting.push(resolve));
    this.child.send(word);
    const said = await within(answer, ANSWER_MILLIS, `worker ${this.workerId} does not answer ${word.do}`);
    if (said.say !== say) throw new Error(`worker ${this.workerId}, ${word.do}: ${Bun.inspect(said)}`);
    return said as Extract<PeerWord, { readonly say: Say }>; // its word was compared
  }

  /** Both import each other. */
  async connect(transport: Transport): Promise<void> {
    const { bytes } = await this.ask({ do: "export" }, "package");
    this.peer = await transport.importMetadata(bytes);
    await this.ask({ do: "import", bytes: await transport.exportMetadata() }, "imported");
  }

  /** Both forget each other and import each other anew. */
  async reconnect(transport: Transport): Promise<void> {
    this.reconnections++;
    await this.peer?.forget().catch(() => undefined);
    await this.ask({ do: "forget" }, "imported");
    await this.connect(transport);
  }

  /** New bytes in all its blocks. */
  async fill(seed: number): Promise<void> {
    this.sums = (await this.ask({ do: "fill", seed }, "sums")).sums;
  }

  async checksums(blocks: readonly number[]): Promise<readonly string[]> {
    return (await this.ask({ do: "checksums", blocks }, "sums")).sums;
  }
}

/** A promise's value; throws when it takes longer. */
export async function within<T>(promise: PromiseLike<T>, millis: number, what: string): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} within ${millis} ms`)), millis);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
