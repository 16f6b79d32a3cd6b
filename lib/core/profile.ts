/** A measured rate: rows (or transfers) of `bytes` bytes move at `gigabytesPerSecond`. */
export interface RatePoint {
  readonly bytes: number;
  readonly gigabytesPerSecond: number;
}

/**
 * What a machine can do, as plain data. GB/s are 10^9 bytes per second, each byte counted once.
 *
 * The shipped defaults are measured figures of ordinary machines; a calibration run replaces them.
 */
export interface MachineProfile {
  readonly name: string;
  readonly host: HostProfile;
  readonly nixl: NixlProfile;
  readonly cuda: CudaProfile;
  readonly file: FileProfile;
}

/** Host copies. */
export interface HostProfile {
  /** One thread, out of cache, by row size, rising. */
  readonly plain: readonly RatePoint[];
  readonly nontemporal: readonly RatePoint[];
  /** One thread and plain stores, source and destination in cache. */
  readonly cached: readonly RatePoint[];
  /** Bandwidth of 1, 2, 3, ... threads as a multiple of one. */
  readonly threadScaling: readonly number[];
  readonly lastLevelCacheBytes: number;
  /** Cost of finding and starting one row, nanoseconds. */
  readonly rowNanos: number;
  /** From handing a job to the copy threads to JavaScript being told of its end, microseconds. */
  readonly handoverMicros: number;
  /** Waking each further thread, microseconds. */
  readonly threadMicros: number;
  /** Copies predicted to take at most this long run on the caller's thread. */
  readonly inlineLimitMicros: number;
}

/** Transfers over NIXL. */
export interface NixlProfile {
  /** Making, posting, awaiting and releasing one request, microseconds. */
  readonly postMicros: number;
  readonly lanes: number;
  /** Each row that a peer is told of, which it gathers or scatters: beside its bytes, on both sides together. */
  readonly slabRowMicros: number;
  /** Gathering and scattering, as far as they do not hide behind the wire. */
  readonly slabGigabytesPerSecond: number;
  /** Each descriptor of GPU memory inside a post, beside its bytes, where that is more than the transport's own figure. */
  readonly deviceDescriptorMicros: number;
  /** `slabRowMicros` and `slabGigabytesPerSecond` where the chunks lie in GPU memory on both sides. */
  readonly deviceSlabRowMicros: number;
  readonly deviceSlabGigabytesPerSecond: number;
  readonly transports: Readonly<Record<string, NixlTransportProfile>>;
  /** Key of `transports` that is assumed when nobody knows better. */
  readonly defaultTransport: string;
}

export interface NixlTransportProfile {
  readonly latencyMicros: number;
  /** Each descriptor inside a post, beside its bytes. */
  readonly descriptorMicros: number;
  /** Asking a peer for staging memory, and its answers: once for a transfer that is gathered and scattered. */
  readonly slabMicros: number;
  readonly writeGigabytesPerSecond: number;
  readonly readGigabytesPerSecond: number;
  /**
   * Whether the peer's software answers reads: they are slow then, and a reader that ends in the middle of one may take
   * the peer with it.
   */
  readonly softwareReads?: boolean;
}

/** Copies by the CUDA driver and by kernels. Rates by the size of the pieces that continue each other on both sides. */
export interface CudaProfile {
  /** From submission to JavaScript being told of the end, beside the bytes, microseconds. */
  readonly launchMicros: number;
  /** Each further copy of a loop of copies, beside its bytes, microseconds. */
  readonly copyMicros: number;
  /** Each further 2-D or 3-D copy, microseconds. */
  readonly boxMicros: number;
  /** Filling and draining the pipeline of slabs, microseconds. */
  readonly slabMicros: number;
  /** One large copy. */
  readonly hostToDevice: number;
  readonly deviceToHost: number;
  readonly deviceToDevice: number;
  readonly peerToPeer: number;
  /** The same from and to memory that is not pinned. */
  readonly pageable: number;
  /** 2-D copies, by row size. */
  readonly pitched: readonly RatePoint[];
  /** Zero-copy kernels between device and pinned memory. */
  readonly kernelHostToDevice: readonly RatePoint[];
  readonly kernelDeviceToHost: readonly RatePoint[];
  /** Kernels within a device and between two. */
  readonly kernelDevice: readonly RatePoint[];
  readonly kernelPeer: readonly RatePoint[];
  /** Bulk asynchronous copies by a kernel; null where nobody measured them. */
  readonly bulkHostToDevice: readonly RatePoint[] | null;
  readonly bulkDeviceToHost: readonly RatePoint[] | null;
  readonly bulkDevice: readonly RatePoint[] | null;
  /** One batched call. */
  readonly batchHostToDevice: readonly RatePoint[];
  readonly batchDeviceToHost: readonly RatePoint[];
  readonly batchDevice: readonly RatePoint[];
  /** Slabs whose copies are long on the host side, by the size of the pieces on the device. */
  readonly slabHostToDevice: readonly RatePoint[];
  readonly slabDeviceToHost: readonly RatePoint[];
  /** Slabs by the size of the runs on the host side, which are copied one by one. */
  readonly slabRunsHostToDevice: readonly RatePoint[];
  readonly slabRunsDeviceToHost: readonly RatePoint[];
  /** CTAs with which kernels across the host link, and slabs, reach these rates. */
  readonly kernelCtas: number;
  readonly slabCtas: number;
  readonly bulkCtas: number;
  /** CTAs for each multiprocessor of kernels within a device and between two. */
  readonly deviceCtas: number;
}

