import { KvferryError, type ErrorDetails } from "../core/errors.ts";
import { cString } from "./c-string.ts";
import type { Completion } from "./completion.ts";
import type { NativeContext } from "./context.ts";
import { infoOf, pointerOf, type CudaInfo, type CudaPointer } from "./cuda-info.ts";
import { nativeError } from "./native-error.ts";
import { noCuda } from "./no-cuda.ts";
import { KVF_CUDA_IPC_BYTES, KVF_CUDA_POINTER_DEVICE, KVF_CUDA_POINTER_PINNED, KVF_OK } from "./symbols.ts";

/**
 * The CUDA driver of this process. Every call but the cheap queries runs on a thread of the library.
 *
 * Addresses and events that it gives belong to the caller until they are given back; devices stay open until
 * `closeDevice` was called as often as `openDevice`.
 */
export class CudaDriver {
  readonly #context: NativeContext;
  /** What the driver said when it was loaded; `describe` asks again. */
  readonly info: CudaInfo;

  private constructor(context: NativeContext, info: CudaInfo) {
    this.#context = context;
    this.info = info;
  }

  /**
   * Loads the driver library, once for the process.
   *
   * @param path - Null for `libcuda.so.1`.
   * @throws KvferryError `NO_CUDA` when there is none, it is older than CUDA 12.0, or it has no device.
   */
  static async load(context: NativeContext, path: string | null): Promise<CudaDriver> {
    const { library } = context;
    const info = await context
      .job(
        "open",
        (slot) => library.kvf_cuda_load_job(context.address, slot, cString(path ?? "")),
        (_completion, slot) => infoOf(context.resultBytes(slot)),
      )
      .catch((error: unknown) => {
        throw noCuda(error, { library: path });
      });
    if (info.devices.length === 0) throw noCuda("the CUDA driver sees no device", { library: info.library });
    return new CudaDriver(context, info);
  }

  /** What there is now: which devices are open, and which are lost. */
  describe(): Promise<CudaInfo> {
    return this.#context.job(
      "open",
      (slot) => this.#native.kvf_cuda_info_job(this.#context.address, slot),
      (_completion, slot) => infoOf(this.#context.resultBytes(slot)),
    );
  }

