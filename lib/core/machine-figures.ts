import type { CudaProfile, MachineProfile, RatePoint } from "./profile.ts";

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

function scaled(points: readonly RatePoint[], by: number): readonly RatePoint[] {
  return points.map(({ bytes, gigabytesPerSecond }) => ({
    bytes,
    gigabytesPerSecond: gigabytesPerSecond * by,
  }));
}

function point(bytes: number, gigabytesPerSecond: number): RatePoint {
  return { bytes, gigabytesPerSecond };
}
