import { NixlExtents } from "./nixl-extents.ts";
import { nixlExecutor } from "./nixl-executor.ts";
import { openPeerSums } from "./peer-sums.ts";
import { PeersInNixl } from "./peers-in-nixl.ts";
import { openStaging } from "./staging.ts";

/** What a transport with an agent uses beside it. Without an agent none of it is loaded. */
export interface NixlParts {
  readonly nixlExecutor: typeof nixlExecutor;
  readonly NixlExtents: typeof NixlExtents;
  readonly PeersInNixl: typeof PeersInNixl;
  readonly openStaging: typeof openStaging;
  readonly openPeerSums: typeof openPeerSums;
}

export { NixlExtents, nixlExecutor, openPeerSums, openStaging, PeersInNixl };
