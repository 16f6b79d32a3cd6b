/** A program that takes a command a line and answers each with a line of JSON. */
export class LineProcess implements AsyncDisposable {
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #lines: AsyncGenerator<string, void, undefined>;
  readonly #name: string;

  constructor(command: readonly string[], environment: Readonly<Record<string, string>> = {}) {
    this.#name = command.slice(0, 2).join(" ");
    this.#child = Bun.spawn([...command], {
      env: { ...process.env, ...environment },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#lines = linesOf(this.#child.stdout);
  }

  /** The next line that it prints. */
  async next<Value>(): Promise<Value> {
    const line = await this.#lines.next();
    if (line.done === true) throw new Error(`${this.#name} ended with status ${await this.#child.exited}`);
    return JSON.parse(line.value) as Value;
  }

  async ask<Value>(command: string): Promise<Value> {
    this.#child.stdin.write(`${command}\n`);
    await this.#child.stdin.flush();
    return await this.next<Value>();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5_000);
    await this.#child.exited;
    clearTimeout(timer);
  }
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
