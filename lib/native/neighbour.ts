import { KvferryError } from "../core/errors.ts";
import { cString } from "./c-string.ts";
import type { NativeContext } from "./context.ts";
import { nativeError } from "./native-error.ts";
import type { MappedMemory, MemoryFile } from "./memory.ts";
import {
  KVF_AGAIN,
  KVF_E_PEER,
  KVF_NEIGHBOUR_ACCEPTED,
  KVF_NEIGHBOUR_CLOSED,
  KVF_NEIGHBOUR_EXITED,
  KVF_NEIGHBOUR_KEEP,
  KVF_NEIGHBOUR_MESSAGE,
  KVF_NEIGHBOUR_OWN,
  KVF_NEIGHBOUR_READ_ONLY,
  KVF_OK,
} from "./symbols.ts";

/** Who is at the other end of a connection, as the kernel says. */
export interface NeighbourProcess {
  readonly connection: number;
  readonly userId: number;
  readonly processId: number;
  /** Whether the end of the process will be told. */
  readonly watched: boolean;
}

/** What the neighbour thread saw. */
export type NeighbourEvent =
  | ({ readonly kind: "accepted" } & NeighbourProcess)
  /** Whoever takes it owns the descriptors. */
  | {
      readonly kind: "message";
      readonly connection: number;
      readonly bytes: Uint8Array<ArrayBuffer>;
      readonly descriptors: readonly number[];
    }
  | { readonly kind: "closed"; readonly connection: number; readonly reason: string }
  | { readonly kind: "exited"; readonly connection: number };

/** A descriptor to hand over. */
export interface HandedDescriptor {
  readonly descriptor: number;
  /** The receiver can only read: the file is opened anew for that. */
  readonly readOnly: boolean;
}

/** Bytes that one call takes events into; a larger event is asked for again with room for it. */
const TAKE_BYTES = 65_536;

const NO_DESCRIPTORS: Float64Array<ArrayBuffer> = new Float64Array(new ArrayBuffer(8));

/** Connections to processes of this host, and the thread that serves them. Owned by the transport. */
export class NeighbourSockets {
  readonly #context: NativeContext;
  readonly #address: number;
  readonly #out: Float64Array = new Float64Array(new ArrayBuffer(64));
  #buffer: Uint8Array<ArrayBuffer> = new Uint8Array(new ArrayBuffer(TAKE_BYTES));
  #turnedAway = 0;
  #open = true;

  private constructor(context: NativeContext, address: number) {
    this.#context = context;
    this.#address = address;
  }

  /** @throws KvferryError when the thread or its sockets cannot be had. */
  static open(context: NativeContext): NeighbourSockets {
    const out = new Float64Array(new ArrayBuffer(16));
    const status = context.library.kvf_neighbour_open(context.address, out);
    if (status !== KVF_OK)
      throw nativeError(context.library, status, "open", "the neighbour thread could not be started");
    return new NeighbourSockets(context, out[0] ?? 0);
  }

  /** Processes of other users that tried to connect. */
  get turnedAway(): number {
    return this.#turnedAway;
  }

