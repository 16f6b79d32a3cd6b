// A process with a real NIXL agent that imports whatever it is given, one package after the other.
import { readFileSync, writeSync } from "node:fs";
import { Transport } from "../../index.ts";
import { NixlAgent } from "../../lib/native/agent.ts";
import { isKvferryError } from "../../lib/core/errors.ts";
import { KEYS } from "./metadata.ts";
import { EXPOSED } from "./metadata-agents.ts";
import type { FedReport } from "./metadata-agents.ts";

if (import.meta.main) await feed(process.argv[2] === "true");

async function feed(secret: boolean): Promise<void> {
  if (interfaces().join() !== "lo") process.exit(EXPOSED);
  const packages = (JSON.parse(await Bun.stdin.text()) as string[]).map((text) =>
    Buffer.from(text, "base64"),
  );
  const transport = await Transport.open({
    workerId: 1n,
    nixl: { backends: { UCX: {} } },
    cuda: false,
    neighbours: false,
    heartbeatMs: 0,
    ...(secret ? { secret: KEYS, trustedNetwork: true } : undefined),
  });
  let reached = false;
  const { loadPeer } = NixlAgent.prototype;
  NixlAgent.prototype.loadPeer = function (bytes: Uint8Array, expected: string): Promise<void> {
    reached = true;
    return loadPeer.call(this, bytes, expected);
  };
  for (const [index, bytes] of packages.entries()) {
    reached = false;
    let outcome: string;
    try {
      const peer = await transport.importMetadata(bytes);
      outcome = "imported";
      await peer.forget();
    } catch (error) {
      outcome = isKvferryError(error) ? error.code : `thrown ${Bun.inspect(error)}`;
    }
    const report: FedReport = { index, reached, outcome };
    // At once: the next package may be the last.
    writeSync(1, `${JSON.stringify(report)}\n`);
  }
  process.exit(0);
}

/** Network interfaces that this process sees. */
function interfaces(): string[] {
  return readFileSync("/proc/self/net/dev", "utf8")
    .split("\n")
    .flatMap((line) => (line.includes(":") ? [line.slice(0, line.indexOf(":")).trim()] : []));
}
