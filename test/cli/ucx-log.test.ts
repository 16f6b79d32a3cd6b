import { expect, test } from "bun:test";
import { parseUcxLog, splitUcxLog } from "../../lib/cli/ucx-log.ts";

const LOG = `[1.0] [vm:1 :0]     ucp_context.c:2753 UCX  INFO  Version 1.23.0 (loaded from /x/libucp.so.0.0.0, git branch <unknown>)
[1.1] [vm:1 :0]          rcache.c:1352 UCX  DIAG  rcache failed to install UCM event handler: Unsupported operation
[1.2] [vm:1 :0]      ucp_worker.c:1997 UCX  INFO    a self cfg#0 rma_am(tcp/lo)  am(tcp/lo)
[1.3] [vm:1 :0]      ucp_worker.c:1997 UCX  INFO    a intra-node cfg#1 rma_am(tcp/lo)  amo_am(tcp/lo)  am(tcp/lo cma/memory)  ka(tcp/lo)
`;

test("the lanes of every connection and UCX's release are read from its log", () => {
  const facts = parseUcxLog(LOG);
  expect(facts.version).toBe("1.23.0");
  expect(facts.endpoints.map((endpoint) => endpoint.scope)).toEqual(["self", "intra-node"]);
  expect(facts.endpoints[1]?.transports).toEqual(["cma/memory", "tcp/lo"]);
  expect(facts.endpoints[1]?.lanes).toBe("rma_am(tcp/lo)  amo_am(tcp/lo)  am(tcp/lo cma/memory)  ka(tcp/lo)");
});

test("an empty log claims nothing", () => {
  expect(parseUcxLog("")).toEqual({ version: null, endpoints: [] });
});

test("a stream that was cut anywhere gives the same facts, and every other line is handed on", async () => {
  const text = new TextEncoder().encode(`a warning of somebody else\n${LOG}[not] UCX\nthe end`);
  for (const size of [1, 7, 4_096]) {
    const stream = new ReadableStream<Uint8Array>({
      start: (controller) => {
        for (let at = 0; at < text.length; at += size) controller.enqueue(text.subarray(at, at + size));
        controller.close();
      },
    });
    const others: string[] = [];
    const log = splitUcxLog(stream, (line) => others.push(line));
    await log.ended;
    expect(log.facts()).toEqual(parseUcxLog(LOG));
    expect(others).toEqual(["a warning of somebody else", "[not] UCX", "the end"]);
    expect(log.rest()).toBe(others.join("\n"));
  }
});
