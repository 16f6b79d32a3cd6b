import { KvferryError } from "../core/errors.ts";
import type { Access, Attachment, ComponentShape, MemorySpec, Region, Storage } from "../core/layout.ts";
import type { NixlRegion } from "../native/agent.ts";
import type { MemoryFile } from "../native/memory.ts";

/** Where a component's regions lie, how they are reached, and who gives them back. */
export interface ComponentMemory {
  readonly storage: Storage;
  /** One address for each region; byte offsets for files. */
  readonly addresses: Float64Array;
  /** Bytes of each region. */
  readonly sizes: Float64Array;
  readonly attachment: Attachment;
  /** Device id under which NIXL knows the regions. */
  readonly nixlDevice: number;
  /** Runs that NIXL registers; empty for memory that another component brought or that NIXL cannot reach. */
  readonly nixl: readonly NixlPart[];
  /** How other processes of this host can map the regions; left out: they cannot. */
  readonly share?: SharedMemory;
  /** Gives back what was allocated for this component; adopted memory is only let go. Called once. */
  readonly release: () => void | Promise<void>;
}

/** How other processes of this host can map a component's regions. */
export type SharedMemory =
  /** Each region lies in files in memory that can no more shrink. */
  | { readonly kind: "files"; readonly regions: readonly SharedRegion[] }
  /** Each region lies in an allocation of this GPU, which its driver opens for other processes. */
  | { readonly kind: "device"; readonly device: number; readonly regions: readonly SharedDeviceRegion[] }
  /** They cannot. */
  | { readonly kind: "none"; readonly why: string };

/** A region of files in memory that are mapped one after the other. Bytes. */
export interface SharedRegion {
  readonly files: readonly MemoryFile[];
  /** In all of them together. */
  readonly offset: number;
  readonly size: number;
}

/** A region of GPU memory. */
export interface SharedDeviceRegion extends Region {
  /** The driver's handle that a third process gave for it, and the region's byte offset in what that opens. */
  readonly given?: { readonly handle: Uint8Array; readonly offset: number };
  /** The exportable allocation that it lies in: its driver gives descriptors of it, and no handles. */
  readonly exportable?: { readonly start: number; readonly bytes: number };
}

/** Runs of one memory type that NIXL registers together. */
export interface NixlPart {
  readonly memory: number;
  readonly regions: readonly NixlRegion[];
}

/** A component with the memory that its spec asks for. */
export interface ComponentRequest {
  readonly shape: ComponentShape;
  readonly memory: MemorySpec;
  /** Bytes that each region must have: the view's, and what components that share it need. */
  readonly regionBytes: number;
}

/** Facts about the layout that some kinds of memory need. */
export interface LayoutFacts {
  readonly name: string | null;
  readonly fingerprint: string | null;
  /** What peers may do. */
  readonly access: Access;
  /** Components whose memory goes to a neighbour with one message. */
  readonly components: readonly object[];
}

/**
 * Allocates or adopts the memory of one component. All or nothing. May answer at once, so that registering plain
 * host memory needs no turn of the event loop.
 */
export type MemoryProvider = (
  request: ComponentRequest,
  provided: ReadonlyMap<string, ComponentMemory>,
  layout: LayoutFacts,
) => ComponentMemory | Promise<ComponentMemory>;

/** A provider whose code is loaded when a layout first asks for its kind of memory: most programs use one or two. */
export function loadedOnDemand(load: () => Promise<MemoryProvider>): MemoryProvider {
  let loading: Promise<MemoryProvider> | undefined;
  return async (request, provided, layout) => {
    loading ??= load();
    return await (
      await loading
    )(request, provided, layout);
  };
}

/** Providers by memory kind; a kind that is missing is refused with its reason. */
export type MemoryProviders = Readonly<Partial<Record<MemorySpec["kind"], MemoryProvider>>>;

/** The memory of one layout, in the order of its components. */
export interface LayoutMemory {
  readonly components: readonly ComponentMemory[];
  readonly nixl: readonly NixlPart[];
  release(): Promise<void>;
}

/**
 * Provides the memory of a layout's components. What was provided before a failure is given back.
 *
 * @throws KvferryError `OUT_OF_MEMORY`, `INVALID_CONFIG`, `NO_CUDA`, `IO`, `NO_ROUTE` for a kind that this process
 * does not have.
 */