/** Files on local drives. */
export interface FileProfile {
  readonly latencyMicros: number;
  readonly requestMicros: number;
  readonly readGigabytesPerSecond: number;
  readonly writeGigabytesPerSecond: number;
  /** The same of GPUDirect Storage, where that was asked for and proven; its requests overlap. */
  readonly gdsLatencyMicros: number;
  readonly gdsRequestMicros: number;
  readonly gdsReadGigabytesPerSecond: number;
  readonly gdsWriteGigabytesPerSecond: number;
}

function scaled(points: readonly RatePoint[], by: number): readonly RatePoint[] {
  return points.map(({ bytes, gigabytesPerSecond }) => ({
    bytes,
    gigabytesPerSecond: gigabytesPerSecond * by,
  }));
}

const point = (bytes: number, gigabytesPerSecond: number): RatePoint => ({ bytes, gigabytesPerSecond });

/** One H100 or H200 on PCIe 5, measured on both. */
export const hopperCuda: CudaProfile = Object.freeze({
  launchMicros: 12,
  copyMicros: 2.3,
  boxMicros: 2.3,
  slabMicros: 35,
  hostToDevice: 55.2,
  deviceToHost: 55.2,
  deviceToDevice: 2045,
  peerToPeer: 396,
  pageable: 12.5,
  pitched: [point(64, 1.5), point(512, 12), point(4096, 45), point(8192, 53), point(262_144, 54.2)],
  kernelHostToDevice: [point(2048, 51), point(65_536, 51.1), point(1_048_576, 51.2)],
  kernelDeviceToHost: [point(2048, 52.1), point(65_536, 52.4), point(1_048_576, 52.5)],
  kernelDevice: [
    point(64, 900),
    point(256, 1750),
    point(2048, 1750),
    point(16_384, 1900),
    point(1_048_576, 1915),
  ],
  kernelPeer: [point(4096, 356), point(65_536, 358)],
  bulkHostToDevice: [point(1024, 40), point(4096, 51), point(65_536, 51.1)],
  bulkDeviceToHost: [point(1024, 40), point(4096, 52), point(65_536, 52.4)],
  bulkDevice: [point(256, 117), point(2048, 570), point(16_384, 1890), point(1_048_576, 1905)],
  batchHostToDevice: [
    point(2048, 1.3),
    point(8192, 2.9),
    point(32_768, 22.3),
    point(131_072, 46.1),
    point(1_048_576, 53.8),
  ],
  batchDeviceToHost: [
    point(2048, 2.6),
    point(8192, 10.4),
    point(32_768, 23),
    point(131_072, 46.2),
    point(1_048_576, 53.7),
  ],
  batchDevice: [point(2048, 0.5), point(65_536, 15), point(1_048_576, 237), point(16_777_216, 1400)],
  slabHostToDevice: [point(2048, 53), point(4096, 53.5), point(16_384, 53.8)],
  slabDeviceToHost: [point(2048, 53), point(4096, 53.4), point(16_384, 53.8)],
  slabRunsHostToDevice: [point(4096, 4.7), point(16_384, 16.4), point(65_536, 51.8), point(262_144, 53.8)],
  slabRunsDeviceToHost: [point(4096, 10.5), point(16_384, 21.2), point(65_536, 51.7), point(262_144, 53.8)],
  kernelCtas: 16,
  slabCtas: 32,
  bulkCtas: 8,
  deviceCtas: 16,
});

/**
 * A GPU that nobody measured: PCIe 4 at three quarters of a common card's speed, a slow driver path, and memory of a
 * small card. The order of the methods follows the measured ones; the times are on the safe side.
 */
