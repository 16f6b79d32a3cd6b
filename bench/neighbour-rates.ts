// Small messages to a neighbour, as many as go: by the ring in shared memory, and by the socket alone. Both processes speak
// without a transport, for a transport always takes the ring.
import { NativeContext } from "../lib/native/context.ts";
import { openLibrary } from "../lib/native/library.ts";
import { NeighbourSockets } from "../lib/native/neighbour.ts";
import { FarProcess, serve } from "./far-process.ts";
import { alternate } from "./processes.ts";

/** Messages of one sample. */
export const MESSAGES = 20_000;

/** Bytes of each. */
export const MESSAGE_BYTES = 64;

const ONE_BYTE = new Uint8Array(new ArrayBuffer(1));

interface RateCall {
  readonly do: "listen";
  readonly name: string;
}

/** Samples of messages a second, from JavaScript to JavaScript. */
export async function rates(samples: number): Promise<Record<string, number[]>> {
  const name = `kvferry-bench-${process.pid}`;
  await using far = new FarProcess<RateCall>(import.meta.path);
  await far.call({ do: "listen", name });
  const end = openEnd();
  const heard = (): Promise<void> => new Promise((resolve) => (end.heard = () => resolve()));
  const connect = async (): Promise<number> => {
    const welcome = heard();
    const connection = end.sockets.connect(name)?.connection ?? 0;
    await welcome;
    return connection;
  };
  const [ring, socket] = [await connect(), await connect()];
  end.sockets.ring(ring, true);
  const message = new Uint8Array(new ArrayBuffer(MESSAGE_BYTES));
  const rate = async (connection: number): Promise<number> => {
    const answer = heard();
    const begun = Bun.nanoseconds();
    for (let count = 0; count < MESSAGES; count += 1) end.sockets.send(connection, message);
    await answer;
    return (MESSAGES / (Bun.nanoseconds() - begun)) * 1e6;
  };
  try {
    return await alternate({ ours: () => rate(ring), socket: () => rate(socket) }, samples);
  } finally {
    end.close();
  }
}

interface End {
  readonly sockets: NeighbourSockets;
  /** Called for each message. */
  heard: ((connection: number) => void) | undefined;
  close(): void;
}

function openEnd(): End {
  const context = NativeContext.open(openLibrary(), 64);
  const sockets = NeighbourSockets.open(context);
  const end: End = {
    sockets,
    heard: undefined,
    close: () => {
      sockets.close();
      context.close(1_000);
    },
  };
  context.onNotifications = () => {
    for (const event of sockets.take()) {
      if (event.kind === "accepted") {
        // Which of both connections goes by a ring is the other end's to say.
        sockets.ring(event.connection, false);
        sockets.send(event.connection, ONE_BYTE);
      } else if (event.kind === "message") end.heard?.(event.connection);
    }
  };
  context.holdProcess(true);
  return end;
}

/** The far side: answers once all messages of a sample have come. */
function countMessages(): void {
  const end = openEnd();
  const counts = new Map<number, number>();
  end.heard = (connection) => {
    const count = (counts.get(connection) ?? 0) + 1;
    counts.set(connection, count % MESSAGES);
    if (count === MESSAGES) end.sockets.send(connection, ONE_BYTE);
  };
  serve<RateCall>(
    async ({ name }) => end.sockets.listen(name),
    async () => end.close(),
  );
}

if (import.meta.main) countMessages();