  /** @throws KvferryError `NO_CUDA` for an ordinal that there is not, `CUDA` for a device that is lost. */
  openDevice(device: number): Promise<void> {
    if (!this.info.devices.some(({ ordinal }) => ordinal === device)) {
      return Promise.reject(
        noCuda(`there is no CUDA device ${device}, the driver has ${this.info.devices.length}`, { device }),
      );
    }
    return this.#call("open", device, (slot) =>
      this.#native.kvf_cuda_device_open_job(this.#context.address, slot, device),
    );
  }

  closeDevice(device: number): Promise<void> {
    return this.#call("close", device, (slot) =>
      this.#native.kvf_cuda_device_close_job(this.#context.address, slot, device),
    );
  }

  /** @returns The address of device memory, its content undefined. */
  allocate(device: number, bytes: number): Promise<number> {
    return this.#value("register", { device, bytes }, (slot) =>
      this.#native.kvf_cuda_alloc_job(this.#context.address, slot, device, bytes),
    );
  }

  free(device: number, address: number): Promise<void> {
    return this.#call("unregister", device, (slot) =>
      this.#native.kvf_cuda_free_job(this.#context.address, slot, device, address),
    );
  }

  /** @returns The address of pinned memory from the driver's own allocator. */
  allocatePinned(device: number, bytes: number): Promise<number> {
    return this.#value("register", { device, bytes }, (slot) =>
      this.#native.kvf_cuda_pinned_alloc_job(this.#context.address, slot, device, bytes),
    );
  }

  freePinned(device: number, address: number): Promise<void> {
    return this.#call("unregister", device, (slot) =>
      this.#native.kvf_cuda_pinned_free_job(this.#context.address, slot, device, address),
    );
  }

  /** Pins mapped host memory for every device; whole pages. */
  pin(device: number, address: number, bytes: number): Promise<void> {
    return this.#call("register", device, (slot) =>
      this.#native.kvf_cuda_register_job(this.#context.address, slot, device, address, bytes),
    );
  }

  unpin(device: number, address: number): Promise<void> {
    return this.#call("unregister", device, (slot) =>
      this.#native.kvf_cuda_unregister_job(this.#context.address, slot, device, address),
    );
  }

  /**
   * Checks with the driver that all of somebody else's region is memory of that kind on that device.
   *
   * @throws KvferryError `INVALID_CONFIG` with what it is instead.
   */
  adopt(device: number, address: number, bytes: number, kind: "pinned" | "device"): Promise<void> {
    const code = kind === "pinned" ? KVF_CUDA_POINTER_PINNED : KVF_CUDA_POINTER_DEVICE;
    return this.#call("register", device, (slot) =>
      this.#native.kvf_cuda_adopt_job(this.#context.address, slot, device, address, bytes, code),
    );
  }

  /** Forgets an adopted region. */
  disown(address: number): void {
    this.#native.kvf_cuda_disown(address);
  }

  /** Sets bytes of device or pinned memory to one value. */
  set(device: number, address: number, bytes: number, value: number): Promise<void> {
    return this.#call("fill", device, (slot) =>
      this.#native.kvf_cuda_set_job(this.#context.address, slot, device, address, bytes, value),
    );
  }

  /** The handle by which another process maps the allocation of an address, and the address's offset in it. */
  exportIpc(
    device: number,
    address: number,
  ): Promise<{ readonly handle: Uint8Array; readonly offset: number }> {
    return this.#context.job(
      "exportMetadata",
      (slot) => this.#native.kvf_cuda_ipc_export_job(this.#context.address, slot, device, address),
      (completion, slot) => ({ handle: this.#context.resultBytes(slot), offset: completion.value }),
    );
  }

  /** Maps another process's allocation. @returns Its address here. */
  openIpc(device: number, handle: Uint8Array): Promise<number> {
    const own = ownHandle(handle);
    return this.#value("register", { device }, (slot) =>
      this.#native.kvf_cuda_ipc_open_job(this.#context.address, slot, device, own),
    );
  }

  /**
   * Device memory of which other processes can be given a descriptor; given back by `free`.
   *
   * @returns Its address; its content is undefined.
   */
  allocateExportable(device: number, bytes: number): Promise<number> {
    return this.#value("register", { device, bytes }, (slot) =>
      this.#native.kvf_cuda_exportable_alloc_job(this.#context.address, slot, device, bytes),
    );
  }

  /** A descriptor of an exportable allocation, by its address; the caller closes it. */
  exportDescriptor(address: number): Promise<number> {
    return this.#value("exportMetadata", { address }, (slot) =>
      this.#native.kvf_cuda_exportable_export_job(this.#context.address, slot, address),
    );
  }

  /**
   * Maps another process's exportable allocation; given back by `free`.
   *
   * @param descriptor - Stays the caller's.
   * @returns Its address here.
   */
  importDescriptor(device: number, descriptor: number, bytes: number): Promise<number> {
    return this.#value("importMetadata", { device, bytes }, (slot) =>
      this.#native.kvf_cuda_exportable_import_job(this.#context.address, slot, device, descriptor, bytes),
    );
  }

  /** Lets one open device reach another one's memory. @throws KvferryError where the hardware cannot. */
  reach(device: number, other: number): Promise<void> {
    return this.#call("open", device, (slot) =>
      this.#native.kvf_cuda_peer_job(this.#context.address, slot, device, other),
    );
  }

  closeIpc(device: number, address: number): Promise<void> {
    return this.#call("unregister", device, (slot) =>
      this.#native.kvf_cuda_ipc_close_job(this.#context.address, slot, device, address),
    );
  }

  /** Opens another process's event. @returns An event of this process. */
  openEvent(device: number, handle: Uint8Array): Promise<number> {
    const own = ownHandle(handle);
    return this.#value("transfer", { device }, (slot) =>
      this.#native.kvf_cuda_event_open_job(this.#context.address, slot, device, own),
    );
  }

  closeEvent(device: number, event: number): Promise<void> {
    return this.#call("transfer", device, (slot) =>
      this.#native.kvf_cuda_event_close_job(this.#context.address, slot, device, event),
    );
  }

  /** Resolves when a CUDA event has fired. */
  awaitEvent(device: number, event: number): Promise<void> {
    return this.#call("transfer", device, (slot) =>
      this.#native.kvf_cuda_event_job(this.#context.address, slot, device, event),
    );
  }

  /** What the driver knows of an address. */
  pointer(address: number): CudaPointer {
    const out = new Float64Array(new ArrayBuffer(32));
    const status = this.#native.kvf_cuda_pointer(address, out);
    if (status !== KVF_OK)
      throw nativeError(this.#native, status, "register", "the driver was asked about an address", {
        address,
      });
    return pointerOf(out);
  }

  /** Free and total bytes of an open device. */
  memory(device: number): { readonly free: number; readonly total: number } {
    const out = new Float64Array(new ArrayBuffer(16));
    const status = this.#native.kvf_cuda_memory_info(device, out);
    if (status !== KVF_OK)
      throw nativeError(this.#native, status, "dump", "the driver was asked about its memory", { device });
    return { free: out[0] ?? 0, total: out[1] ?? 0 };
  }

  get #native(): NativeContext["library"] {
    return this.#context.library;
  }

  #call(operation: string, device: number, start: (slot: number) => number): Promise<void> {
    return this.#job(operation, { device }, start, () => undefined);
  }

  #value(operation: string, details: ErrorDetails, start: (slot: number) => number): Promise<number> {
    return this.#job(operation, details, start, (completion) => completion.value);
  }

  #job<T>(
    operation: string,
    details: ErrorDetails,
    start: (slot: number) => number,
    result: (completion: Completion, slot: number) => T,
  ): Promise<T> {
    return this.#context.job(operation, start, result).catch((error: unknown) => {
      if (!(error instanceof KvferryError)) throw error;
      throw new KvferryError(
        error.code.slice("ERR_KVF_".length) as ConstructorParameters<typeof KvferryError>[0], // made of one
        operation,
        error.message,
        error.remedy,
        { ...error.details, ...details },
        error,
      );
    });
  }
}

/** A handle whose storage cannot move during a call. */
function ownHandle(handle: Uint8Array): Uint8Array<ArrayBuffer> {
  if (handle.byteLength !== KVF_CUDA_IPC_BYTES) {
    throw new KvferryError(
      "INVALID_CONFIG",
      "open",
      `a CUDA IPC handle has ${KVF_CUDA_IPC_BYTES} bytes, found ${handle.byteLength}`,
      "Pass on the handle as the other process got it from the driver.",
      { found: handle.byteLength },
    );
  }
  const copy = new Uint8Array(new ArrayBuffer(KVF_CUDA_IPC_BYTES));
  copy.set(handle);
  return copy;
}
