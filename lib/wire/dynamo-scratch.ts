/** The places of the seven integers of a layout's config, in wire order. */
export const CONFIG_FIELDS = [
  "num_blocks",
  "num_layers",
  "outer_dim",
  "page_size",
  "inner_dim",
  "alignment",
  "dtype_width_bytes",
] as const;

/** What stands before the layouts of a package. */
export interface DynamoHeader {
  readonly workerId: bigint;
  readonly agentName: string;
  /** Where the name's bytes lie, to compare the layouts' names without decoding them. */
  readonly agentAt: number;
  readonly agentLength: number;
  readonly blobAt: number;
  readonly blobLength: number;
  readonly layoutCount: number;
  /** The regions that all layouts together may have. */
  readonly mostRegions: number;
}

/**
 * One layout as it stands in the bytes, in fields that are overwritten by the next: what is refused later never cost
 * an object. Integers of 64 bits are pairs of words, low first.
 */
export interface LayoutScratch {
  /** Offset of the layout, and of what follows it. */
  at: number;
  end: number;
  handle0: number;
  handle1: number;
  handle2: number;
  handle3: number;
  /** -1 in dynamo-1.0. */
  logicalType: number;
  version: number;
  /** Where the bytes of the config stand that the fields below were read from; length 0 for none. */
  configAt: number;
  configLength: number;
  /** Counts the configs that were read anew: the same number means the same config. */
  configReading: number;
  /** {@link CONFIG_FIELDS}, two words each. */
  readonly config: Uint32Array;
  /** Variant in dynamo-1.0, -1 else. */
  innerShape: number;
  headsKnown: boolean;
  heads0: number;
  heads1: number;
  location: number;
  location0: number;
  location1: number;
  agentAt: number;
  agentLength: number;
  /** Whether the layout's agent is the worker's, whose name stands at `workerAt`. */
  ownAgent: boolean;
  workerAt: number;
  workerLength: number;
  workerName: string;
  memoryType: number;
  device0: number;
  device1: number;
  regionsAt: number;
  regionCount: number;
  /** The regions, `regionCount` of them; whether one passes 2^53, and is only known to be that large. */
  addresses: Float64Array;
  sizes: Float64Array;
  wideAddress: boolean;
  wideSize: boolean;
  /** Regions that the package may still have. */
  regionsLeft: number;
  /** 0 fully contiguous, 1 layer separate. */
  details: number;
  /** Block format or block dimension. */
  sub: number;
  /** Variant in kvbm-physical-1, -1 else. */
  kvLayout: number;
  /** Four axes of a custom block layout, two bits each, first lowest. */
  custom: number;
  /** `details`, `sub`, `kvLayout` and `custom` in one number. */
  form: number;
}

/** A fresh scratch layout for a package with that header. */
export function newScratch(header: DynamoHeader): LayoutScratch {
  return {
    at: 0,
    end: 0,
    handle0: 0,
    handle1: 0,
    handle2: 0,
    handle3: 0,
    logicalType: -1,
    version: 0,
    configAt: 0,
    configLength: 0,
    configReading: 0,
    config: new Uint32Array(2 * CONFIG_FIELDS.length),
    innerShape: -1,
    headsKnown: false,
    heads0: 0,
    heads1: 0,
    location: 0,
    location0: 0,
    location1: 0,
    agentAt: 0,
    agentLength: 0,
    ownAgent: false,
    workerAt: header.agentAt,
    workerLength: header.agentLength,
    workerName: header.agentName,
    memoryType: 0,
    device0: 0,
    device1: 0,
    regionsAt: 0,
    regionCount: 0,
    addresses: new Float64Array(FEW_REGIONS),
    sizes: new Float64Array(FEW_REGIONS),
    wideAddress: false,
    wideSize: false,
    regionsLeft: header.mostRegions,
    details: 0,
    sub: 0,
    kvLayout: -1,
    custom: 0,
    form: 0,
  };
}

const FEW_REGIONS = 128;
