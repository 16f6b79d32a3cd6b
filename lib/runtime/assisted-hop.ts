import type { ExecutorName, Hop } from "../core/plan.ts";
import type { CopyProgram } from "../core/program.ts";
import type { NixlAgent } from "../native/agent.ts";
import { AssistedRun } from "./assisted-run.ts";
import type { DeviceStaging } from "./device-staging.ts";
import type { HopContext, HopOutcome, RunningHop } from "./executor.ts";
import { canName } from "./staged-protocol.ts";
import type { StagingClient } from "./staging-client.ts";
import type { ChunkSource } from "./chunks.ts";
import type { StagingPool } from "./staging-pool.ts";

/** What a hop that a peer helps with needs. */
export interface AssistedParts {
  readonly agent: NixlAgent | null;
  readonly pool: StagingPool;
  readonly receive: StagingPool;
  /** Staging memory on GPUs; null where NIXL does not move such memory. */
  readonly devices: DeviceStaging | null;
  readonly client: StagingClient;
  /** Runs one program of the hop. */
  readonly start: (
    executor: ExecutorName,
    op: Hop["op"],
    program: CopyProgram,
    pageable: boolean,
    done: (outcome: HopOutcome) => void,
    notification: Uint8Array | null,
  ) => RunningHop;
  readonly waiting: (on: boolean) => void;
  readonly progressed: () => void;
}

/**
 * Runs a hop that the peer helps with: between GPUs that NIXL reaches through staging memory on both of them, where both
 * have some, else through host memory.
 *
 * A peer that has no staging memory on its GPU, or that does not know what that is, refuses the first part, or lends host
 * memory: the hop then begins again through host memory, for nothing of the destination was touched.
 */
export function assistedHop(
  parts: AssistedParts,
  hop: Hop,
  agent: string,
  context: HopContext,
  done: (outcome: HopOutcome) => void,
): RunningHop {
  const run = new AssistedHop(parts, hop, agent, context);
  parts.waiting(true);
  void run.run().then((outcome) => {
    parts.waiting(false);
    done(outcome);
  });
  return run;
}

class AssistedHop implements RunningHop {
  readonly #parts: AssistedParts;
  readonly #hop: Hop;
  readonly #agent: string;
  readonly #context: HopContext;
  #current: AssistedRun;
  readonly #onDevice: boolean;

  constructor(parts: AssistedParts, hop: Hop, agent: string, context: HopContext) {
    this.#parts = parts;
    this.#hop = hop;
    this.#agent = agent;
    this.#context = context;
    const onDevice = this.#deviceRun();
    this.#onDevice = onDevice !== null;
    this.#current = onDevice ?? this.#hostRun();
  }

  async run(): Promise<HopOutcome> {
    if (!this.#onDevice) return await this.#current.run();
    const { client } = this.#parts;
    const known = client.lendsDevices(this.#agent) === true;
    const first = this.#current;
    const outcome = await first.run(!known);
    if (outcome.ok) client.noteDevices(this.#agent, true);
    if (outcome.ok || outcome.cancelled || outcome.inDoubt || first.placed) return outcome;
    // A peer that is slow today is not one that cannot.
    if (outcome.error?.code !== "ERR_KVF_TIMEOUT") client.noteDevices(this.#agent, false);
    this.#current = this.#hostRun();
    return await this.#current.run();
  }

  cancel(): void {
    this.#current.cancel();
  }

  abandon(): void {
    this.#current.abandon();
  }

  programsDone(): number {
    return this.#current.programsDone();
  }

  bytesDone(): number {
    return this.#current.bytesDone();
  }

  quiet(): void {
    this.#current.quiet();
  }

  #hostRun(): AssistedRun {
    const { pool, receive, agent } = this.#parts;
    const device = nearMemory(this.#hop).find(({ kind }) => kind === 1)?.device ?? null;
    const { bounce } = this.#context;
    return this.#over(
      bounce ?? pool.source(device, agent, this.#agent),
      // Chunks that a caller lends are not known to peers.
      this.#hop.op === "read" && !bounce ? receive.source(device, agent, this.#agent) : null,
    );
  }

  /** Null where host memory it must be. */
  #deviceRun(): AssistedRun | null {
    const { devices, client, agent } = this.#parts;
    const device = slabDevice(this.#hop);
    if (devices === null || device === null || this.#context.bounce) return null;
    if (client.lendsDevices(this.#agent) === false) return null;
    const send = devices.pool(device, "send");
    const receive = devices.pool(device, "receive");
    if (send === null || receive === null) return null;
    return this.#over(
      send.source(null, agent, this.#agent),
      this.#hop.op === "read" ? receive.source(null, agent, this.#agent) : null,
    );
  }

  #over(source: ChunkSource, receive: ChunkSource | null): AssistedRun {
    const { client, start, progressed } = this.#parts;
    return new AssistedRun(
      this.#hop,
      this.#agent,
      this.#context,
      source,
      receive,
      client,
      (executor, op, program, ended, notification = null) =>
        start(executor, op, program, source.pageable, ended, notification),
      progressed,
    );
  }
}

/** The GPU here whose memory the hop moves, where NIXL reaches the GPU memory of both ends by itself; else null. */
function slabDevice(hop: Hop): number | null {
  // Other hops are assisted because NIXL reaches one end not at all.
  if (hop.method !== "staged/slab") return null;
  const [first, ...rest] = nearMemory(hop);
  if (first === undefined || first.kind !== 1 || first.via !== undefined || !canName(first.device))
    return null;
  const alike = rest.every(
    ({ kind, device, via }) => kind === 1 && device === first.device && via === undefined,
  );
  const far = hop.programs.map(({ srcMemory, dstMemory }) => (hop.op === "read" ? srcMemory : dstMemory));
  return alike && far.every(({ kind, device }) => kind === 1 && canName(device)) ? first.device : null;
}

function nearMemory(hop: Hop): CopyProgram["srcMemory"][] {
  return hop.programs.map(({ srcMemory, dstMemory }) => (hop.op === "read" ? dstMemory : srcMemory));
}
