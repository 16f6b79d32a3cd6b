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
  readonly transports: Readonly<Record<string, NixlTransportProfile>>;
  /** Key of `transports` that is assumed when nobody knows better. */
  readonly defaultTransport: string;
}

export interface NixlTransportProfile {
  readonly latencyMicros: number;
  /** Each descriptor inside a post, beside its bytes. */
  readonly descriptorMicros: number;
  readonly writeGigabytesPerSecond: number;
  readonly readGigabytesPerSecond: number;
}

/** Copies by the CUDA driver and by kernels. */
export interface CudaProfile {
  readonly launchMicros: number;
  readonly hostToDevice: number;
  readonly deviceToHost: number;
  readonly deviceToDevice: number;
  readonly peerToPeer: number;
  /** Zero-copy kernels between device and pinned memory, by chunk size. */
  readonly kernelHostToDevice: readonly RatePoint[];
  readonly kernelDeviceToHost: readonly RatePoint[];
  /** One batched call, by chunk size. */
  readonly batchHostToDevice: readonly RatePoint[];
  readonly batchDeviceToHost: readonly RatePoint[];
  /** CTAs with which the kernels reach these rates. */
  readonly kernelCtas: number;
}

/** Files on local drives. */
export interface FileProfile {
  readonly latencyMicros: number;
  readonly requestMicros: number;
  readonly readGigabytesPerSecond: number;
  readonly writeGigabytesPerSecond: number;
}

const point = (bytes: number, gigabytesPerSecond: number): RatePoint => ({ bytes, gigabytesPerSecond });

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
    transports: {
      cma: {
        latencyMicros: 30,
        descriptorMicros: 1.5,
        writeGigabytesPerSecond: 5,
        readGigabytesPerSecond: 5,
      },
      tcp: {
        latencyMicros: 100,
        descriptorMicros: 20,
        writeGigabytesPerSecond: 1.5,
        readGigabytesPerSecond: 0.5,
      },
      rdma: {
        latencyMicros: 30,
        descriptorMicros: 0.3,
        writeGigabytesPerSecond: 45,
        readGigabytesPerSecond: 45,
      },
      "cuda-ipc": {
        latencyMicros: 50,
        descriptorMicros: 7,
        writeGigabytesPerSecond: 360,
        readGigabytesPerSecond: 360,
      },
    },
    defaultTransport: "cma",
  },
  cuda: {
    launchMicros: 6,
    hostToDevice: 55.3,
    deviceToHost: 55.2,
    deviceToDevice: 1500,
    peerToPeer: 396,
    kernelHostToDevice: [point(2048, 50.6), point(65_536, 50.9), point(1_048_576, 51)],
    kernelDeviceToHost: [point(2048, 52.1), point(65_536, 52.3), point(1_048_576, 52.3)],
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
    kernelCtas: 16,
  },
  file: { latencyMicros: 100, requestMicros: 5, readGigabytesPerSecond: 2, writeGigabytesPerSecond: 2 },
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
