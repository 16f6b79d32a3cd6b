// Opens a transport with the NIXL library of the last argument, in a process of its own, and leaves.
import { Transport } from "../../index.ts";

try {
  const transport = await Transport.open({
    workerId: 1n,
    agentName: "doctor",
    nixl: { library: process.argv.at(-1) ?? "", backends: { UCX: {} } },
    cuda: false,
    neighbours: false,
  });
  await transport.close();
} catch (error) {
  process.stdout.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
