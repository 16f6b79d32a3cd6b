import { findNixl, nixlPlugins } from "../native/find-nixl.ts";
import type { NixlLocation } from "../native/find-nixl.ts";
import { isClone, moduleCommand } from "./checkout.ts";
import { check } from "./doctor-checks.ts";
import type { DoctorCheck } from "./doctor-checks.ts";
import { splitUcxLog, UCX_LOG_ENVIRONMENT } from "./ucx-log.ts";

/** An agent that does not come up within this time is reported as broken, milliseconds. */
const PROBE_MILLISECONDS = 20_000;

/** The command that fetches NIXL, as it is typed where this runs. */
const SETUP: string = isClone() ? "bun run setup" : "bunx kvferry setup";

const SOURCES: Readonly<Record<NixlLocation["source"], string>> = {
  given: "given on the command line",
  environment: "named by KVFERRY_NIXL_LIBRARY",
  cache: "fetched by kvferry setup",
  python: "of a Python environment",
  system: "of the system",
};

/** Whether NIXL is there, and whether an agent with UCX comes up; tried in a process of its own, which may crash. */
export async function nixlChecks(
  library: string | undefined,
  canTry: boolean,
): Promise<readonly DoctorCheck[]> {
  const location = findNixl(library === undefined ? {} : { library });
  const named = library ?? process.env["KVFERRY_NIXL_LIBRARY"];
  const absent = {
    cost: "No transfers to other machines, nor to processes that cannot be mapped (NO_NIXL); all local work goes on.",
    remedy:
      named === undefined || named === ""
        ? SETUP
        : `There is nothing at ${named}; name another library or unset KVFERRY_NIXL_LIBRARY`,
  };
  if (location === null) return [check("NIXL", false, false, "not found", absent)];
  const where = `${location.version ?? "unknown release"}, ${SOURCES[location.source]}: ${location.library}`;
  const probe = canTry ? await probeAgent(location.library) : NOT_TRIED;
  const plugins = nixlPlugins(location.library);
  return [
    check(
      "NIXL",
      false,
      probe.problem === null,
      probe.problem === null ? where : `${where}; ${probe.problem}`,
      {
        cost: absent.cost,
        remedy: `Look at OpenSSL 3 and the C++ runtime below; ${SETUP}${isClone() ? " --" : ""} --force fetches the tested release`,
      },
    ),
    check(
      "NIXL backends",
      false,
      plugins.includes("UCX"),
      plugins.length === 0
        ? "no plugins beside the library"
        : `${plugins.join(", ")} (files that are there${canTry ? "; UCX was tried" : ""})`,
      {
        cost: "Without UCX there are no transfers between processes.",
        remedy: `${SETUP}${isClone() ? " --" : ""} --force`,
      },
    ),
    ...(probe.problem === null && probe !== NOT_TRIED
      ? [
          check(
            "UCX",
            false,
            true,
            `${probe.version ?? "unknown release"}, transports to itself: ${probe.transports ?? "unknown"}`,
            {
              cost: "",
              remedy: "",
            },
          ),
        ]
      : []),
  ];
}

interface Probe {
  readonly problem: string | null;
  readonly version: string | null;
  readonly transports: string | null;
}

const NOT_TRIED: Probe = { problem: null, version: null, transports: null };

async function probeAgent(library: string): Promise<Probe> {
  const child = Bun.spawn([...moduleCommand("doctor-probe"), library], {
    env: { ...process.env, ...UCX_LOG_ENVIRONMENT },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: PROBE_MILLISECONDS,
    killSignal: "SIGKILL",
  });
  const log = splitUcxLog(child.stderr);
  const [words, code] = await Promise.all([new Response(child.stdout).text(), child.exited, log.ended]);
  const facts = log.facts();
  const transports = [...new Set(facts.endpoints.flatMap((endpoint) => endpoint.transports))].toSorted();
  return {
    problem: code === 0 ? null : problemOf(words, log.rest(), child.signalCode),
    version: facts.version,
    transports: transports.length === 0 ? null : transports.join(", "),
  };
}

function problemOf(words: string, complaints: string, signal: string | number | null): string {
  if (signal !== null) return `an agent did not come up (the probe ended with ${signal})`;
  const said = words.trim() !== "" ? words : complaints;
  const line = said.split("\n").find((one) => one.trim() !== "");
  return `an agent did not come up: ${line?.trim() ?? "the probe said nothing"}`;
}
