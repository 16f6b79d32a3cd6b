import { closeSync, constants, fstatSync, mkdirSync, openSync } from "node:fs";
import type { ComponentRecord } from "../core/layout.ts";
import { NixlAgent } from "../native/agent.ts";
import type { NativeContext } from "../native/context.ts";
import type { OpenedFile } from "../native/file.ts";
import { findNixl, nixlPlugins, type NixlLocation } from "../native/find-nixl.ts";
import { KVF_MEM_FILE, KVF_MEM_VRAM } from "../native/symbols.ts";
import type { CudaSession } from "./cuda-session.ts";
import { systemClock, within } from "./deadlines.ts";
import type { Executor } from "./executor.ts";
import { temporaryFolder } from "./file-memory.ts";
import { gdsExecutor, type GdsFile } from "./gds-executor.ts";
import { GDS_BACKENDS, tryGds } from "./gds-trial.ts";
import type { MemoryProvider, NixlPart } from "./layout-memory.ts";
import { nixlExecutor } from "./nixl-executor.ts";
import { NixlExtents } from "./nixl-extents.ts";
import type { ResolvedOptions } from "./options.ts";

/** Threads that post to the plugin: one for each direction. */
const LANES = 2;

/** Lets go of what was registered. */
type LetGo = () => Promise<void>;

const NOTHING: LetGo = async () => undefined;

/**
 * GPUDirect Storage through NIXL: on an agent of its own, so that nothing of it reaches peers, and only once bytes of GPU
 * memory that went through a file and back were compared in this process. Whatever is missing or refused is a reason that
 * `explain` tells, never an error: files and GPU memory also meet in host memory.
 */
export class Gds {
  readonly #context: NativeContext;
  readonly #cuda: CudaSession;
  readonly #folder: string;
  /** A trial that takes longer has failed. */
  readonly #deadlineMillis: number;
  /** All that were made; the last one is in use when there is no problem. */
  readonly #agents: NixlAgent[] = [];
  #extents: NixlExtents | undefined;
  /** The plugin that was proven. */
  #backend: string | null = null;
  #problem: string | null = null;
  /** Device number of the file system that it was proven on. */
  #fileSystem = -1;
  /** Threads that hang inside NIXL. */
  #stuck = 0;
  /** Outcomes of trials by GPU: null where every byte was right. */
  readonly #trials: Map<number, Promise<string | null>> = new Map();
  readonly #proven: Map<number, string | null> = new Map();
  /** What failed trials may still touch: given back when their agent is gone. */
  readonly #held: AsyncDisposableStack[] = [];
  /** Files that NIXL knows, by file number, or why it does not know them. */
  readonly #files: Map<number, GdsFile | string> = new Map();
  /** Why NIXL does not know some GPU memory, by its first address. */
  readonly #refused: Map<number, string> = new Map();

  private constructor(context: NativeContext, cuda: CudaSession, deadlineMillis: number) {
    this.#deadlineMillis = deadlineMillis;
    this.#context = context;
    this.#cuda = cuda;
    this.#folder = temporaryFolder(process.env);
  }

  /** Brings NIXL's plugin up and tries it. Never fails. */
  static async open(
    context: NativeContext,
    cuda: CudaSession,
    options: ResolvedOptions,
    name: string,
  ): Promise<Gds> {
    const gds = new Gds(context, cuda, options.deadlineMillis);
    gds.#problem = await gds.#bringUp(options.nixl, `${name}-gds`).catch(wordsOf);
    return gds;
  }

  /** NIXL's plugin that is in use; null without one. */
  get backend(): string | null {
    return this.#backend;
  }

  /** Why it is not in use; null when it is. */
  get problem(): string | null {
    return this.#problem;
  }

  /** Why it cannot move bytes between two components, as a sentence; null when it can. */
  between(memory: ComponentRecord, file: ComponentRecord): string | null {
    const problem = this.#problem ?? this.#fileProblem(file) ?? this.#memoryProblem(memory);
    return problem === null ? null : `GPUDirect Storage is not used here: ${problem}.`;
  }

  /** Runs hops between files and GPU memory; null without a proven plugin. */
  executor(): Executor | null {
    const agent = this.#agent;
    if (agent === null) return null;
    return gdsExecutor(nixlExecutor(this.#context, agent), agent.name, (number) => {
      const known = this.#files.get(number);
      return typeof known === "object" ? known : undefined;
    });
  }

