import { KvferryError } from "../core/errors.ts";
import { AwayPeers } from "./away-peers.ts";
import { cString } from "./c-string.ts";
import type { NativeContext } from "./context.ts";
import type { NixlLocation } from "./find-nixl.ts";

/** A run of memory as NIXL registers it. */
export interface NixlRegion {
  readonly address: number;
  readonly bytes: number;
  readonly device: number;
}

/** A notification that NIXL delivered. */
export interface NixlNotification {
  /** Wire name of the sender. */
  readonly from: string;
  readonly payload: Uint8Array<ArrayBuffer>;
}

/** Bytes that one call takes notifications into; a larger message is asked for again with room for it. */
const TAKE_BYTES = 65_536;

/** Delay of NIXL's event-driven progress thread: no visible latency, under one per cent of a core. */
const PROGRESS_MICROS = 10_000;

/**
 * A NIXL agent of this process. Every call runs on the library's own threads; the owner is the transport,
 * which closes it before its context.
 */
export class NixlAgent {
  readonly name: string;
  readonly library: string;
  readonly address: number;
  readonly #context: NativeContext;
  #takeBuffer: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(TAKE_BYTES));
  readonly #out: Float64Array = new Float64Array(new ArrayBuffer(64));
  #open = true;
  readonly #away: AwayPeers = new AwayPeers();

  private constructor(context: NativeContext, name: string, library: string, address: number) {
    this.#context = context;
    this.name = name;
    this.library = library;
    this.address = address;
  }

  /**
   * Loads NIXL and makes an agent.
   *
   * @param lanes - Threads that post transfers.
   * @throws KvferryError `NO_NIXL` when the library cannot be loaded, `NIXL` when the agent cannot be made.
   */
  static async create(
    context: NativeContext,
    location: NixlLocation,
    name: string,
    lanes: number,
  ): Promise<NixlAgent> {
    const native = context.library;
    const loaded = await context
      .job(
        "open",
        (slot) => native.kvf_nixl_load_job(context.address, slot, cString(location.library)),
        (_completion, slot) => context.resultBytes(slot),
      )
      .catch((error: unknown) => {
        throw noNixl(location, error);
      });
    const address = await context.job(
      "open",
      (slot) => native.kvf_nixl_agent_job(context.address, slot, cString(name), PROGRESS_MICROS, lanes),
      (completion) => completion.value,
    );
    return new NixlAgent(context, name, new TextDecoder().decode(loaded), address);
  }

