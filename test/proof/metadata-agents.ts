// Feeds damaged packages to real NIXL agents: only in child processes, and only inside a network namespace in which there
// is nothing but `lo`, since a damaged address makes UCX connect to it.
import { findNixl } from "../../lib/native/find-nixl.ts";
import { randomOf } from "../random.ts";
import type { Original } from "./metadata.ts";
import { mutate } from "./metadata-mutate.ts";

/** What the agents did. */
export interface Fed {
  readonly tally: Readonly<Record<string, number>>;
  readonly findings: readonly string[];
}

/** What a child says of a package. */
export interface FedReport {
  readonly index: number;
  readonly reached: boolean;
  readonly outcome: string;
}

/** How a child ends that sees more of the network than it should. */
export const EXPOSED = 97;

const PER_CHILD = 250;
const CHILD_MILLIS = 300_000;

/** Feeds packages to an agent with a secret and to one without. */
export async function feedAgents(originals: readonly Original[], count: number, seed: number): Promise<Fed> {
  const tally: Record<string, number> = {};
  const findings: string[] = [];
  const add = (what: string): void => {
    tally[what] = (tally[what] ?? 0) + 1;
  };
  if (findNixl() === null || count === 0) return { tally: { "NOT FED: NIXL was not found": 1 }, findings };
  if (!canUnshare()) return { tally: { "NOT FED: no network namespace can be made here": 1 }, findings };
  const packages = Array.from({ length: count }, (_, index) => damaged(originals, seed, index));
  const whole = originals.find(({ format, signed }) => format === "kvferry" && signed !== null);
  for (const secret of [true, false]) {
    // A package that nobody damaged must reach NIXL, or it would prove nothing that the others do not.
    const control = secret ? whole?.signed : whole?.plain;
    const [sound] =
      control === undefined || control === null ? [] : (await feedChild([control], secret)).reports;
    if (sound?.reached !== true)
      findings.push(`a package that is right did not reach NIXL (${sound?.outcome ?? "no answer"})`);
    let next = 0;
    while (next < count) {
      const end = Math.min(count, next + PER_CHILD);
      const { reports, exposed } = await feedChild(packages.slice(next, end), secret);
      if (exposed) {
        findings.push("an agent saw more of the network than lo: nothing was fed to it");
        return { tally, findings };
      }
      for (const { reached, outcome, index } of reports) {
        add(`${secret ? "secret" : "open"}: ${outcome}`);
        if (secret && reached)
          findings.push(`seed ${seed} package ${next + index} reached NIXL though there is a secret`);
      }
      if (reports.length < end - next) {
        // The package after the last report is what the agent died of.
        add(`${secret ? "secret" : "open"}: crashed`);
        if (secret)
          findings.push(`seed ${seed} package ${next + reports.length} crashed an agent with a secret`);
        next += reports.length + 1;
      } else next = end;
    }
  }
  return { tally, findings };
}

function damaged(originals: readonly Original[], seed: number, index: number): Uint8Array {
  const random = randomOf(seed ^ 0x77777777, index);
  while (true) {
    const original = random.pick(originals);
    const other = random.pick(originals);
    const base = random.pick([original.plain, original.signed ?? original.plain]);
    const { bytes } = mutate(random, base, other.plain);
    // Some changes change nothing: those packages are right.
    const right = originals.some(({ plain, signed }) =>
      [plain, signed].some((made) => made !== null && Buffer.compare(made, bytes) === 0),
    );
    if (!right) return bytes;
  }
}

function canUnshare(): boolean {
  if (Bun.which("unshare") === null || Bun.which("ip") === null) return false;
  return Bun.spawnSync(["unshare", "-n", "true"]).exitCode === 0;
}

async function feedChild(
  packages: readonly Uint8Array[],
  secret: boolean,
): Promise<{ readonly reports: readonly FedReport[]; readonly exposed: boolean }> {
  const reports: FedReport[] = [];
  const script = 'ip link set lo up && exec "$0" "$@"';
  const child = Bun.spawn(
    [
      "unshare",
      "-n",
      "sh",
      "-c",
      script,
      process.execPath,
      `${import.meta.dir}/metadata-child.ts`,
      String(secret),
    ],
    { stdin: "pipe", stdout: "pipe", stderr: "ignore", timeout: CHILD_MILLIS, killSignal: "SIGKILL" },
  );
  child.stdin.write(`${JSON.stringify(packages.map((bytes) => Buffer.from(bytes).toString("base64")))}\n`);
  await child.stdin.end();
  let open = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    const lines = (open + decoder.decode(chunk, { stream: true })).split("\n");
    open = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("{")) reports.push(JSON.parse(line) as FedReport);
  }
  return { exposed: (await child.exited) === EXPOSED, reports };
}
