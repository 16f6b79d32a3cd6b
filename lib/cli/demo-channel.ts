import { KvferryError } from "../core/errors.ts";
import type { ErrorWord } from "../core/errors.ts";
import type { DemoAgent, DemoDistance } from "./demo-agent.ts";
import { splitUcxLog, UCX_LOG_ENVIRONMENT } from "./ucx-log.ts";
import type { UcxFacts } from "./ucx-log.ts";

/** A call of the other process's agent; `open` comes first. */
export interface DemoCall {
  readonly id: number;
  readonly method: keyof DemoAgent | "open";
  readonly parameters: readonly unknown[];
}

/** The answer to a {@link DemoCall}. */
export interface DemoAnswer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: Readonly<Record<string, unknown>>;
}

/** The child process with its agent. */
export interface DemoChild {
  readonly pid: number;
  readonly agent: DemoAgent;
  /** Opens its agent; after `close` another one may be opened. */
  open(distance: DemoDistance): Promise<void>;
  /** What UCX in the child said so far. */
  ucx(): UcxFacts;
  /** Ends the child, kindly at first. */
  end(): Promise<void>;
}

/** No step of the demo takes longer; a process that is stuck must not hold the other for ever. */
const CALL_MILLISECONDS = 60_000;

/** Starts the second process of the demo and talks to it over Bun's IPC. */
export function startChild(command: readonly string[]): DemoChild {
  const open = new Map<number, { resolve(value: unknown): void; reject(error: unknown): void }>();
  let next = 0;
  const child = Bun.spawn([...command], {
    env: { ...process.env, ...UCX_LOG_ENVIRONMENT },
    stdin: "ignore",
    stdout: 2,
    stderr: "pipe",
    serialization: "advanced",
    ipc: (message: DemoAnswer) => {
      const call = open.get(message.id);
      open.delete(message.id);
      if (message.error === undefined) call?.resolve(message.value);
      else call?.reject(revive(message.error));
    },
    onExit: (_child, code, signal) => {
      for (const call of open.values())
        call.reject(
          new Error(
            `the second process ended with ${signal === null ? `status ${code}` : `signal ${signal}`}`,
          ),
        );
      open.clear();
    },
  });
  const log = splitUcxLog(child.stderr, (line) => void process.stderr.write(`${line}\n`));
  const call = async (method: DemoCall["method"], ...parameters: unknown[]): Promise<unknown> => {
    const id = (next += 1);
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const timer = setTimeout(
      () => reject(new Error(`the second process did not answer ${method}`)),
      CALL_MILLISECONDS,
    );
    open.set(id, { resolve, reject });
    child.send({ id, method, parameters } satisfies DemoCall);
    return await promise.finally(() => clearTimeout(timer));
  };
  // What a method gives back is what the child's agent gave: both sides run the same interface.
  const agent: DemoAgent = {
    fill: async (index) => void (await call("fill", index)),
    metadata: async () => (await call("metadata")) as Uint8Array,
    meet: async (bytes) => void (await call("meet", bytes)),
    transfer: async (index, repeats) => (await call("transfer", index, repeats)) as number,
    notified: async (index) => void (await call("notified", index)),
    verify: async (index) => (await call("verify", index)) as Awaited<ReturnType<DemoAgent["verify"]>>,
    close: async () => void (await call("close")),
  };
  return {
    pid: child.pid,
    agent,
    open: async (distance) => void (await call("open", distance)),
    ucx: () => log.facts(),
    end: async () => {
      child.disconnect();
      const timer = setTimeout(() => child.kill("SIGKILL"), 5_000);
      await child.exited;
      clearTimeout(timer);
    },
  };
}

function revive(error: Readonly<Record<string, unknown>>): Error {
  const { code, operation, message, remedy, details } = error;
  if (typeof code !== "string" || !code.startsWith("ERR_KVF_"))
    return new Error(`second process: ${String(message)}`);
  const word = code.slice("ERR_KVF_".length) as ErrorWord;
  const facts = typeof details === "object" && details !== null ? { ...details } : {};
  return new KvferryError(
    word,
    String(operation),
    `second process: ${String(message)}`,
    String(remedy),
    facts,
  );
}
