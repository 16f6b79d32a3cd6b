// The stand-in for NIXL, which the process of the cases has loaded, and two transports over it.
import { dlopen } from "bun:ffi";
import {
  Transport,
  type LayoutConfig,
  type LocalLayout,
  type OpenOptions,
  type Peer,
  type RemoteLayout,
  type TransferRequest,
} from "../../../index.ts";
import { cString } from "../../../lib/native/c-string.ts";
import { freshWorker, systemSpec } from "./transports.ts";

const library = process.env["KVFERRY_NIXL_LIBRARY"] ?? "";
const { symbols } = dlopen(library, { standin_control: { args: ["ptr"], returns: "i32" } } as const);

/** Tells the stand-in what to do, and gives what it answers. */
export function standin(command: string): number {
  const answer = symbols.standin_control(cString(command));
  if (answer < 0) throw new Error(`the stand-in does not understand: ${command}`);
  return answer;
}

/** Makes the next call of a function fail. */
export const failNext = (name: string, code = -2): void => void standin(`fail ${name} 1 ${code}`);

export const CONFIG: LayoutConfig = { numBlocks: 8, numLayers: 4, outerDim: 2, pageSize: 16, innerDim: 64 };
export const OPTIONS: Omit<OpenOptions, "workerId"> = {
  cuda: false,
  neighbours: false,
  nixl: { backends: { UCX: {} }, library },
};
export const IDS: number[] = [0, 1, 2, 3];

export interface Meeting extends AsyncDisposable {
  readonly a: Transport;
  readonly b: Transport;
  readonly here: LocalLayout;
  readonly there: LocalLayout;
  readonly peer: Peer;
  readonly remote: RemoteLayout;
  /** The name of b's agent on the wire. */
  readonly wire: string;
}

export async function meet(): Promise<Meeting> {
  const a = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
  const b = await Transport.open({ ...OPTIONS, workerId: freshWorker() });
  const here = await a.register(systemSpec("here", CONFIG));
  const there = await b.register(systemSpec("there", CONFIG));
  await here.fill({ random: 1 });
  const peer = await a.importMetadata(await b.exportMetadata());
  await settled();
  return {
    a,
    b,
    here,
    there,
    peer,
    remote: peer.layout("there"),
    wire: peer.wireName,
    async [Symbol.asyncDispose]() {
      standin("reset");
      await a.close();
      await b.close();
    },
  };
}

/** Waits until what the two say to each other behind the scenes is said: it loads metadata too. */
export async function settled(): Promise<void> {
  for (let last = -1, now = 0; now !== last;) {
    last = standin("calls load_remote_md") + standin("calls gen_notif");
    await Bun.sleep(40);
    now = standin("calls load_remote_md") + standin("calls gen_notif");
  }
}

export const push = ({ here, remote }: Meeting): TransferRequest => ({
  source: here,
  destination: remote,
  sourceBlocks: IDS,
  destinationBlocks: IDS,
});
export const pull = ({ here, remote }: Meeting): TransferRequest => ({
  source: remote,
  destination: here,
  sourceBlocks: IDS,
  destinationBlocks: IDS,
});