  /** Accepts connections at an abstract name. */
  listen(name: string): void {
    const status = this.#native.kvf_neighbour_listen(this.#address, cString(name));
    if (status !== KVF_OK)
      throw nativeError(this.#native, status, "exportMetadata", "the rendezvous could not be opened");
  }

  /**
   * Connects to an abstract name.
   *
   * @returns Null when nobody accepts in time.
   * @throws KvferryError `PEER_LOST` when nobody listens there.
   */
  connect(name: string): NeighbourProcess | null {
    const status = this.#native.kvf_neighbour_connect(this.#address, cString(name), this.#out);
    if (status === KVF_AGAIN) return null;
    if (status !== KVF_OK)
      throw nativeError(this.#native, status, "importMetadata", "the neighbour cannot be reached");
    const [connection = 0, userId = 0, processId = 0, watched = 0] = this.#out;
    return { connection, userId, processId, watched: watched !== 0 };
  }

  /**
   * Lets the other end send by a ring in shared memory, once it has shown who it is.
   *
   * @param offer - This end begins; else it follows.
   * @returns False when there can be no ring: the socket serves then, or the other end is gone.
   */
  ring(connection: number, offer: boolean): boolean {
    if (!this.#open) return false;
    return this.#native.kvf_neighbour_ring(this.#address, connection, offer ? 1 : 0) === KVF_OK;
  }

  /**
   * Sends a message; what does not go at once is queued.
   *
   * @returns False when the other end is gone.
   * @throws KvferryError for a descriptor that cannot be handed over.
   */
  send(
    connection: number,
    bytes: Uint8Array<ArrayBuffer>,
    descriptors: readonly HandedDescriptor[] = [],
  ): boolean {
    if (!this.#open) return false;
    let packed = NO_DESCRIPTORS;
    if (descriptors.length > 0) {
      packed = new Float64Array(new ArrayBuffer(descriptors.length * 16));
      for (const [index, { descriptor, readOnly }] of descriptors.entries()) {
        packed[index * 2] = descriptor;
        packed[index * 2 + 1] = readOnly ? 1 : 0;
      }
    }
    const status = this.#native.kvf_neighbour_send(
      this.#address,
      connection,
      bytes,
      bytes.byteLength,
      packed,
      descriptors.length,
      this.#out,
    );
    if (status === KVF_OK) return true;
    if (status === KVF_E_PEER) return false;
    throw nativeError(this.#native, status, "notify", "a message to a neighbour could not be sent");
  }

  /**
   * Looks for what there is to see, without waiting. The thread is not woken by it from now on, until a call that says
   * that it is no longer looked for.
   *
   * @returns Whether there is something to take.
   */
  look(here: boolean): boolean {
    if (!this.#open) return false;
    const status = this.#native.kvf_neighbour_look(this.#address, here ? 1 : 0, this.#out);
    return status === KVF_OK && (this.#out[0] ?? 0) > 0;
  }

  /** Takes what was seen since the last call, in order. */
  take(): NeighbourEvent[] {
    const taken: NeighbourEvent[] = [];
    while (this.#open) {
      const status = this.#native.kvf_neighbour_take(
        this.#address,
        this.#buffer,
        this.#buffer.byteLength,
        this.#out,
      );
      const [written = 0, left = 0, turnedAway = 0] = this.#out;
      if (status < 0) break;
      this.#turnedAway = turnedAway;
      if (written === 0 && left > this.#buffer.byteLength) {
        this.#buffer = new Uint8Array(new ArrayBuffer(2 ** Math.ceil(Math.log2(left + 1))));
        continue;
      }
      if (written === 0) break;
      unpackEvents(this.#buffer, written, taken);
      if (left === 0) break;
    }
    return taken;
  }

  /** Closes a connection once what is queued has gone; its process stays watched. */
  shut(connection: number): void {
    if (this.#open) this.#native.kvf_neighbour_shut(this.#address, connection);
  }

  /** Drops a connection and its watch. */
  forget(connection: number): void {
    if (this.#open) this.#native.kvf_neighbour_forget(this.#address, connection);
  }

  /** Drops every connection and ends the thread. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#native.kvf_neighbour_close(this.#address);
  }

  get #native(): NativeContext["library"] {
    return this.#context.library;
  }
}

/**
 * Maps memory files that another process handed over, all of them and one after the other.
 *
 * @param files - With the sizes that they must have, all but the last one multiples of 2 MiB. Their descriptors are closed
 * by the call.
 * @returns The mapping; it holds no descriptor.
 * @throws KvferryError `ACCESS` when one is not a memory file of its size that is sealed against shrinking, or may not be
 * mapped as asked.
 */
export function mapNeighbourMemory(
  context: NativeContext,
  files: readonly MemoryFile[],
  readOnly: boolean,
): MappedMemory {
  return mapFiles(context, files, readOnly ? KVF_NEIGHBOUR_READ_ONLY : 0, "importMetadata");
}

/**
 * Maps a caller's file, from its beginning.
 *
 * @param descriptor - Left open.
 * @throws KvferryError `ACCESS` when it is shorter, or may not be mapped for reading and writing.
 */
export function mapOwnFile(context: NativeContext, descriptor: number, bytes: number): MappedMemory {
  return mapFiles(context, [{ descriptor, bytes }], KVF_NEIGHBOUR_OWN | KVF_NEIGHBOUR_KEEP, "register");
}

/** What a caller's descriptor is. */
export interface InspectedFile {
  /** A descriptor of our own for the same open file; the caller of this function owns it. */
  readonly descriptor: number;
  readonly bytes: number;
  /** It can no more shrink. */
  readonly sealed: boolean;
}

/**
 * Looks at a descriptor that a caller gave, and seals its file against shrinking where that can be done.
 *
 * @throws KvferryError when it is no file.
 */
export function inspectFile(context: NativeContext, descriptor: number): InspectedFile {
  const out = new Float64Array(new ArrayBuffer(32));
  const status = context.library.kvf_neighbour_inspect(descriptor, out);
  if (status !== KVF_OK)
    throw nativeError(context.library, status, "register", "the descriptor cannot be used", { descriptor });
  const [bytes = 0, sealed = 0, own = -1] = out;
  return { descriptor: own, bytes, sealed: sealed !== 0 };
}

function mapFiles(
  context: NativeContext,
  files: readonly MemoryFile[],
  flags: number,
  operation: string,
): MappedMemory {
  const out = new Float64Array(new ArrayBuffer(16));
  const pairs = new Float64Array(new ArrayBuffer(16 * files.length));
  for (const [index, { descriptor, bytes }] of files.entries()) pairs.set([descriptor, bytes], 2 * index);
  const status = context.library.kvf_neighbour_map(pairs, files.length, flags, out);
  if (status === KVF_OK) return { address: out[0] ?? 0, bytes: out[1] ?? 0, files: [] };
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const error = nativeError(context.library, status, operation, "a memory file was refused", { bytes });
  throw new KvferryError("ACCESS", operation, error.message, error.remedy, error.details, error);
}

function unpackEvents(bytes: Uint8Array<ArrayBuffer>, length: number, into: NeighbourEvent[]): void {
  const words = new DataView(bytes.buffer, bytes.byteOffset, length);
  let at = 0;
  while (at + 16 <= length) {
    const kind = words.getUint32(at, true);
    const connection = words.getUint32(at + 4, true);
    const payloadBytes = words.getUint32(at + 8, true);
    const count = words.getUint32(at + 12, true);
    const payload = at + 16 + 4 * count;
    const end = payload + payloadBytes;
    if (kind === KVF_NEIGHBOUR_MESSAGE) {
      const descriptors: number[] = [];
      for (let index = 0; index < count; index++) descriptors.push(words.getInt32(at + 16 + 4 * index, true));
      into.push({ kind: "message", connection, bytes: bytes.slice(payload, end), descriptors });
    } else if (kind === KVF_NEIGHBOUR_ACCEPTED) {
      into.push({
        kind: "accepted",
        connection,
        userId: words.getUint32(payload, true),
        processId: words.getUint32(payload + 4, true),
        watched: words.getUint32(payload + 8, true) !== 0,
      });
    } else if (kind === KVF_NEIGHBOUR_CLOSED) {
      into.push({
        kind: "closed",
        connection,
        reason: new TextDecoder().decode(bytes.subarray(payload, end)),
      });
    } else if (kind === KVF_NEIGHBOUR_EXITED) into.push({ kind: "exited", connection });
    at = (end + 3) & ~3;
  }
}
