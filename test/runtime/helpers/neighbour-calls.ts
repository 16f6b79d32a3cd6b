// What a test asks of a process that plays a neighbour. Everything travels as structured clones.
import type { LayoutSpec, OpenOptions } from "../../../index.ts";
import type { FileCut } from "../../../lib/runtime/neighbour-memory.ts";

/** A call to the process of fixtures/neighbour.ts. */
export type NeighbourCall =
  | {
      readonly do: "open";
      readonly options: Partial<OpenOptions>;
      readonly user?: number;
      /** How memory is cut into files; left out: as usual. */
      readonly cut?: FileCut;
    }
  | { readonly do: "register"; readonly specs: readonly LayoutSpec[] }
  | { readonly do: "export"; readonly layouts?: readonly string[]; readonly audience?: readonly bigint[] }
  | { readonly do: "import"; readonly bytes: Uint8Array }
  | { readonly do: "update"; readonly bytes: Uint8Array }
  | { readonly do: "forget" }
  | { readonly do: "fill"; readonly layout: string; readonly seed: number }
  | { readonly do: "sums"; readonly layout: string; readonly blocks: readonly number[] }
  | { readonly do: "transfer"; readonly move: NeighbourMove }
  /** Copies both ways until the process ends; answers after the first copy. */
  | { readonly do: "storm"; readonly move: NeighbourMove }
  | { readonly do: "notify"; readonly text: string }
  | { readonly do: "next" }
  /** Takes so many messages; answers with what they were. */
  | { readonly do: "hear"; readonly count: number }
  /**
   * Takes so many messages, `block layer byte` each, and looks at once whether the last byte of that block's layer is that
   * byte; answers how often it was.
   */
  | { readonly do: "look"; readonly layout: string; readonly count: number }
  | { readonly do: "unregister"; readonly layout: string; readonly wait: boolean }
  | { readonly do: "close" };

/** A transfer between a layout of the process and one of its peer. */
export interface NeighbourMove {
  readonly own: string;
  readonly peers: string;
  readonly direction: "push" | "pull";
  readonly ids: readonly number[];
  readonly notify?: string;
}

/** How a peer's layouts are reached, by name. */
export type Distances = Readonly<Record<string, string>>;