export function provideMemory(
  providers: MemoryProviders,
  requests: readonly ComponentRequest[],
  layout: LayoutFacts,
): LayoutMemory | Promise<LayoutMemory> {
  if (requests.length === 1) return provideOne(providers, requests, layout);
  const provided = new Map<string, ComponentMemory>();
  // Components that lie in another one's allocation come after it.
  const ordered = requests.toSorted(
    (a, b) => Number(a.memory.kind === "shared") - Number(b.memory.kind === "shared"),
  );
  for (const [index, request] of ordered.entries()) {
    try {
      const memory = provide(providers, request, provided, layout);
      if (memory instanceof Promise)
        return provideRest(providers, ordered, index, memory, provided, layout, requests);
      provided.set(request.shape.name, memory);
    } catch (error) {
      void releaseAll(provided.values());
      throw error;
    }
  }
  return assemble(requests, provided);
}

/** Most layouts have one component: theirs costs no more than it must, for there may be many. */
function provideOne(
  providers: MemoryProviders,
  [request]: readonly ComponentRequest[],
  layout: LayoutFacts,
): LayoutMemory | Promise<LayoutMemory> {
  if (request === undefined) throw missingComponent("kv");
  const memory = provide(providers, request, NOBODY, layout);
  return memory instanceof Promise ? memory.then((late) => new OneMemory(late)) : new OneMemory(memory);
}

const NOBODY: ReadonlyMap<string, ComponentMemory> = new Map();

class OneMemory implements LayoutMemory {
  readonly #memory: ComponentMemory;

  constructor(memory: ComponentMemory) {
    this.#memory = memory;
  }

  get components(): readonly ComponentMemory[] {
    return [this.#memory];
  }

  get nixl(): readonly NixlPart[] {
    return this.#memory.nixl;
  }

  async release(): Promise<void> {
    await this.#memory.release();
  }
}

async function provideRest(
  providers: MemoryProviders,
  ordered: readonly ComponentRequest[],
  from: number,
  pending: Promise<ComponentMemory>,
  provided: Map<string, ComponentMemory>,
  layout: LayoutFacts,
  requests: readonly ComponentRequest[],
): Promise<LayoutMemory> {
  try {
    for (const [index, request] of ordered.entries()) {
      if (index < from) continue;
      provided.set(
        request.shape.name,
        await (index === from ? pending : provide(providers, request, provided, layout)),
      );
    }
  } catch (error) {
    await releaseAll(provided.values());
    throw error;
  }
  return assemble(requests, provided);
}

function provide(
  providers: MemoryProviders,
  request: ComponentRequest,
  provided: ReadonlyMap<string, ComponentMemory>,
  layout: LayoutFacts,
): ComponentMemory | Promise<ComponentMemory> {
  const provider = providers[request.memory.kind];
  if (provider === undefined) throw missingKind(request);
  return provider(request, provided, layout);
}

function assemble(
  requests: readonly ComponentRequest[],
  provided: ReadonlyMap<string, ComponentMemory>,
): LayoutMemory {
  const components = requests.map(({ shape }) => provided.get(shape.name) ?? missingComponent(shape.name));
  return {
    components,
    nixl: components.flatMap((component) => component.nixl),
    release: () => releaseAll(components),
  };
}

async function releaseAll(components: Iterable<ComponentMemory>): Promise<void> {
  for (const component of components) await component.release();
}

const CUDA_KINDS: ReadonlySet<MemorySpec["kind"]> = new Set(["pinned", "device", "external-ipc"]);

function missingKind({ shape, memory }: ComponentRequest): KvferryError {
  const cuda = CUDA_KINDS.has(memory.kind);
  return new KvferryError(
    cuda ? "NO_CUDA" : "NO_ROUTE",
    "register",
    `component ${shape.name}: ${memory.kind} memory ${cuda ? "needs a CUDA driver and a GPU" : "is not available in this process"}`,
    "Run `kvferry doctor` to see what this machine has; system memory always works.",
    { component: shape.name, kind: memory.kind },
  );
}

function missingComponent(name: string): never {
  throw new KvferryError(
    "INVALID_CONFIG",
    "register",
    `component ${name} has no memory`,
    "This is a defect: please report the spec.",
    { name },
  );
}
