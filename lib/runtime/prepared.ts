import type { TransferPlan } from "../core/plan.ts";
import type { PreparedPair } from "../core/prepare.ts";
import type { RegistrySnapshot } from "../core/registry.ts";
import type { BlockSelection, PlanRequest } from "../core/request.ts";
import type { LayoutNames, Planning } from "./planning.ts";
import { planRequest, type PrepareRequest, type TransferOptions } from "./submit.ts";
import type { Submitter } from "./submitter.ts";
import type { Transfer } from "./transfer.ts";

/** Options of one run of a prepared transfer. */
export type RunOptions = Pick<
  TransferOptions,
  "notify" | "after" | "signal" | "deadlineMs" | "stream" | "streamWaits" | "waitEvents"
>;

/**
 * A transfer between two layouts that was checked and planned once; only block ids change from run to run.
 *
 * It rebuilds itself when a layout's registry entry changed (a peer came back), and holds nothing.
 */
export class PreparedTransfer {
  readonly #planning: Planning;
  readonly #submitter: Submitter;
  readonly #request: PlanRequest;
  readonly #options: TransferOptions;
  readonly #names: LayoutNames;
  #prepared: PreparedPair;
  #snapshot: RegistrySnapshot;

  /** @internal */
  constructor(planning: Planning, submitter: Submitter, request: PrepareRequest) {
    this.#planning = planning;
    this.#submitter = submitter;
    this.#options = request;
    const asked = planRequest({ ...request, sourceBlocks: [], destinationBlocks: [] });
    this.#names = {
      source: planning.identity(asked.source),
      destination: planning.identity(asked.destination),
    };
    this.#request = asked;
    this.#snapshot = planning.snapshot;
    this.#prepared = planning.prepare(asked);
  }

  /** Moves blocks; what `Transport.transfer` says holds here too. */
  run(sourceBlocks: BlockSelection, destinationBlocks: BlockSelection, options: RunOptions = {}): Transfer {
    const source = this.#submitter.copyIds(sourceBlocks);
    const destination = this.#submitter.copyIds(destinationBlocks);
    return this.#submitter.planned({ ...this.#options, ...options }, { source, destination }, () =>
      this.#plan(source, destination),
    );
  }

  #plan(source: BlockSelection, destination: BlockSelection): TransferPlan {
    const now = this.#planning.snapshot;
    if (now !== this.#snapshot) {
      this.#prepared = this.#planning.prepare(this.#planning.renew(this.#request, this.#names));
      this.#snapshot = now;
    }
    return this.#planning.planPrepared(this.#prepared, source, destination);
  }
}
