// Two layouts between which everything wrong is asked for.
import { expect } from "bun:test";
import type { LayoutSpec, LocalLayout, TransferRequest, Transport } from "../../../index.ts";
import { refused } from "./refusal.ts";
import { openLocal, systemSpec } from "./transports.ts";

/** Two layouts of one transport; closed at the end of the scope. */
export interface Bench extends AsyncDisposable {
  readonly transport: Transport;
  readonly source: LocalLayout;
  readonly destination: LocalLayout;
  /** Fails when any byte of the destination changed. */
  readonly untouched: () => void;
}

/** Registers the two layouts and fills them, the destination with 0xff. */
export async function bench(
  source: Partial<LayoutSpec> = {},
  destination: Partial<LayoutSpec> = {},
): Promise<Bench> {
  const transport = await openLocal();
  const specOf = (name: string, given: Partial<LayoutSpec>): LayoutSpec =>
    ("components" in given ? { name, ...given } : { ...systemSpec(name), ...given }) as LayoutSpec;
  const from = await transport.register(specOf("source", source));
  const to = await transport.register(specOf("destination", destination));
  for (const component of Object.values(from.components)) await component.fill(1);
  for (const component of Object.values(to.components)) await component.fill(0xff);
  return {
    transport,
    source: from,
    destination: to,
    untouched() {
      for (const component of Object.values(to.components))
        for (const bytes of component.bytes) expect(bytes.every((byte) => byte === 0xff)).toBe(true);
    },
    [Symbol.asyncDispose]: async () => void (await transport.close()),
  };
}

/** Every way in must refuse alike: the transfer, the plan, and (without lists) the prepared transfer. */
export async function refusedEverywhere(
  word: Parameters<typeof refused>[0],
  { transport, source, destination, untouched }: Bench,
  wrong: Partial<TransferRequest>,
): Promise<void> {
  const request = { source, destination, sourceBlocks: [0], destinationBlocks: [0], ...wrong };
  const transfer = transport.transfer(request);
  const error = await refused(word, transfer);
  expect(error.settlement).toBe("never-started");
  expect(transfer.state).toBe("failed");
  expect(await transfer.settled).toEqual({ settlement: "never-started", proof: "never-started" });
  await refused(word, () => transport.explain(request));
  untouched();
}
