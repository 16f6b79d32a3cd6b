import { KvferryError } from "../core/errors.ts";
import { cudaProfileOf, defaultProfile } from "../core/machine-figures.ts";
import type { MachineProfile } from "../core/profile.ts";
import type { GpuFacts } from "../core/environment.ts";
import type { NativeContext } from "../native/context.ts";
import type { CudaDeviceInfo } from "../native/cuda-info.ts";
import type { CudaDriver } from "../native/cuda.ts";
import { CUDA_LIBRARY_VARIABLE, noCuda } from "../native/no-cuda.ts";
import type { ResolvedOptions } from "./options.ts";

/**
 * A transport's way to its GPUs: loads the driver and opens devices when they are first asked for, off the JavaScript
 * thread, and closes them.
 *
 * A process that never asks for GPU memory makes no CUDA context.
 */
export class CudaSession {
  readonly #context: NativeContext;
  readonly #options: ResolvedOptions;
  #loading: Promise<CudaDriver> | undefined;
  #driver: CudaDriver | undefined;
  #problem: KvferryError | null = null;
  readonly #opening: Map<number, Promise<CudaDriver>> = new Map();
  readonly #devices: Map<number, CudaDeviceInfo> = new Map();
  /** Whether the driver gives handles by which other processes open a device's memory; unknown before it was tried. */
  readonly ipcHandles: Map<number, boolean> = new Map();
  #profile: MachineProfile;

  constructor(context: NativeContext, options: ResolvedOptions) {
    this.#context = context;
    this.#options = options;
    this.#profile = options.profile ?? defaultProfile;
    if (options.cuda === null)
      this.#problem = noCuda("this transport was opened with cuda: false", { option: "cuda" });
  }

  /** The device of memory that names none. */
  get defaultDevice(): number {
    return this.#options.cuda?.device ?? 0;
  }

  /** The loaded driver; null before GPU memory was first asked for, and without CUDA. */
  get driver(): CudaDriver | null {
    return this.#driver ?? null;
  }

  /** Why there is no CUDA, as far as that was tried; null when there is, or nobody asked yet. */
  get problem(): KvferryError | null {
    return this.#problem;
  }

  /** Called whenever a device was opened. */
  onOpened: (() => void) | undefined;

  /** Ordinals of the devices that are open. */
  get devices(): readonly number[] {
    return [...this.#devices.keys()];
  }

  /** What was given at `open`, else figures of the GPU in use. */
  get profile(): MachineProfile {
    return this.#profile;
  }

  /**
   * The driver with a device opened.
   *
   * @throws KvferryError `NO_CUDA` without a driver, a GPU or that device, `CUDA` for a device that is lost.
   */
  demand(device: number = this.defaultDevice): Promise<CudaDriver> {
    const known = this.#opening.get(device);
    if (known !== undefined) return known;
    const opening = this.#open(device);
    this.#opening.set(device, opening);
    // A device that could not be opened may be asked for again.
    opening.catch(() => this.#opening.delete(device));
    return opening;
  }

  /** What the choice of a method needs to know of a device; null when it is not open. */
  facts(device: number): GpuFacts | null {
    const info = this.#devices.get(device);
    if (info === undefined || this.#driver === undefined) return null;
    return {
      sms: info.sms,
      kernels: info.code !== "",
      bulk: info.bulk,
      batch: this.#driver.info.batch > 0,
      busy: this.#options.cuda?.busy ?? false,
    };
  }

  /** What the driver says of an open device. */
  device(device: number): CudaDeviceInfo | null {
    return this.#devices.get(device) ?? null;
  }

  /** Closes the devices; waits for their work, a bounded time. */
  async close(): Promise<void> {
    const driver = this.#driver;
    const devices = [...this.#devices.keys()];
    this.#devices.clear();
    this.#opening.clear();
    // One whose copies never end is left open: nothing of it may be freed.
    for (const device of devices) await driver?.closeDevice(device).catch(() => undefined);
  }

  async #open(device: number): Promise<CudaDriver> {
    const driver = await this.#load();
    await driver.openDevice(device);
    const { devices } = await driver.describe();
    const info = devices.find(({ ordinal }) => ordinal === device);
    if (info === undefined) throw noCuda(`the driver no longer tells of device ${device}`, { device });
    this.#devices.set(device, info);
    if (this.#options.profile === null && this.#profile === defaultProfile)
      this.#profile = { ...defaultProfile, name: info.name, cuda: cudaProfileOf(info.name) };
    this.onOpened?.();
    return driver;
  }

  #load(): Promise<CudaDriver> {
    if (this.#options.cuda === null) return Promise.reject(this.#problem ?? noCuda("cuda: false"));
    const library = this.#options.cuda.library ?? process.env[CUDA_LIBRARY_VARIABLE] ?? null;
    this.#loading ??= loadDriver(this.#context, library).then(
      (driver) => {
        this.#driver = driver;
        this.#problem = null;
        return driver;
      },
      (error: unknown) => {
        this.#loading = undefined;
        if (error instanceof KvferryError) this.#problem = error;
        throw error;
      },
    );
    return this.#loading;
  }
}

/** Most processes ask for no GPU: only those who do load what talks to the driver. */
async function loadDriver(context: NativeContext, library: string | null): Promise<CudaDriver> {
  const { CudaDriver } = await import("../native/cuda.ts");
  return await CudaDriver.load(context, library);
}
