import { KvferryError } from "../core/errors.ts";

/** Variables of a process. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** A Python whose pip can be called. */
export interface Pip {
  readonly python: string;
  /** pip 25.1 and later resume a download that broke off. */
  readonly resumes: boolean;
}

/**
 * The first Python that has pip, and whether that pip can resume a download (25.1 and later).
 *
 * @param wheel - Name of the file that pip is wanted for, for the words of a refusal.
 */
export function findPip(given: string | undefined, environment: Environment, wheel: string): Pip {
  const offline = `fetch ${wheel} elsewhere and give it with --wheel FILE`;
  const candidates = given === undefined || given === "" ? ["python3", "python"] : [given];
  const withoutPip: string[] = [];
  for (const python of candidates) {
    const run = spawnQuietly([python, "-m", "pip", "--version"], environment);
    if (run === null) continue;
    const version = /^pip (\d+)\.(\d+)/.exec(run.text);
    if (run.code === 0 && version !== null) {
      const release = Number(version[1]) * 100 + Number(version[2]);
      return { python, resumes: release >= 2501 };
    }
    withoutPip.push(python);
  }
  const python = withoutPip[0];
  if (python !== undefined)
    throw new KvferryError(
      "NO_NIXL",
      "setup",
      `${python} has no pip, which setup fetches NIXL with.`,
      `Install it (Debian, Ubuntu: sudo apt-get install python3-pip; Fedora: sudo dnf install python3-pip; elsewhere: ${python} -m ensurepip --user), name another Python with KVFERRY_PYTHON, or ${offline}.`,
      { python },
    );
  throw new KvferryError(
    "NO_NIXL",
    "setup",
    `There is no Python (${candidates.join(", ")}) on the PATH, which setup fetches NIXL with.`,
    `Install Python 3 with pip (Debian, Ubuntu: sudo apt-get install python3-pip), name one with KVFERRY_PYTHON, or ${offline}.`,
    { candidates },
  );
}

function spawnQuietly(
  command: string[],
  environment: Environment,
): { readonly code: number; readonly text: string } | null {
  try {
    const run = Bun.spawnSync(command, {
      env: { ...environment },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    return { code: run.exitCode, text: run.stdout.toString() };
  } catch {
    return null;
  }
}

/** Runs a pip command and keeps its words. `progress` receives those that tell a user something. */
export async function runPip(
  command: string[],
  environment: Environment,
  progress: (line: string) => void,
): Promise<{ readonly ok: boolean; readonly text: string }> {
  // On a terminal pip draws its own bar; its words belong on standard error with all other progress.
  const bar = process.stderr.isTTY === true;
  const child = Bun.spawn(command, {
    env: { ...environment, PYTHONUNBUFFERED: "1" },
    stdin: "ignore",
    stdout: bar ? 2 : "pipe",
    stderr: "pipe",
  });
  const lines: string[] = [];
  const drain = async (
    stream: ReadableStream<Uint8Array> | undefined | number,
    say: boolean,
  ): Promise<void> => {
    if (stream === undefined || typeof stream === "number") return;
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of stream) {
      const parts = (rest + decoder.decode(chunk, { stream: true })).split(/[\r\n]+/);
      rest = parts.pop() ?? "";
      for (const line of parts) {
        lines.push(line);
        if (say && /^(Downloading| +Downloading|Saved)/.test(line)) progress(`pip: ${line.trim()}`);
      }
    }
    if (rest !== "") lines.push(rest);
  };
  const [code] = await Promise.all([child.exited, drain(child.stdout, true), drain(child.stderr, false)]);
  return { ok: code === 0, text: lines.join("\n") };
}

/** The line of pip's output that says most about a failure. */
export function lastLine(text: string): string {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  return (lines.findLast((line) => /error/i.test(line)) ?? lines.at(-1) ?? "no output").trim();
}
