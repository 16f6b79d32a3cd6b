import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../../lib/native/find-nixl.ts";

/** Shape of a layout as the Python peer knows it. */
export interface PeerConfig {
  readonly kind: "fc" | "ls-first" | "ls-second";
  readonly numBlocks: number;
  readonly numLayers: number;
  readonly outerDim: 1 | 2;
  readonly pageSize: number;
  readonly innerDim: number;
  readonly alignment: number;
  readonly width: number;
}

/** Releases of NIXL that peers are tried with. */
export const PEER_VERSIONS = ["1.5.1", "1.4.1", "1.3.2"] as const;

const NUMPY_VERSION = "2.2.6";

/**
 * Makes NIXL's Python client of one release ready.
 *
 * @returns Its import directories, or why it cannot be had.
 */
export function pythonClient(
  version: string,
): { readonly paths: readonly string[] } | { readonly missing: string } {
  const root = join(cacheDirectory(), "python");
  try {
    return { paths: [installed(root, "nixl-cu12", version), installed(root, "numpy", NUMPY_VERSION)] };
  } catch (error) {
    return { missing: error instanceof Error ? error.message : String(error) };
  }
}

/** A directory with the shared libraries of a release, for a kvferry process that runs on it. */
export function nixlLibraryOf(paths: readonly string[]): string {
  const root = paths[0] ?? "";
  const directory = readdirSync(root).find((name) => /^\.nixl_cu12\.mesonpy\.libs$/.test(name)) ?? "";
  return join(root, directory, "libnixl_capi.so");
}

/** A Python process with a NIXL agent of its own, spoken to by one JSON object a line. */
export class PythonPeer implements AsyncDisposable {
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncGenerator<string, void, undefined>;

  private constructor(child: Bun.Subprocess<"pipe", "pipe", "inherit">) {
    this.#child = child;
    this.#lines = linesOf(child.stdout);
  }

  /** Starts the process. It must be sent `open` first. */
  static start(paths: readonly string[]): PythonPeer {
    const child = Bun.spawn(["python3", join(import.meta.dir, "peer.py"), "nixl_cu12"], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
      env: {
        ...process.env,
        PYTHONPATH: paths.join(":"),
        NIXL_LOG_LEVEL: "FATAL",
        UCX_LOG_LEVEL: "fatal",
        UCX_MEM_EVENTS: "n",
        ...(process.env["KVFERRY_TEST_PEER_TLS"] === undefined
          ? undefined
          : { UCX_TLS: process.env["KVFERRY_TEST_PEER_TLS"] }),
      },
    });
    return new PythonPeer(child);
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Sends a command and awaits its answer. */
  async call<T>(name: string, ...parameters: readonly unknown[]): Promise<T> {
    this.#child.stdin.write(`${JSON.stringify({ do: name, with: parameters })}\n`);
    await this.#child.stdin.flush();
    const line = await this.#lines.next();
    if (line.done === true) throw new Error(`the Python peer ended during ${name}`);
    const answer = JSON.parse(line.value) as { ok?: T; error?: string };
    if (answer.error !== undefined) throw new Error(`${name}: ${answer.error}`);
    return answer.ok as T;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end();
    const timer = setTimeout(() => this.#child.kill(9), 5000);
    await this.#child.exited;
    clearTimeout(timer);
  }
}

function installed(root: string, name: string, version: string): string {
  const target = join(root, `${name}-${version}`);
  if (existsSync(target)) return target;
  mkdirSync(root, { recursive: true });
  const part = `${target}.${process.pid}`;
  const result = Bun.spawnSync(
    [
      "python3",
      "-m",
      "pip",
      "install",
      "-q",
      "--disable-pip-version-check",
      "--no-deps",
      "--only-binary=:all:",
      "--target",
      part,
      `${name}==${version}`,
    ],
    { stderr: "pipe" },
  );
  if (result.exitCode !== 0) {
    rmSync(part, { recursive: true, force: true });
    throw new Error(
      `pip could not install ${name} ${version}: ${result.stderr.toString().trim().split("\n").at(-1) ?? ""}`,
    );
  }
  try {
    renameSync(part, target);
  } catch {
    // Somebody else was quicker; theirs is as good.
    rmSync(part, { recursive: true, force: true });
  }
  return target;
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    const parts = rest.split("\n");
    rest = parts.pop() ?? "";
    yield* parts;
  }
}
