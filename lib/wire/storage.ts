import type { Storage, StorageKind } from "../core/layout.ts";

/**
 * The frozen storage of a kind; one object each for those without a device.
 *
 * @param device - CUDA ordinal, or null for none.
 * @returns Null where kind and device contradict each other.
 */
export function storageOf(kind: StorageKind, device: number | null): Storage | null {
  switch (kind) {
    case "device":
      return device === null ? null : deviceStorage(device);
    case "pinned":
      return device === null ? PINNED : Object.freeze({ kind, device });
    case "system":
      return device === null ? SYSTEM : null;
    case "disk":
      return device === null ? DISK : null;
  }
}

/** Host memory of no kind. */
export const SYSTEM: Storage = Object.freeze({ kind: "system" });
const PINNED: Storage = Object.freeze({ kind: "pinned" });
const DISK: Storage = Object.freeze({ kind: "disk" });
const DEVICES: readonly Storage[] = Array.from({ length: 16 }, (_, device) =>
  Object.freeze({ kind: "device", device }),
);

function deviceStorage(device: number): Storage {
  return DEVICES[device] ?? Object.freeze({ kind: "device", device });
}
