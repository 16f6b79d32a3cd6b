import { test } from "bun:test";
import { findNixl } from "../../lib/native/find-nixl.ts";
import { exchange } from "./exchange.ts";
import { pythonClient } from "./python-peer.ts";

const library = findNixl();
const client = library === null ? { missing: "NIXL was not found" } : pythonClient("1.5.1");

if ("missing" in client) {
  test.skip(`NIXL's Python client as peer (not run: ${client.missing})`, () => undefined);
} else {
  test.each(["dynamo-1.0", "kvbm-physical-1"] as const)(
    "NIXL's Python client as peer by %s packages: wrong bytes in either direction, in any arrangement",
    (format) => exchange(client.paths, { format }),
    60_000,
  );
}
