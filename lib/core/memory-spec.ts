import type { PlacedComponent } from "./coverage.ts";
import { KvferryError } from "./errors.ts";
import { checkedInteger, checkedSum } from "./integers.ts";
import type { ComponentShape, MemorySpec, Region, Storage, Tier } from "./layout.ts";

/** The largest CUDA ordinal that is taken for one. */
const MAX_DEVICE = 4_095;

/**
 * Checks where a component's memory comes from, and copies it.
 *
 * Regions of memory that someone else owns must be as many as the arrangement has, each with the bytes that it
 * needs, none past 2^53, addresses aligned as the config asks.
 *
 * @throws KvferryError `INVALID_CONFIG` with the field.
 */
export function checkMemory(memory: MemorySpec, shape: ComponentShape, operation: string): MemorySpec {
  if (typeof memory !== "object" || memory === null)
    throw invalid(operation, "memory", 'memory must be an object such as { kind: "system" }', memory);
  const fields = FIELDS.get(memory.kind);
  if (fields === undefined)
    throw invalid(
      operation,
      "memory.kind",
      `memory.kind must be one of ${[...FIELDS.keys()].join(", ")}`,
      memory.kind,
    );
  for (const key in memory)
    if (!fields.has(key))
      throw invalid(operation, `memory.${key}`, `memory of kind ${memory.kind} has no field ${key}`, key);
  switch (memory.kind) {
    case "system":
      return SYSTEM;
    case "pinned":
      checkDevice(memory.device, "memory.device", operation);
      checkWord(memory.allocator, "memory.allocator", ["shared", "driver"], operation);
      return Object.freeze({ ...memory });
    case "device":
      checkDevice(memory.device, "memory.device", operation);
      return Object.freeze({ ...memory });
    case "disk":
      if (
        memory.path !== undefined &&
        (typeof memory.path !== "string" || memory.path === "" || memory.path.includes("\0"))
      )
        throw invalid(operation, "memory.path", "memory.path must be a path", memory.path);
      checkWord(memory.open, "memory.open", ["create", "existing"], operation);
      if (memory.checksums !== undefined && typeof memory.checksums !== "boolean")
        throw invalid(
          operation,
          "memory.checksums",
          "memory.checksums must be true or false",
          memory.checksums,
        );
      return Object.freeze({ ...memory });
    case "shared":
      if (typeof memory.with !== "string")
        throw invalid(operation, "memory.with", "memory.with must name a component", memory.with);
      checkedInteger(memory.offset, "memory.offset", 0, Number.MAX_SAFE_INTEGER, operation);
      return Object.freeze({ ...memory });
    case "external":
      return checkExternal(memory, shape, operation);
    case "external-fd":
      return {
        kind: "external-fd",
        regions: checkCount(memory.regions, shape, operation).map(({ fd, offset, size }, index) => {
          checkedInteger(fd, `memory.regions[${index}].fd`, 0, 0x7fff_ffff, operation);
          checkRange(offset, size, "offset", index, 0, shape, operation);
          return { fd, offset, size };
        }),
      };
    case "external-ipc":
      checkedInteger(memory.device, "memory.device", 0, MAX_DEVICE, operation);
      return {
        kind: "external-ipc",
        device: memory.device,
        regions: checkCount(memory.regions, shape, operation).map(({ ipcHandle, offset, size }, index) => {
          if (!(ipcHandle instanceof Uint8Array) || ipcHandle.length !== 64)
            throw invalid(
              operation,
              `memory.regions[${index}].ipcHandle`,
              "a CUDA IPC handle has 64 bytes",
              index,
            );
          checkRange(offset, size, "offset", index, 0, shape, operation);
          return { ipcHandle: ipcHandle.slice(), offset, size };
        }),
      };
  }
}

/** The tier that a component's memory stands for when the spec says none. */
export function tierOf(component: { readonly memory: MemorySpec }): Tier {
  return TIER_OF_STORAGE[storageOf(component.memory, 0).kind];
}

/**
 * Where bytes of a memory spec physically live.
 *
 * @param defaultDevice - CUDA ordinal for `device` memory that names none.
 */
export function storageOf(memory: MemorySpec, defaultDevice: number): Storage {
  switch (memory.kind) {
    case "pinned":
      return memory.device === undefined ? { kind: "pinned" } : { kind: "pinned", device: memory.device };
    case "device":
      return { kind: "device", device: memory.device ?? defaultDevice };
    case "disk":
      return { kind: "disk" };
    case "external":
      return typeof memory.storage === "string"
        ? { kind: memory.storage }
        : { kind: "device", device: memory.storage.device };
    case "external-ipc":
      return { kind: "device", device: memory.device };
    case "system":
    case "shared":
    case "external-fd":
      return { kind: "system" };
  }
}

/**
 * Where each region of a component lies, as far as a spec can tell: allocations that are yet to be made are byte
 * spaces of their own.
 *
 * @param root - Name of the component whose memory it lies in.
 * @param rootMemory - The memory of that component.
 */
