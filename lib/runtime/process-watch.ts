import { nodeLibrary } from "../native/node-library.ts";
import type { Clock } from "./deadlines.ts";

/** A process of this host, told apart from a later one of the same id by when it started. */
export interface ProcessIdentity {
  readonly bootId: string;
  /** Inode number of its pid namespace. */
  readonly pidNamespace: string;
  readonly processId: number;
  /** Clock ticks after boot at which it started. */
  readonly startedAt: number;
}

/** What watching processes asks of the system; a simulation gives its own. */
export interface ProcessFacts {
  /** This process. */
  readonly self: ProcessIdentity | null;
  /** A process that is alive now and that started before the given time, or null. Milliseconds since 1970. */
  readonly identify: (
    bootId: string,
    pidNamespace: string,
    processId: number,
    before: number,
  ) => ProcessIdentity | null;
  /**
   * Whether all threads of a process have ended: nothing copies on its behalf any more, and its descriptors are closed.
   * False when that cannot be told.
   */
  readonly ended: (identity: ProcessIdentity) => boolean;
  /**
   * Whether no connection of this process with another one of this host is half closed: what a process that ended has
   * sent was received and dealt with.
   */
  readonly drained: (identity: ProcessIdentity) => boolean;
}

/** How often a process is looked at once somebody waits for its end. Milliseconds. */
const LOOK_MILLIS = 50;
const SLOW_LOOK_MILLIS = 1_000;

interface Watched {
  readonly identity: ProcessIdentity;
  readonly tell: () => void;
  /** How often it was seen ended in a row. */
  seen: number;
}

/** Tells when processes of this host have ended and nothing of theirs is on its way any more. */
export class ProcessWatch {
  readonly #facts: ProcessFacts;
  readonly #clock: Clock;
  readonly #watched: Set<Watched> = new Set();
  #stopTimer: (() => void) | undefined;
  #looks = 0;

  constructor(facts: ProcessFacts, clock: Clock) {
    this.#facts = facts;
    this.#clock = clock;
  }

  get facts(): ProcessFacts {
    return this.#facts;
  }

  /** Calls back once when the process has ended and its connections are drained. */
  whenGone(identity: ProcessIdentity, tell: () => void): () => void {
    const watched: Watched = { identity, tell, seen: 0 };
    this.#watched.add(watched);
    this.#looks = 0;
    this.#stopTimer?.();
    this.#stopTimer = this.#clock.after(LOOK_MILLIS, () => this.#look());
    return () => {
      this.#watched.delete(watched);
    };
  }

  stop(): void {
    this.#watched.clear();
    this.#stopTimer?.();
    this.#stopTimer = undefined;
  }

  #look(): void {
    this.#stopTimer = undefined;
    this.#looks++;
    for (const watched of this.#watched) {
      const { identity, tell } = watched;
      watched.seen = this.#facts.ended(identity) && this.#facts.drained(identity) ? watched.seen + 1 : 0;
      // Twice: what came in with the last bytes has been dealt with by the second look.
      if (watched.seen < 2) continue;
      this.#watched.delete(watched);
      tell();
    }
    if (this.#watched.size === 0 || this.#stopTimer !== undefined) return;
    this.#stopTimer = this.#clock.after(this.#looks < 40 ? LOOK_MILLIS : SLOW_LOOK_MILLIS, () =>
      this.#look(),
    );
  }
}

/** {@link ProcessFacts} as Linux tells them under /proc. */
export function linuxProcesses(): ProcessFacts {
  let own: ProcessIdentity | null | undefined;
  const self = (): ProcessIdentity | null => (own === undefined ? (own = thisProcess()) : own);
  const ours = (identity: { readonly bootId: string; readonly pidNamespace: string }): boolean => {
    const known = self();
    return known !== null && identity.bootId === known.bootId && identity.pidNamespace === known.pidNamespace;
  };
  return {
    // Read when somebody first asks: without peers nobody does.
    get self() {
      return self();
    },
    identify: (otherBoot, otherNamespace, processId, before) => {
      if (!ours({ bootId: otherBoot, pidNamespace: otherNamespace })) return null;
      const startedAt = startOf(String(processId));
      const booted = bootMillis();
      if (startedAt === null || booted === null) return null;
      // A later process of the same id is not the one that is meant.
      return booted + startedAt * TICK_MILLIS > before + 1_000
        ? null
        : { bootId: otherBoot, pidNamespace: otherNamespace, processId, startedAt };
    },
    ended: (identity) => {
      if (!ours(identity)) return false;
      const stat = statOf(String(identity.processId));
      if (stat === undefined) return false;
      if (stat === null || stat.startedAt !== identity.startedAt) return true;
      // Nobody took its exit status yet; its threads and descriptors are gone when this is the last one.
      return stat.state === "Z" && threadsOf(identity.processId) === 1;
    },
    drained: () => !halfClosedHere(),
  };
}

