// A second process of a test that plays a neighbour, and what can be seen of it from outside.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { NeighbourCall } from "./neighbour-calls.ts";

const PROGRAM = join(import.meta.dir, "..", "fixtures", "neighbour.ts");

/** No call of a test takes longer, on however busy a machine. */
const CALL_MILLIS = 30_000;

interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: { readonly message: string; readonly code: string | null };
}

/** A failure in the other process. */
export class FarError extends Error {
  readonly code: string | null;

  constructor(error: { readonly message: string; readonly code: string | null }) {
    super(error.message);
    this.code = error.code;
  }
}

/** A process that plays a neighbour; ended with the scope. */
export class NeighbourProcess implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #open: Map<number, PromiseWithResolvers<unknown>> = new Map();
  #last = 0;
  #left = false;

  /** @param prefix - A command that runs it, such as `unshare`. */
  constructor(prefix: readonly string[] = []) {
    this.#child = Bun.spawn([...prefix, process.execPath, PROGRAM], {
      env: { ...process.env, NODE_ENV: "production" },
      stdin: "ignore",
      stdout: 2,
      stderr: "inherit",
      serialization: "advanced",
      ipc: (answer: Answer) => {
        const call = this.#open.get(answer.id);
        this.#open.delete(answer.id);
        if (answer.error === undefined) call?.resolve(answer.value);
        else call?.reject(new FarError(answer.error));
      },
      onExit: () => {
        for (const call of this.#open.values()) call.reject(new Error("the process ended"));
        this.#open.clear();
      },
    });
  }

  get pid(): number {
    return this.#child.pid;
  }

  async call<Value>(call: NeighbourCall): Promise<Value> {
    const id = ++this.#last;
    const answer = Promise.withResolvers<unknown>();
    this.#open.set(id, answer);
    const timer = setTimeout(() => answer.reject(new Error(`no answer to ${call.do}`)), CALL_MILLIS);
    this.#child.send({ id, call });
    return (await answer.promise.finally(() => clearTimeout(timer))) as Value; // the fixture answers each call so
  }

  /** Sends a signal; resolves at once. */
  signal(signal: "SIGSTOP" | "SIGCONT" | "SIGKILL"): void {
    process.kill(this.pid, signal);
  }

  /** Lets go of the process: it exits by itself, without closing anything first. */
  leave(): void {
    if (!this.#left) this.#child.disconnect();
    this.#left = true;
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.leave();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5_000);
    await this.#child.exited;
    clearTimeout(timer);
  }
}

/** A mapping of a process, as the kernel lists it. */
export interface ListedMapping {
  readonly start: number;
  /** `rw-s`, `r--s` ... */
  readonly rights: string;
  readonly inode: string;
  readonly bytes: number;
}

/** Files in memory of kvferry that a process has mapped. */
export function listedMappings(pid: number | "self"): ListedMapping[] {
  return readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .filter((line) => line.includes("/memfd:kvferry"))
    .map((line) => {
      const [range = "", rights = "", , , inode = ""] = line.split(/\s+/);
      const [start = "0", end = "0"] = range.split("-");
      const from = Number.parseInt(start, 16);
      return { start: from, rights, inode, bytes: Number.parseInt(end, 16) - from };
    });
}

/** Open descriptors of a process. */
export function openDescriptors(pid: number | "self"): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** Threads of a process by name. */
export function threadNames(pid: number | "self"): string[] {
  return readdirSync(`/proc/${pid}/task`).map((task) => {
    try {
      return readFileSync(`/proc/${pid}/task/${task}/comm`, "utf8").trim();
    } catch {
      return "";
    }
  });
}
