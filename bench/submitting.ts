// What submitting a transfer takes, until the call returns.
import type { LocalLayout, Transport } from "../index.ts";
import { alternate } from "./processes.ts";
import { localTransport } from "./registering.ts";

/** Submissions of one sample. */
const TIMES = 200;
const BLOCKS = 64;

/** Transfers of one block, each another one. */
export interface Submissions {
  readonly source: LocalLayout;
  readonly destination: LocalLayout;
  /** Microseconds of a submission, the middle one of many. */
  readonly sample: () => Promise<number>;
}

/** Microseconds of a submission of one block. */
export async function submitting(samples: number, bytes: number): Promise<Record<string, number[]>> {
  await using transport = await localTransport(1n);
  const { sample } = await submissions(transport, bytes);
  return await alternate({ ours: sample }, samples, 20);
}

/** Readies two layouts whose blocks have so many bytes. */
export async function submissions(transport: Transport, blockBytes: number): Promise<Submissions> {
  const config = {
    numBlocks: BLOCKS,
    numLayers: 2,
    outerDim: 2,
    pageSize: 16,
    innerDim: blockBytes / 128,
  } as const;
  const source = await transport.register({ name: "source", config, memory: { kind: "system" } });
  const destination = await transport.register({ name: "destination", config, memory: { kind: "system" } });
  let block = 0;
  const submit = async (): Promise<number> => {
    const request = { source, destination, sourceBlocks: [block], destinationBlocks: [BLOCKS - 1 - block] };
    block = (block + 1) % BLOCKS;
    const start = Bun.nanoseconds();
    const transfer = transport.transfer(request);
    const spent = Bun.nanoseconds() - start;
    await transfer;
    return spent / 1e3;
  };
  const sample = async (): Promise<number> => {
    const taken: number[] = [];
    for (let time = 0; time < TIMES; time += 1) taken.push(await submit());
    return taken.toSorted((left, right) => left - right)[TIMES >> 1] ?? Number.NaN;
  };
  return { source, destination, sample };
}
