import { check } from "./doctor-checks.ts";
import type { DoctorCheck } from "./doctor-checks.ts";

/** Tries it: one transport exports memory, another one imports and maps it, and moves bytes. */
export async function neighbourCheck(): Promise<DoctorCheck> {
  const found = await tryNeighbours().catch((error: unknown) =>
    error instanceof Error ? error.message : String(error),
  );
  return check("neighbours", false, found === null, found ?? "memory of another process can be mapped", {
    cost: "Processes of this host reach each other through NIXL: many small blocks move a hundred times slower.",
    remedy:
      "Linux 5.1 or later with memfd_create and local sockets allowed; for processes in containers, shared pid, ipc and network namespaces",
  });
}

/** Null when all went well, else what did not. */
async function tryNeighbours(): Promise<string | null> {
  const { Transport } = await import("../../index.ts");
  const open = (workerId: bigint): ReturnType<typeof Transport.open> =>
    Transport.open({ workerId, nixl: false, cuda: false });
  await using here = await open(1n);
  await using there = await open(2n);
  const spec = {
    config: { numBlocks: 2, numLayers: 1, outerDim: 1, pageSize: 1, innerDim: 512 },
    memory: { kind: "system" },
  } as const;
  const own = await here.register({ ...spec, name: "own" });
  const theirs = await there.register({ ...spec, name: "theirs", access: "read-write" });
  await own.fill(7);
  const peer = await here.importMetadata(await there.exportMetadata());
  const remote = peer.layout("theirs");
  const { attachment } = remote.record.components[0] ?? {};
  if (remote.distance !== "neighbour")
    return attachment !== undefined && "unmapped" in attachment
      ? (attachment.unmapped ?? "memory was not mapped")
      : "memory was not mapped";
  await here.transfer({ source: own, destination: remote, sourceBlocks: [0], destinationBlocks: [1] });
  return (await theirs.read(1)).every((byte) => byte === 7) ? null : "bytes that were moved did not arrive";
}
