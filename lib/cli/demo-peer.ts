// The second process of `kvferry demo`: does what the first one asks for over IPC and leaves with it.
import { openDemoAgent } from "./demo-agent.ts";
import type { DemoAgent, DemoDistance } from "./demo-agent.ts";
import type { DemoAnswer, DemoCall } from "./demo-channel.ts";
import { errorData } from "./output.ts";

let agent: DemoAgent | undefined;

async function perform(call: DemoCall): Promise<unknown> {
  if (call.method === "open") {
    // The caller's side of the channel is typed by the same interface.
    agent = await openDemoAgent("b", call.parameters[0] as DemoDistance);
    return undefined;
  }
  if (agent === undefined) throw new Error("the agent was not opened");
  // The caller's side of the channel is typed by the same interface.
  const method = agent[call.method] as (...parameters: readonly unknown[]) => Promise<unknown>;
  return await method(...call.parameters);
}

process.on("message", (call: DemoCall) => {
  perform(call).then(
    (value) => process.send?.({ id: call.id, value } satisfies DemoAnswer),
    (error: unknown) => process.send?.({ id: call.id, error: plain(errorData(error)) } satisfies DemoAnswer),
  );
});
process.on("disconnect", () => process.exit(0));

/** Details may hold what cannot be cloned; for a message their JSON is enough. */
function plain(error: Record<string, unknown>): Record<string, unknown> {
  const text = JSON.stringify(error, (_key, value: unknown) =>
    typeof value === "bigint" ? value.toString() : value,
  );
  return JSON.parse(text) as Record<string, unknown>;
}