export function placementsOf(
  shape: ComponentShape,
  memory: MemorySpec,
  root: string,
  rootMemory: MemorySpec,
): PlacedComponent {
  const { name, view, alias } = shape;
  const shift = memory.kind === "shared" ? memory.offset : 0;
  const indices = Array.from({ length: view.regionCount }, (_, index) => index);
  switch (rootMemory.kind) {
    case "external": {
      const space = typeof rootMemory.storage === "string" ? "host" : `device ${rootMemory.storage.device}`;
      return {
        name,
        view,
        alias,
        spaces: [space],
        bases: rootMemory.regions.map(({ address }) => address + shift),
      };
    }
    case "external-fd":
      return {
        name,
        view,
        alias,
        spaces: rootMemory.regions.map(({ fd }) => `fd ${fd}`),
        bases: rootMemory.regions.map(({ offset }) => offset + shift),
      };
    case "external-ipc":
      return {
        name,
        view,
        alias,
        spaces: rootMemory.regions.map(({ ipcHandle }) => `ipc ${rootMemory.device} ${ipcHandle.toHex()}`),
        bases: rootMemory.regions.map(({ offset }) => offset + shift),
      };
    default: {
      const owner =
        rootMemory.kind === "disk" && rootMemory.path !== undefined
          ? `file ${rootMemory.path}`
          : `own ${root}`;
      return {
        name,
        view,
        alias,
        spaces: indices.map((index) => `${owner} ${index}`),
        bases: indices.map(() => shift),
      };
    }
  }
}

const SYSTEM: MemorySpec = Object.freeze({ kind: "system" });

const TIER_OF_STORAGE: Readonly<Record<Storage["kind"], Tier>> = {
  system: "G2",
  pinned: "G2",
  device: "G1",
  disk: "G3",
};

const FIELDS: ReadonlyMap<string, ReadonlySet<string>> = new Map<MemorySpec["kind"], ReadonlySet<string>>([
  ["system", new Set(["kind"])],
  ["pinned", new Set(["kind", "device", "allocator"])],
  ["device", new Set(["kind", "device"])],
  ["disk", new Set(["kind", "path", "open", "checksums"])],
  ["shared", new Set(["kind", "with", "offset"])],
  ["external", new Set(["kind", "storage", "regions"])],
  ["external-fd", new Set(["kind", "regions"])],
  ["external-ipc", new Set(["kind", "device", "regions"])],
]);

function checkExternal(
  memory: Extract<MemorySpec, { kind: "external" }>,
  shape: ComponentShape,
  operation: string,
): MemorySpec {
  const { storage } = memory;
  const known =
    storage === "system" ||
    storage === "pinned" ||
    (typeof storage === "object" && storage !== null && Object.keys(storage).join() === "device");
  if (!known)
    throw invalid(
      operation,
      "memory.storage",
      "memory.storage must be system, pinned or { device }",
      storage,
    );
  if (typeof storage === "object") checkDevice(storage.device, "memory.storage.device", operation, true);
  const given = checkCount(memory.regions, shape, operation);
  const regions: Region[] = [];
  for (let index = 0; index < given.length; index++) {
    const region = given[index];
    if (region === undefined) continue;
    const { address, size } = region;
    checkRange(address, size, "address", index, 1, shape, operation);
    regions.push({ address, size });
  }
  return {
    kind: "external",
    storage: typeof storage === "string" ? storage : { device: storage.device },
    regions,
  };
}

function checkCount<Item>(
  regions: readonly Item[],
  shape: ComponentShape,
  operation: string,
): readonly Item[] {
  const { regionCount } = shape.view;
  if (!Array.isArray(regions))
    throw invalid(operation, "memory.regions", "memory.regions must be a list", regions);
  if (regions.length !== regionCount)
    throw invalid(
      operation,
      "memory.regions",
      `this arrangement has ${regionCount} regions, found ${regions.length}`,
      regions.length,
    );
  for (let index = 0; index < regions.length; index++)
    if (typeof regions[index] !== "object" || regions[index] === null)
      throw invalid(
        operation,
        `memory.regions[${index}]`,
        `region ${index} must be an object`,
        regions[index],
      );
  return regions;
}

function checkRange(
  start: number,
  size: number,
  field: "address" | "offset",
  index: number,
  minimum: number,
  shape: ComponentShape,
  operation: string,
): void {
  const fits =
    Number.isSafeInteger(start) &&
    start >= minimum &&
    Number.isSafeInteger(size) &&
    size >= shape.view.regionBytes;
  const { alignment } = shape.config;
  if (fits && Number.isSafeInteger(start + size) && (alignment === 1 || start % alignment === 0)) return;
  // Which of the rules it was is only worked out for the error.
  checkedInteger(start, `memory.regions[${index}].${field}`, minimum, Number.MAX_SAFE_INTEGER, operation);
  checkedInteger(
    size,
    `memory.regions[${index}].size`,
    shape.view.regionBytes,
    Number.MAX_SAFE_INTEGER,
    operation,
  );
  checkedSum(operation, `the end of memory.regions[${index}]`, start, size);
  throw invalid(
    operation,
    `memory.regions[${index}].${field}`,
    `${field} ${start} is not aligned to ${alignment} bytes`,
    start,
  );
}

function checkDevice(value: unknown, field: string, operation: string, required = false): void {
  if (value !== undefined || required) checkedInteger(value, field, 0, MAX_DEVICE, operation);
}

function checkWord(value: unknown, field: string, words: readonly string[], operation: string): void {
  if (value !== undefined && !words.some((word) => word === value))
    throw invalid(operation, field, `${field} must be ${words.join(" or ")}`, value);
}

function invalid(operation: string, field: string, message: string, found: unknown): KvferryError {
  return new KvferryError("INVALID_CONFIG", operation, message, `Correct ${field} in the layout's spec.`, {
    field,
    found: typeof found === "bigint" ? found.toString() : found,
  });
}
