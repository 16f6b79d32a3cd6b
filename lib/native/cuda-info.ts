/** A GPU as the driver describes it. Sizes are bytes. */
export interface CudaDeviceInfo {
  /** CUDA ordinal. */
  readonly ordinal: number;
  readonly name: string;
  readonly uuid: string;
  readonly pci: string;
  readonly memory: number;
  /** Compute capability. */
  readonly major: number;
  readonly minor: number;
  /** Multiprocessors. */
  readonly sms: number;
  readonly copyEngines: number;
  readonly l2: number;
  /** NUMA node that the GPU hangs on; -1 when the machine does not tell. */
  readonly numaNode: number;
  readonly integrated: boolean;
  /** Whether kernels reach registered host memory by its own address. */
  readonly hostPointers: boolean;
  readonly open: boolean;
  readonly poisoned: boolean;
  /** Architecture of the loaded kernels, e.g. `sm_90`; empty when there are none or the device is not open. */
  readonly code: string;
  /** Whether the kernel of bulk copies is there; only known of an open device. */
  readonly bulk: boolean;
  /** Ordinals of the devices whose memory it can reach. */
  readonly peers: readonly number[];
}

/** What the CUDA driver said of itself and its devices. */
export interface CudaInfo {
  /** CUDA version that the driver speaks: 13000 is 13.0. */
  readonly driver: number;
  /** Path of the driver library. */
  readonly library: string;
  /** Arguments of the batched copy: 8 from 13.0, 9 from 12.8, 0 when the driver has none. */
  readonly batch: number;
  /** Hash of the kernels in the native library; empty when it was built without. */
  readonly kernels: string;
  readonly devices: readonly CudaDeviceInfo[];
}

/** What the driver knows of an address. */
export interface CudaPointer {
  readonly kind: "pageable" | "pinned" | "device" | "managed";
  /** CUDA ordinal, or -1. */
  readonly device: number;
  /** Start and bytes of the allocation that it lies in; bytes 0 when the driver does not tell. */
  readonly start: number;
  readonly bytes: number;
}

/** Reads what the library tells of the driver, JSON text as bytes. */
export function infoOf(bytes: Uint8Array): CudaInfo {
  // Written by our own library: the shape is its contract.
  return JSON.parse(new TextDecoder().decode(bytes)) as CudaInfo;
}

/** Reads what the library answers about an address: kind, device, start, bytes. */
export function pointerOf(out: Float64Array): CudaPointer {
  return {
    kind: POINTER_KINDS[out[0] ?? 0] ?? "pageable",
    device: out[1] ?? -1,
    start: out[2] ?? 0,
    bytes: out[3] ?? 0,
  };
}

const POINTER_KINDS: readonly CudaPointer["kind"][] = ["pageable", "pinned", "device", "managed"];