  /**
   * Lets NIXL know an open file, by a descriptor of its own that goes past the page cache. Never fails.
   *
   * @param path - Null for a file that has no name, or loses it once this is done.
   * @returns To be called before the file is closed.
   */
  async takeFile(file: OpenedFile, path: string | null): Promise<LetGo> {
    if (this.#extents === undefined) return NOTHING;
    let own = -1;
    try {
      const { direct, descriptor, bytes } = file.facts();
      if (!direct) throw new Error("its file system takes no requests past the page cache");
      own = openSync(`/proc/self/fd/${descriptor}`, constants.O_RDWR | constants.O_DIRECT);
      if (fstatSync(own).dev !== this.#fileSystem)
        throw new Error(`it is not on the file system of ${this.#folder}, where the trial was made`);
      const letGo = await this.#take([
        { memory: KVF_MEM_FILE, regions: [{ address: 0, bytes, device: own }] },
      ]);
      this.#files.set(file.number, { descriptor: own, bytes, path });
      return async () => {
        this.#files.delete(file.number);
        await letGo();
        // A thread that hangs inside the plugin must not find another file behind this number.
        if (this.#stuck === 0) closeSync(own);
      };
    } catch (error) {
      if (own >= 0) closeSync(own);
      this.#files.set(file.number, `the file is out of its reach: ${wordsOf(error)}`);
      return async () => void this.#files.delete(file.number);
    }
  }

  /** A provider of GPU memory whose memory NIXL is let know. */
  knowing(provider: MemoryProvider): MemoryProvider {
    return async (request, provided, layout) => {
      const memory = await provider(request, provided, layout);
      const letGo = await this.#takeMemory(memory.nixl.filter((part) => part.memory === KVF_MEM_VRAM));
      return {
        ...memory,
        release: async () => {
          await letGo();
          await memory.release();
        },
      };
    };
  }

  /** @returns Threads that hang inside NIXL and were left behind. */
  async close(): Promise<number> {
    for (const agent of this.#agents) this.#stuck += await agent.close();
    if (this.#stuck === 0)
      for (const held of this.#held.splice(0)) await held.disposeAsync().catch(() => undefined);
    return this.#stuck;
  }

  get #agent(): NixlAgent | null {
    return this.#problem === null ? (this.#agents.at(-1) ?? null) : null;
  }

  async #bringUp(wanted: ResolvedOptions["nixl"], name: string): Promise<string | null> {
    if (wanted === null) return "the transport was opened with nixl: false";
    const location = findNixl(wanted.library === null ? {} : { library: wanted.library });
    if (location === null) return "NIXL was not found";
    const device = this.#cuda.defaultDevice;
    try {
      await this.#cuda.demand(device);
    } catch (error) {
      return `there is no GPU: ${wordsOf(error)}`;
    }
    const there = nixlPlugins(location.library);
    const problems: string[] = [];
    for (const backend of GDS_BACKENDS.filter((plugin) => there.includes(plugin))) {
      const problem = await this.#attempt(
        location,
        name,
        backend,
        wanted.backends.get(backend) ?? {},
        device,
      );
      if (problem === null) return null;
      problems.push(`${backend}: ${problem}`);
    }
    return problems.length > 0 ? problems.join("; ") : `there is no plugin for it beside ${location.library}`;
  }

  /** One plugin on an agent of its own: an agent cannot let go of a plugin, nor have both. */
  async #attempt(
    location: NixlLocation,
    name: string,
    backend: string,
    parameters: Readonly<Record<string, string>>,
    device: number,
  ): Promise<string | null> {
    const agent = await NixlAgent.create(this.#context, location, name, LANES);
    this.#agents.push(agent);
    const problem = await agent.addBackend(backend, parameters).then(
      () => this.#try(agent, device),
      (error: unknown) => `the plugin does not come up: ${wordsOf(error)}`,
    );
    if (problem === null) {
      this.#backend = backend;
      this.#extents = new NixlExtents(agent);
      this.#trials.set(device, Promise.resolve(null));
      this.#proven.set(device, null);
    } else await this.close();
    return problem;
  }

  /** @returns What is wrong, or null. */
  async #try(agent: NixlAgent, device: number): Promise<string | null> {
    const driver = await this.#cuda.demand(device);
    const held = new AsyncDisposableStack();
    mkdirSync(this.#folder, { recursive: true });
    const parts = { context: this.#context, driver, device, agent, folder: this.#folder };
    const trial = await within(systemClock, this.#deadlineMillis, tryGds(parts, held));
    if (trial?.quiet === true) await held.disposeAsync();
    else this.#held.push(held);
    if (trial === undefined) return `the trial did not end within ${this.#deadlineMillis} ms`;
    if (!trial.proven) return `the trial failed (${trial.stage}): ${trial.found}`;
    this.#fileSystem = trial.fileSystem;
    return null;
  }

  async #takeMemory(parts: readonly NixlPart[]): Promise<LetGo> {
    const first = parts[0]?.regions[0];
    const agent = this.#agent;
    if (first === undefined || agent === null) return NOTHING;
    const { device, address } = first;
    let trial = this.#trials.get(device);
    if (trial === undefined) {
      trial = this.#try(agent, device).catch(wordsOf);
      this.#trials.set(device, trial);
      this.#proven.set(device, await trial);
    }
    if ((await trial) !== null) return NOTHING;
    try {
      return await this.#take(parts);
    } catch (error) {
      this.#refused.set(address, wordsOf(error));
      return async () => void this.#refused.delete(address);
    }
  }

  async #take(parts: readonly NixlPart[]): Promise<LetGo> {
    const extents = this.#extents;
    const hold = await extents?.acquire(parts);
    return async () => {
      if (hold !== undefined) await extents?.release(hold);
    };
  }

  #fileProblem({ attachment }: ComponentRecord): string | null {
    const known = attachment.kind === "file" ? this.#files.get(attachment.file) : undefined;
    return typeof known === "object" ? null : (known ?? "the plugin was not told of the file");
  }

  #memoryProblem({ attachment, storage, regionAddresses, regionSizes }: ComponentRecord): string | null {
    if (attachment.kind !== "addresses" || storage.kind !== "device") return "this is no GPU memory";
    if (attachment.origin === "mapped") return "the GPU memory is a neighbour's";
    const { device } = storage;
    const trial = this.#proven.get(device);
    if (trial !== null) return `device ${device}: ${trial ?? "it was not tried there"}`;
    const known = regionAddresses.every((address, region) =>
      this.#extents?.covers(KVF_MEM_VRAM, { address, bytes: regionSizes[region] ?? 0, device }),
    );
    if (known) return null;
    const why = this.#refused.get(regionAddresses[0] ?? 0);
    return why === undefined
      ? "the plugin was not told of the GPU memory"
      : `the GPU memory is out of its reach: ${why}`;
  }
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
