import { KvferryError } from "../core/errors.ts";
import type { MachineProfile } from "../core/profile.ts";
import { checkOptions } from "./options-check.ts";

/** A shared secret by which packages and control messages are authenticated, with the id it is known by. */
export interface SecretKey {
  readonly keyId: string;
  readonly key: Uint8Array;
}

/** Options of `Transport.open`. What is omitted is probed and may be absent; what is named must succeed. */
export interface OpenOptions {
  /** Unique in the deployment: an unsigned 64-bit number. */
  readonly workerId: bigint | number;
  /** What users see; default `worker-<id>`. */
  readonly agentName?: string;
  /** `false` for none; backends by name with their parameters; the library's path. */
  readonly nixl?:
    | false
    | {
        readonly backends?: Readonly<Record<string, Readonly<Record<string, string>>>>;
        readonly library?: string;
      };
  /**
   * `false` for none. The ordinal of the GPU to use where a layout names none; whether something else computes on it,
   * so that copies should leave it its multiprocessors; the driver's library. What is omitted is loaded when GPU memory
   * is first asked for.
   */
  readonly cuda?: false | { readonly device?: number; readonly busy?: boolean; readonly library?: string };
  /**
   * `gds`: tries GPUDirect Storage at `open`, by GPU memory that goes through a temporary file and back, and takes it
   * between GPU memory and files where every byte was right and it is predicted to be faster; `explain` says why not.
   * `gpuRdma`: NIXL may move GPU memory to and from peers. Both false by default.
   */
  readonly capabilities?: { readonly gds?: boolean; readonly gpuRdma?: boolean };
  readonly prefer?: "automatic" | "native" | "nixl";
  /**
   * Staging memory, bytes: on the host to send from and to be sent to (default 64 MiB each), and of each of its chunks
   * (4 MiB). `deviceBytes` on each GPU in use to send from, and as many to be sent to, for scattered pieces between GPUs
   * with `capabilities: { gpuRdma: true }` (default 128 MiB each; 0 for none), in chunks of `deviceChunkBytes` (16 MiB).
   */
  readonly staging?: {
    readonly sendBytes: number;
    readonly receiveBytes: number;
    readonly chunkBytes?: number;
    readonly deviceBytes?: number;
    readonly deviceChunkBytes?: number;
  };
  readonly profile?: MachineProfile;
  /** `false` reaches processes of this host through NIXL only. */
  readonly neighbours?: boolean;
  readonly secret?: Uint8Array | readonly SecretKey[];
  readonly acceptUnauthenticated?: boolean;
  readonly trustedNetwork?: boolean;
  /** Milliseconds between heartbeats to peers, default 2,000; 0 is off. Five without a sign of life mean a lost peer. */
  readonly heartbeatMs?: number;
  /** Deadline of every transfer that has none of its own; default 30,000. */
  readonly deadlineMs?: number;
  /** Jobs that may run at once; default 4,096. */
  readonly maxInFlight?: number;
}

/** Checked {@link OpenOptions} with defaults filled in. */
export interface ResolvedOptions {
  readonly workerId: bigint;
  readonly agentName: string;
  readonly nixl: {
    readonly demanded: boolean;
    readonly backends: ReadonlyMap<string, Readonly<Record<string, string>>>;
    readonly library: string | null;
  } | null;
  readonly cuda: {
    readonly demanded: boolean;
    readonly device: number;
    readonly busy: boolean;
    readonly library: string | null;
  } | null;
  readonly capabilities: { readonly gds: boolean; readonly gpuRdma: boolean };
  readonly prefer: "automatic" | "native" | "nixl";
  readonly staging: {
    readonly sendBytes: number;
    readonly receiveBytes: number;
    readonly chunkBytes: number;
    readonly deviceBytes: number;
    readonly deviceChunkBytes: number;
  };
  readonly profile: MachineProfile | null;
  readonly neighbours: boolean;
  readonly secrets: readonly SecretKey[];
  readonly acceptUnauthenticated: boolean;
  readonly trustedNetwork: boolean;
  readonly heartbeatMillis: number;
  readonly deadlineMillis: number;
  readonly slots: number;
}

/** Milliseconds a transfer may take when nobody says otherwise. */
export const DEFAULT_DEADLINE_MILLIS = 30_000;

/** Milliseconds between heartbeats when nobody says otherwise. */
export const DEFAULT_HEARTBEAT_MILLIS = 2_000;

const DEFAULT_STAGING_BYTES = 64 * 2 ** 20;
const DEFAULT_CHUNK_BYTES = 4 * 2 ** 20;
/** Eight chunks, of which one peer gets up to four: enough for the words between two processes to hide behind copies. */
const DEFAULT_DEVICE_BYTES = 128 * 2 ** 20;
const DEFAULT_DEVICE_CHUNK_BYTES = 16 * 2 ** 20;

