// What the examples share: a child process that answers questions. Applications have their own channels between
// processes (HTTP, a message bus, ...): kvferry needs one only to carry metadata, which is a byte array.

/** A child process that runs the same program with other arguments. */
export interface Child {
  /** Sends a message and gives the answer to it. */
  ask<Answer>(message: object): Promise<Answer>;
  /** Ends the child and waits until it is gone. */
  end(): Promise<void>;
}

/** Starts a program as a child, in the role that its first argument says. */
export function startChild(program: string, ...args: readonly string[]): Child {
  const waiting: PromiseWithResolvers<unknown>[] = [];
  const child = Bun.spawn([process.execPath, program, ...args], {
    serialization: "advanced",
    stdio: ["ignore", "inherit", "inherit"],
    ipc: (answer: { readonly value?: unknown; readonly error?: string }) => {
      const next = waiting.shift();
      if (answer.error === undefined) next?.resolve(answer.value);
      else next?.reject(new Error(answer.error));
    },
    onExit: (_child, code) => {
      for (const one of waiting) one.reject(new Error(`the child ended with status ${code}`));
    },
  });
  return {
    ask: async <Answer>(message: object): Promise<Answer> => {
      const answer = Promise.withResolvers<unknown>();
      waiting.push(answer);
      child.send(message);
      return (await answer.promise) as Answer;
    },
    end: async () => {
      child.disconnect();
      await child.exited;
    },
  };
}

/** Answers the parent's messages one after the other, until the parent hangs up. */
export async function answerParent<Message>(answer: (message: Message) => Promise<unknown>): Promise<void> {
  let previous: Promise<unknown> = Promise.resolve();
  const ended = Promise.withResolvers<void>();
  process.on("disconnect", () => ended.resolve());
  process.on("message", (message: Message) => {
    previous = previous.then(async () => {
      try {
        process.send?.({ value: await answer(message) });
      } catch (error) {
        process.send?.({ error: error instanceof Error ? error.message : String(error) });
      }
    });
  });
  await ended.promise;
}
