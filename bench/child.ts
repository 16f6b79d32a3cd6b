// A process of a bench: calls one exported function of a module and sends back what it gave.
process.once(
  "message",
  (call: { readonly module: string; readonly name: string; readonly parameters: unknown }) => {
    answer(call).then(
      (value) => finish({ value }),
      (error: unknown) =>
        finish({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) }),
    );
  },
);

async function answer(call: {
  readonly module: string;
  readonly name: string;
  readonly parameters: unknown;
}): Promise<unknown> {
  const exports: Readonly<Record<string, unknown>> = await import(call.module);
  const work = exports[call.name];
  if (typeof work !== "function") throw new Error(`${call.module} exports no function ${call.name}`);
  return await work(call.parameters);
}

function finish(message: unknown): void {
  process.send?.(message, undefined, {}, () => process.exit(0));
}