/**
 * Checks the options of `Transport.open` and fills in what is omitted, from the environment where it says so.
 *
 * @throws KvferryError `INVALID_CONFIG` that names the option and what was found.
 */
export function resolveOptions(
  options: OpenOptions,
  environment: Readonly<Record<string, string | undefined>>,
): ResolvedOptions {
  checkOptions(options);
  const given = options;
  const workerId = BigInt(given.workerId);
  const { secret } = given;
  return {
    workerId,
    agentName: given.agentName ?? `worker-${workerId}`,
    nixl: given.nixl === false ? null : nixlOptions(given.nixl, environment),
    cuda:
      given.cuda === false
        ? null
        : {
            demanded: given.cuda !== undefined,
            device: given.cuda?.device ?? 0,
            busy: given.cuda?.busy ?? false,
            library: given.cuda?.library ?? null,
          },
    capabilities: { gds: given.capabilities?.gds ?? false, gpuRdma: given.capabilities?.gpuRdma ?? false },
    prefer: given.prefer ?? "automatic",
    staging: {
      sendBytes: given.staging?.sendBytes ?? DEFAULT_STAGING_BYTES,
      receiveBytes: given.staging?.receiveBytes ?? DEFAULT_STAGING_BYTES,
      chunkBytes: given.staging?.chunkBytes ?? DEFAULT_CHUNK_BYTES,
      deviceBytes: given.staging?.deviceBytes ?? DEFAULT_DEVICE_BYTES,
      deviceChunkBytes: given.staging?.deviceChunkBytes ?? DEFAULT_DEVICE_CHUNK_BYTES,
    },
    profile: given.profile ?? null,
    neighbours: given.neighbours ?? true,
    secrets:
      secret === undefined
        ? []
        : secret instanceof Uint8Array
          ? [{ keyId: "default", key: secret.slice() }]
          : secret.map(({ keyId, key }) => ({ keyId, key: key.slice() })),
    acceptUnauthenticated: given.acceptUnauthenticated ?? false,
    trustedNetwork: given.trustedNetwork ?? false,
    heartbeatMillis: given.heartbeatMs ?? DEFAULT_HEARTBEAT_MILLIS,
    deadlineMillis: given.deadlineMs ?? DEFAULT_DEADLINE_MILLIS,
    slots: Math.max(64, 2 ** Math.ceil(Math.log2(given.maxInFlight ?? 4096))),
  };
}

function nixlOptions(
  given: Exclude<OpenOptions["nixl"], false>,
  environment: Readonly<Record<string, string | undefined>>,
): NonNullable<ResolvedOptions["nixl"]> {
  const library = given?.library ?? null;
  if (given?.backends !== undefined) {
    return {
      demanded: true,
      library,
      backends: new Map(
        Object.entries(given.backends).map(([name, parameters]) => [name.toUpperCase(), { ...parameters }]),
      ),
    };
  }
  const named = backendsFromEnvironment(environment);
  return {
    demanded: given !== undefined || named.length > 0,
    library,
    backends: new Map((named.length > 0 ? named : ["UCX"]).map((name) => [name, {}])),
  };
}

const BACKEND_VARIABLE = /^(?:KVFERRY|DYN_KVBM)_NIXL_BACKEND_(.+)$/;
const TRUE_WORDS: ReadonlySet<string> = new Set(["1", "true", "on", "yes"]);
const FALSE_WORDS: ReadonlySet<string> = new Set(["0", "false", "off", "no"]);

/**
 * Backends that the environment switches on: `KVFERRY_NIXL_BACKEND_<NAME>` and Dynamo's `DYN_KVBM_NIXL_BACKEND_<NAME>`.
 *
 * @throws KvferryError `INVALID_CONFIG` that names a variable whose value is no yes or no.
 */
export function backendsFromEnvironment(environment: Readonly<Record<string, string | undefined>>): string[] {
  const switches = new Map<string, boolean>();
  for (const [variable, value] of Object.entries(environment)) {
    const name = BACKEND_VARIABLE.exec(variable)?.[1]?.toUpperCase();
    if (name === undefined || value === undefined) continue;
    const word = value.trim().toLowerCase();
    if (!TRUE_WORDS.has(word) && !FALSE_WORDS.has(word)) {
      throw new KvferryError(
        "INVALID_CONFIG",
        "open",
        `${variable} must be a yes or a no, found ${JSON.stringify(value)}`,
        "Set it to 1 or 0.",
        { variable, found: value },
      );
    }
    // Our own variable wins over Dynamo's for the same backend.
    if (variable.startsWith("KVFERRY_") || !switches.has(name)) switches.set(name, TRUE_WORDS.has(word));
  }
  return [...switches].filter(([, on]) => on).map(([name]) => name);
}