  /** Whether `close` was not called yet. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** Adds a backend, e.g. `UCX`. */
  addBackend(name: string, parameters: Readonly<Record<string, string>>): Promise<void> {
    const packed = `${Object.entries(parameters)
      .map(([key, value]) => `${key}\0${value}\0`)
      .join("")}\0`;
    return this.#call("open", (slot) =>
      this.#native.kvf_nixl_backend_job(
        this.#context.address,
        slot,
        this.address,
        cString(name),
        cString(packed),
      ),
    );
  }

  /** Registers regions of one memory type, all or none. */
  register(memory: number, regions: readonly NixlRegion[]): Promise<void> {
    const packed = packRegions(regions);
    return this.#call("register", (slot) =>
      this.#native.kvf_nixl_register_job(
        this.#context.address,
        slot,
        this.address,
        memory,
        packed,
        regions.length,
      ),
    );
  }

  /** Takes back a registration; the regions must be the ones that were registered. */
  deregister(memory: number, regions: readonly NixlRegion[]): Promise<void> {
    const packed = packRegions(regions);
    return this.#call("unregister", (slot) =>
      this.#native.kvf_nixl_deregister_job(
        this.#context.address,
        slot,
        this.address,
        memory,
        packed,
        regions.length,
      ),
    );
  }

  /** The agent's metadata: everything, or with `regions` the connection-free part that names only those. */
  metadata(): Promise<Uint8Array<ArrayBuffer>> {
    const none = new Float64Array(new ArrayBuffer(8));
    return this.#context.job(
      "exportMetadata",
      (slot) => this.#native.kvf_nixl_metadata_job(this.#context.address, slot, this.address, 0, 0, none, 0),
      (_completion, slot) => this.#context.resultBytes(slot),
    );
  }

  /** Connection information only, or only the given regions of one memory type. */
  partialMetadata(memory: number, regions: readonly NixlRegion[]): Promise<Uint8Array<ArrayBuffer>> {
    const packed = packRegions(regions);
    return this.#context.job(
      "exportMetadata",
      (slot) =>
        this.#native.kvf_nixl_metadata_job(
          this.#context.address,
          slot,
          this.address,
          1,
          memory,
          packed,
          regions.length,
        ),
      (_completion, slot) => this.#context.resultBytes(slot),
    );
  }

  /** Loads a peer's metadata; refused when NIXL reads another name from it than `expected`. */
  loadPeer(bytes: Uint8Array, expected: string): Promise<void> {
    const copy = new Uint8Array(new ArrayBuffer(Math.max(1, bytes.byteLength)));
    copy.set(bytes);
    return this.#call("importMetadata", (slot) =>
      this.#native.kvf_nixl_load_peer_job(
        this.#context.address,
        slot,
        this.address,
        copy,
        bytes.byteLength,
        cString(expected),
      ),
    );
  }

  /** Drops all that NIXL keeps for a peer. */
  forgetPeer(name: string): Promise<void> {
    return this.#call("forget", (slot) =>
      this.#native.kvf_nixl_forget_peer_job(this.#context.address, slot, this.address, cString(name)),
    );
  }

  /** Does what makes NIXL forget a peer and know it again. Notifications to it wait meanwhile. */
  whileAway<Result>(peer: string, work: () => Promise<Result>): Promise<Result> {
    return this.#away.while(peer, work);
  }

  /** Sends a notification. */
  notify(peer: string, payload: Uint8Array): Promise<void> {
    const bytes = new Uint8Array(new ArrayBuffer(Math.max(1, payload.byteLength)));
    bytes.set(payload);
    return this.#away.say(peer, () =>
      this.#call("notify", (slot) =>
        this.#native.kvf_nixl_notify_job(
          this.#context.address,
          slot,
          this.address,
          cString(peer),
          bytes,
          payload.byteLength,
        ),
      ),
    );
  }

  /** Takes the notifications that are queued, oldest first for each sender. */
  takeNotifications(): NixlNotification[] {
    const taken: NixlNotification[] = [];
    while (this.#open) {
      this.#native.kvf_nixl_take_notifications(
        this.address,
        this.#takeBuffer,
        this.#takeBuffer.byteLength,
        this.#out,
      );
      const written = this.#out[0] ?? 0;
      const queued = this.#out[2] ?? 0;
      if (written === 0 && queued > this.#takeBuffer.byteLength) {
        this.#takeBuffer = new Uint8Array(new ArrayBuffer(2 ** Math.ceil(Math.log2(queued + 1))));
        continue;
      }
      if (written === 0) break;
      unpackNotifications(this.#takeBuffer, written, taken);
      if (queued === 0) break;
    }
    return taken;
  }

  /** Looks for notifications eagerly while somebody waits for one. */
  listen(eager: boolean): void {
    if (this.#open) this.#native.kvf_nixl_listen(this.address, eager ? 1 : 0);
  }

  /** Leaves a stuck transfer's lane to itself. */
  abandon(slot: number): void {
    if (this.#open) this.#native.kvf_nixl_abandon(this.#context.address, slot);
  }

  /** Destroys the agent. @returns Lanes that are stuck and were left behind. */
  close(): Promise<number> {
    if (!this.#open) return Promise.resolve(0);
    this.#open = false;
    return this.#context.job(
      "close",
      (slot) => this.#native.kvf_nixl_agent_close_job(this.#context.address, slot, this.address),
      (completion) => completion.value,
    );
  }

  get #native(): NativeContext["library"] {
    return this.#context.library;
  }

  #call(operation: string, start: (slot: number) => number): Promise<void> {
    return this.#context.job(operation, start, () => undefined);
  }
}

function packRegions(regions: readonly NixlRegion[]): Float64Array<ArrayBuffer> {
  const packed = new Float64Array(new ArrayBuffer(Math.max(1, regions.length) * 24));
  regions.forEach((region, index) => {
    packed[index * 3] = region.address;
    packed[index * 3 + 1] = region.bytes;
    packed[index * 3 + 2] = region.device;
  });
  return packed;
}

function unpackNotifications(bytes: Uint8Array<ArrayBuffer>, length: number, into: NixlNotification[]): void {
  const header = new DataView(bytes.buffer, bytes.byteOffset, length);
  const decoder = new TextDecoder();
  let at = 0;
  while (at + 8 <= length) {
    const nameLength = header.getUint32(at, true);
    const payloadLength = header.getUint32(at + 4, true);
    const name = at + 8;
    const payload = name + nameLength;
    into.push({
      from: decoder.decode(bytes.subarray(name, payload)),
      payload: bytes.slice(payload, payload + payloadLength),
    });
    at = (payload + payloadLength + 3) & ~3;
  }
}

function noNixl(location: NixlLocation, cause: unknown): KvferryError {
  return new KvferryError(
    "NO_NIXL",
    "open",
    `NIXL could not be loaded from ${location.library}: ${cause instanceof Error ? cause.message : String(cause)}`,
    "Run `kvferry setup`, or set KVFERRY_NIXL_LIBRARY to a libnixl_capi.so of NIXL 1.3 or later.",
    { library: location.library, source: location.source },
    cause,
  );
}
