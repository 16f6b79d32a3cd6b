// Rows T1 and T2: what leases, generations and settlement cost a transfer, and what heartbeats cost a process.
import { encodePackage } from "../lib/wire/index.ts";
import { exportPackage } from "../lib/core/registry-export.ts";
import { emptyRegistry } from "../lib/core/registry-local.ts";
import { macOf } from "../lib/runtime/authentication.ts";
import { answerBody } from "../lib/runtime/control-bodies.ts";
import { CONTROL, writeControl } from "../lib/runtime/control-message.ts";
import { Deadlines, systemClock, type Expiring } from "../lib/runtime/deadlines.ts";
import { Leases } from "../lib/runtime/leases.ts";
import { Transfer } from "../lib/runtime/transfer.ts";
import type { NixlNotification } from "../lib/native/agent.ts";
import { NO_FAULTS } from "../test/proof/sim-faults.ts";
import { startWorker } from "../test/proof/sim-worker.ts";
import { SimWorld } from "../test/proof/sim-world.ts";
import { randomOf } from "../test/random.ts";
import type { SuiteOptions } from "./main.ts";
import { alternate, inProcesses } from "./processes.ts";
import { localTransport } from "./registering.ts";
import { summarize } from "./result.ts";
import type { BenchResult, RowSpec } from "./result.ts";
import { submissions } from "./submitting.ts";

/** What a process measures. */
interface TrustWork {
  readonly what: "lease" | "heartbeat";
  /** Bytes of a block, or peers. */
  readonly size: number;
  readonly samples: number;
}

interface TrustRow extends RowSpec {
  readonly what: TrustWork["what"];
  readonly size: number;
}

const INTERVAL_MILLIS = 2_000;

const ROWS: readonly TrustRow[] = [
  ...(
    [
      ["inline", 4_096],
      ["thread", 2 ** 20],
    ] as const
  ).map(([how, size]): TrustRow => ({
    id: `T1.lease.${how}`,
    unit: "us",
    direction: "time",
    what: "lease",
    size,
    goal: { figure: "ratioToLimit", value: 0.97 },
    note: `transfer() of one block of ${size / 1024} KiB until it returns; limit: the same less what leases, generations, deadline and settlement took in the same round`,
  })),
  {
    id: "T2.heartbeat.1000",
    unit: "% of a core",
    direction: "time",
    what: "heartbeat",
    size: 1_000,
    goal: { figure: "ours", value: 1 },
    note: `authenticated heartbeats to 1,000 simulated peers and from them, every ${INTERVAL_MILLIS} ms; NIXL's own work not counted`,
  },
];

/** Runs the suite. */
export async function run(options: SuiteOptions): Promise<readonly BenchResult[]> {
  const results: BenchResult[] = [];
  for (const spec of ROWS) {
    if (!spec.id.includes(options.only)) continue;
    options.progress(spec.id);
    const work: TrustWork = { what: spec.what, size: spec.size, samples: options.samples };
    const sets = await inProcesses<Record<string, number[]>>(
      import.meta.path,
      "measure",
      work,
      options.processes,
    );
    results.push(summarize(spec, sets));
  }
  return results;
}

/** Takes the samples of one row; called in a process of its own. */
export async function measure({ what, size, samples }: TrustWork): Promise<Record<string, number[]>> {
  return what === "lease" ? await leaseCost(size, samples) : await heartbeatCost(size, samples);
}

/** Microseconds of a submission, with and without what keeps memory safe. */
async function leaseCost(blockBytes: number, samples: number): Promise<Record<string, number[]>> {
  await using transport = await localTransport(1n);
  const { source, destination, sample } = await submissions(transport, blockBytes);
  // What is done when the call returns was never given a deadline.
  const care = careOf(source.handle, destination.handle, blockBytes > 65_536);
  const taken: Record<string, number[]> = { ours: [], limit: [] };
  for (let round = -20; round < samples; round++) {
    const whole = await sample();
    const start = Bun.nanoseconds();
    for (let time = 0; time < TURNS; time++) care();
    const careful = (Bun.nanoseconds() - start) / 1e3 / TURNS;
    if (round < 0) continue;
    taken["ours"]?.push(whole);
    taken["limit"]?.push(whole - careful);
  }
  return taken;
}

const TURNS = 2_000;

/** What a transfer does for no other reason than that nothing be touched that is not its own any more. */
function careOf(source: bigint, destination: bigint, expires: boolean): () => void {
  const leases = new Leases();
  const deadlines = new Deadlines(systemClock);
  const running = new Set<object>();
  const known = [source, destination];
  type Handle = Parameters<Leases["acquire"]>[0];
  const transfer = new Transfer(1, false);
  return () => {
    if (known[0] !== source || known[1] !== destination || leases.anyQuarantined) throw new Error("stale");
    leases.acquire(source as Handle); // handles of layouts
    leases.acquire(destination as Handle);
    const run: Expiring = { expire: () => undefined };
    running.add(run);
    const bucket = expires ? deadlines.add(30_000, run) : -1;
    transfer.settle({ settlement: "done", proof: "completed" });
    if (expires) deadlines.remove(bucket, run);
    running.delete(run);
    leases.release(source as Handle);
    leases.release(destination as Handle);
  };
}

/** Share of a core that heartbeats take, in percent: a round of them to and from every peer, over the time between two. */
async function heartbeatCost(peers: number, samples: number): Promise<Record<string, number[]>> {
  const secrets = [{ keyId: "bench", key: new Uint8Array(32).fill(7) }];
  const world = new SimWorld(randomOf(1, 1), false);
  const { agent, transport } = startWorker(
    { world, route: "cma", faults: NO_FAULTS, agents: new Map(), inSockets: new Map() },
    { workerId: 1n, heartbeatMs: INTERVAL_MILLIS, secret: secrets, trustedNetwork: true },
    true,
  );
  let sent = 0;
  let inbox: NixlNotification[] = [];
  // Only the runtime's own work is to be seen.
  agent.loadPeer = async () => undefined;
  agent.notify = async () => void sent++;
  agent.takeNotifications = () => inbox.splice(0);
  const names: string[] = [];
  for (let id = 2; id < peers + 2; id++) {
    const agentName = `worker-${id}`;
    const wireName = `${agentName}#1`;
    names.push(wireName);
    const registry = emptyRegistry({ workerId: BigInt(id), agentName, wireName, incarnation: 1 });
    const bytes = encodePackage(
      exportPackage(registry, new Uint8Array(64), { format: "kvferry" }),
      "kvferry",
      {
        signing: { keyId: "bench", mac: macOf(secrets) },
      },
    );
    await transport.importMetadata(bytes);
  }
  const receiver = transport.registry.wireName;
  let sequence = 0;
  const beat = (): number => {
    sequence++;
    // What peers do to send theirs is their own time.
    inbox = names.map((from) => ({
      from,
      payload: writeControl(
        CONTROL.heartbeat,
        sequence,
        answerBody(INTERVAL_MILLIS),
        { sender: from, receiver },
        secrets,
      ),
    }));
    const before = sent;
    const start = Bun.nanoseconds();
    world.runUntil(world.now + INTERVAL_MILLIS);
    world.act(() => agent.onNotifications?.());
    const spent = (Bun.nanoseconds() - start) / 1e6;
    if (sent - before < peers || inbox.length > 0 || transport.peers.length !== peers)
      throw new Error(`${sent - before} heartbeats to ${transport.peers.length} peers`);
    return (spent / INTERVAL_MILLIS) * 100;
  };
  const taken = await alternate({ ours: beat }, samples, 20);
  transport.closeNow();
  return taken;
}
