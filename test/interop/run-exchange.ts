import { exchange } from "./exchange.ts";
import { nixlLibraryOf, pythonClient } from "./python-peer.ts";

/** One pair of releases in a process of its own: NIXL is loaded once for a process. Arguments: ours, the peer's. */
const [ours = "", theirs = ""] = process.argv.slice(2);
const here = pythonClient(ours);
const there = pythonClient(theirs);
if ("missing" in here) throw new Error(here.missing);
if ("missing" in there) throw new Error(there.missing);
await exchange(there.paths, { nixl: { library: nixlLibraryOf(here.paths) } });
console.log(`${ours} with a peer on ${theirs}: verified`);
