// A second process that a bench gives calls to and takes answers from: the parent's side, and the process's own.

/** What a call is answered with. */
interface Answer {
  readonly value?: unknown;
  readonly error?: string;
}

/** A process, from its parent: calls are answered in order. */
export class FarProcess<Call extends { readonly do: string }> implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #answers: ((answer: Answer) => void)[] = [];

  /**
   * @param module - Absolute path of a module that calls {@link serve}.
   * @param environment - Variables to add.
   */
  constructor(module: string, environment: Readonly<Record<string, string>> = {}) {
    this.#child = Bun.spawn([process.execPath, module], {
      env: { ...process.env, ...environment },
      stdin: "ignore",
      stdout: 2,
      stderr: "inherit",
      serialization: "advanced",
      ipc: (message: Answer) => this.#answers.shift()?.(message),
      onExit: () => {
        for (const answer of this.#answers.splice(0)) answer({ error: "the process ended" });
      },
    });
  }

  async call<Value>(request: Call): Promise<Value> {
    const { promise, resolve } = Promise.withResolvers<Answer>();
    this.#answers.push(resolve);
    this.#child.send(request);
    const answer = await promise;
    if (answer.error !== undefined) throw new Error(`${request.do} at the far side: ${answer.error}`);
    return answer.value as Value; // as the process's `answer` gives for each call
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.disconnect();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 5_000);
    await this.#child.exited;
    clearTimeout(timer);
  }
}

/** Answers the parent's calls until it lets go, then closes and ends the process. */
export function serve<Call>(answer: (call: Call) => Promise<unknown>, close: () => Promise<unknown>): void {
  process.on("message", (call: Call) => {
    answer(call).then(
      (value) => process.send?.({ value }),
      (error: unknown) => process.send?.({ error: error instanceof Error ? error.message : String(error) }),
    );
  });
  process.once("disconnect", () => {
    void close().finally(() => process.exit(0));
  });
}