function thisProcess(): ProcessIdentity | null {
  const bootId = read("/proc/sys/kernel/random/boot_id")?.trim() ?? "";
  const pidNamespace = namespaceOf("self");
  const startedAt = startOf("self");
  return bootId === "" || pidNamespace === null || startedAt === null
    ? null
    : { bootId, pidNamespace, processId: process.pid, startedAt };
}

/** Linux counts process times in ticks of a hundredth of a second for programs. */
const TICK_MILLIS = 10;

interface Stat {
  readonly state: string;
  readonly startedAt: number;
}

/** Null when there is no such process, undefined when that cannot be told. */
function statOf(id: string): Stat | null | undefined {
  let text: string;
  try {
    text = nodeLibrary.fs.readFileSync(`/proc/${id}/stat`, "utf8");
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : "";
    return code === "ENOENT" || code === "ESRCH" ? null : undefined;
  }
  // The name in parentheses may contain anything.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const startedAt = Number(fields[19]);
  return Number.isSafeInteger(startedAt) ? { state: fields[0] ?? "", startedAt } : undefined;
}

function startOf(id: string): number | null {
  return statOf(id)?.startedAt ?? null;
}

function threadsOf(processId: number): number {
  try {
    return nodeLibrary.fs.readdirSync(`/proc/${processId}/task`).length;
  } catch {
    return 0;
  }
}

function namespaceOf(id: string): string | null {
  try {
    return /\[(\d+)\]$/.exec(nodeLibrary.fs.readlinkSync(`/proc/${id}/ns/pid`))?.[1] ?? null;
  } catch {
    return null;
  }
}

function bootMillis(): number | null {
  const found = /^btime (\d+)$/m.exec(read("/proc/stat") ?? "")?.[1];
  return found === undefined ? null : Number(found) * 1_000;
}

const CLOSE_WAIT = "08";

/** A connection with an address of this host that the other end closed and this process has not closed yet. */
function halfClosedHere(): boolean {
  const local = new Set(
    Object.values(nodeLibrary.os.networkInterfaces()).flatMap((list) =>
      (list ?? []).map(({ address }) => address),
    ),
  );
  const candidates = new Set<string>();
  for (const table of ["tcp", "tcp6"]) {
    for (const line of (read(`/proc/self/net/${table}`) ?? "").split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (fields[3] === CLOSE_WAIT && isLocal(fields[2] ?? "", local)) candidates.add(fields[9] ?? "");
    }
  }
  if (candidates.size === 0) return false;
  let descriptors: string[];
  try {
    descriptors = nodeLibrary.fs.readdirSync("/proc/self/fd");
  } catch {
    return true;
  }
  return descriptors.some((descriptor) => {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(
        nodeLibrary.fs.readlinkSync(`/proc/self/fd/${descriptor}`),
      )?.[1];
      return inode !== undefined && candidates.has(inode);
    } catch {
      return false;
    }
  });
}

/** An address and port as the kernel prints them: words in the machine's byte order, in hexadecimal. */
function isLocal(printed: string, local: ReadonlySet<string>): boolean {
  const hex = printed.slice(0, printed.indexOf(":"));
  const words = hex.match(/.{8}/g) ?? [];
  const bytes = words.flatMap((word) =>
    [6, 4, 2, 0].map((at) => Number.parseInt(word.slice(at, at + 2), 16)),
  );
  // IPv6 of this host, and IPv4 in its clothes: rather once too often than not.
  if (bytes.length !== 4) return true;
  return bytes[0] === 127 || local.has(bytes.join("."));
}

function read(path: string): string | null {
  try {
    return nodeLibrary.fs.readFileSync(path, "utf8");
  } catch {
    return null;
  }
}