export const unknownCuda: CudaProfile = Object.freeze({
  ...hopperCuda,
  launchMicros: 15,
  copyMicros: 4,
  boxMicros: 6,
  slabMicros: 60,
  hostToDevice: 18,
  deviceToHost: 18,
  deviceToDevice: 150,
  peerToPeer: 10,
  pageable: 3,
  pitched: scaled(hopperCuda.pitched, 1 / 3),
  kernelHostToDevice: scaled(hopperCuda.kernelHostToDevice, 0.3),
  kernelDeviceToHost: scaled(hopperCuda.kernelDeviceToHost, 0.3),
  kernelDevice: scaled(hopperCuda.kernelDevice, 0.1),
  kernelPeer: [point(4096, 9)],
  bulkHostToDevice: null,
  bulkDeviceToHost: null,
  bulkDevice: null,
  batchHostToDevice: scaled(hopperCuda.batchHostToDevice, 0.32),
  batchDeviceToHost: scaled(hopperCuda.batchDeviceToHost, 0.32),
  batchDevice: scaled(hopperCuda.batchDevice, 0.1),
  slabHostToDevice: scaled(hopperCuda.slabHostToDevice, 0.3),
  slabDeviceToHost: scaled(hopperCuda.slabDeviceToHost, 0.3),
  slabRunsHostToDevice: scaled(hopperCuda.slabRunsHostToDevice, 0.3),
  slabRunsDeviceToHost: scaled(hopperCuda.slabRunsDeviceToHost, 0.3),
});

/** The figures for a GPU by its name, as the driver gives it. */
export function cudaProfileOf(name: string): CudaProfile {
  return /\b(?:H100|H200|H800|H20|GH200)\b/.test(name) ? hopperCuda : unknownCuda;
}

/** The profile that is used until a machine was measured: a small server for host and NIXL, one H100 on PCIe 5 for CUDA. */
export const defaultProfile: MachineProfile = Object.freeze({
  name: "default",
  host: {
    plain: [
      point(64, 1.3),
      point(256, 2.4),
      point(1024, 3.2),
      point(4096, 4.5),
      point(16_384, 6),
      point(65_536, 10),
      point(1_048_576, 13),
    ],
    nontemporal: [
      point(64, 1.2),
      point(128, 2.2),
      point(256, 5),
      point(1024, 12),
      point(4096, 16),
      point(65_536, 22),
      point(1_048_576, 24),
    ],
    cached: [point(64, 6), point(128, 12), point(1024, 25), point(4096, 36), point(65_536, 40)],
    threadScaling: [1, 1.6, 2.1, 2.6, 2.9, 3.2, 3.4, 3.6],
    lastLevelCacheBytes: 32 * 1024 * 1024,
    rowNanos: 3,
    handoverMicros: 25,
    threadMicros: 5,
    inlineLimitMicros: 25,
  },
  nixl: {
    postMicros: 6,
    lanes: 2,
    slabRowMicros: 0.35,
    slabGigabytesPerSecond: 5,
    // 5 to 9 measured over UCX.
    deviceDescriptorMicros: 7,
    // Not measured: half of the host's figure, which has the copy of each row in it, and half of what two passes over
    // the memory of a GPU take by kernels for pieces of 16 KiB.
    deviceSlabRowMicros: 0.17,
    deviceSlabGigabytesPerSecond: 470,
    transports: {
      cma: {
        latencyMicros: 30,
        descriptorMicros: 2.2,
        slabMicros: 1500,
        writeGigabytesPerSecond: 5,
        readGigabytesPerSecond: 5,
      },
      tcp: {
        latencyMicros: 100,
        descriptorMicros: 7,
        slabMicros: 2500,
        writeGigabytesPerSecond: 1.5,
        readGigabytesPerSecond: 0.5,
        softwareReads: true,
      },
      rdma: {
        latencyMicros: 30,
        descriptorMicros: 0.3,
        slabMicros: 1500,
        writeGigabytesPerSecond: 45,
        readGigabytesPerSecond: 45,
      },
      "cuda-ipc": {
        latencyMicros: 50,
        descriptorMicros: 7,
        // Not measured: the words are the same as over host memory.
        slabMicros: 1500,
        // One contiguous write between two H200.
        writeGigabytesPerSecond: 235,
        readGigabytesPerSecond: 235,
      },
    },
    defaultTransport: "cma",
  },
  cuda: hopperCuda,
  file: {
    latencyMicros: 100,
    requestMicros: 5,
    readGigabytesPerSecond: 2,
    writeGigabytesPerSecond: 2,
    // Not measured: the same drives, and requests that cost as much as 16 KiB take on them, below which other programs
    // leave GPUDirect Storage alone.
    gdsLatencyMicros: 100,
    gdsRequestMicros: 8,
    gdsReadGigabytesPerSecond: 2,
    gdsWriteGigabytesPerSecond: 2,
  },
});

/**
 * The rate at a size, interpolated on the logarithm of the size and constant beyond the measured ends.
 *
 * @param points - Rising by size; at least one.
 * @returns GB/s.
 */
export function rateAt(points: readonly RatePoint[], bytes: number): number {
  let below = points[0];
  if (below === undefined) return 1;
  for (const above of points) {
    if (bytes <= above.bytes) {
      if (bytes <= below.bytes) return below.gigabytesPerSecond;
      const share = Math.log(bytes / below.bytes) / Math.log(above.bytes / below.bytes);
      return below.gigabytesPerSecond + share * (above.gigabytesPerSecond - below.gigabytesPerSecond);
    }
    below = above;
  }
  return below.gigabytesPerSecond;
}
