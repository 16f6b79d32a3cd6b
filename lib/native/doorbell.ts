import { JSCallback } from "bun:ffi";
import { KvferryError } from "../core/errors.ts";
import type { NativeLibrary } from "./library.ts";
import { statusWord } from "./status.ts";

/** How the native library wakes this global's event loop. */
export interface Doorbell {
  /** Keeps the process alive (or no longer) while jobs run. */
  hold(on: boolean): void;
  /** Only after the native context was closed. */
  close(): void;
}

/** Long enough to never fire, short enough for a timer. */
const FOREVER_MILLIS = 2 ** 30;

/**
 * Connects a context's doorbell to this global.
 *
 * The main thread of a program uses one thread-safe callback (fastest). Workers and test runners, whose global can
 * end while native threads live, use a socket: writing to it is harmless when nobody reads any more.
 */
export function connectDoorbell(library: NativeLibrary, context: number, ring: () => void): Doorbell {
  return Bun.isMainThread && process.env["NODE_ENV"] !== "test"
    ? callbackDoorbell(library, context, ring)
    : socketDoorbell(library, context, ring);
}

/** One callback for the process: contexts that share it are drained together. */
let shared: { callback: JSCallback; rings: Set<() => void> } | undefined;

function callbackDoorbell(library: NativeLibrary, context: number, ring: () => void): Doorbell {
  // The callback is never closed: a native thread may be inside it until the process ends.
  shared ??= makeSharedCallback();
  const { callback, rings } = shared;
  rings.add(ring);
  library.kvf_context_ring_by_callback(context, Number(callback.ptr ?? 0));
  let timer: ReturnType<typeof setInterval> | undefined;
  let held = false;
  return {
    hold(on) {
      if (on === held) return;
      held = on;
      if (timer === undefined) timer = setInterval(() => undefined, FOREVER_MILLIS);
      if (on) timer.ref();
      else timer.unref();
    },
    close() {
      rings.delete(ring);
      clearInterval(timer);
      timer = undefined;
    },
  };
}

function makeSharedCallback(): { callback: JSCallback; rings: Set<() => void> } {
  const rings = new Set<() => void>();
  const callback = new JSCallback(
    () => {
      for (const ring of rings) ring();
    },
    { args: [], returns: "void", threadsafe: true },
  );
  return { callback, rings };
}

interface DoorbellSocket {
  ref(): void;
  unref(): void;
  end(): void;
}

function socketDoorbell(library: NativeLibrary, context: number, ring: () => void): Doorbell {
  const out = new Float64Array(new ArrayBuffer(16));
  const status = library.kvf_context_ring_by_socket(context, out);
  if (status < 0) {
    throw new KvferryError(
      statusWord(status),
      "open",
      "the socket that wakes this global's event loop could not be made",
      "Raise the limit of open files.",
      { status },
    );
  }
  let socket: DoorbellSocket | undefined;
  let held = false;
  let closed = false;
  const options = { fd: out[0] ?? -1, socket: { data: ring } };
  // Connecting a descriptor is missing from the types of bun 1.4.5.
  const connecting = Bun.connect(
    options as unknown as Parameters<typeof Bun.connect>[0],
  ) as unknown as Promise<DoorbellSocket>;
  void connecting.then((connected) => {
    socket = connected;
    if (!held) connected.unref();
    if (closed) connected.end();
    ring();
  });
  return {
    hold(on) {
      if (on === held) return;
      held = on;
      if (on) socket?.ref();
      else socket?.unref();
    },
    close() {
      closed = true;
      socket?.end();
    },
  };
}
