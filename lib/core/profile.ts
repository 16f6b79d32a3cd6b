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
