// A matrix product on the GPU that this process runs itself, by cuBLAS: what transfers of the same process cost it is
// then their own doing, not that two processes take turns on the GPU.
import { existsSync, readdirSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { dlopen } from "bun:ffi";

import { CUDA_LIBRARY_VARIABLE } from "../lib/native/no-cuda.ts";
import { buildNative } from "./native.ts";

/** Names a cuBLAS that is tried before those that are found. */
const CUBLAS_VARIABLE = "CUBLAS_LIBRARY";
/** Where Python packages that bring a cuBLAS are, a folder a line. */
const PYTHON_FOLDERS = [
  "import importlib.util",
  "for name in ('nvidia', 'torch'):",
  "    found = importlib.util.find_spec(name)",
  "    for folder in (found.submodule_search_locations or []) if found else []: print(folder)",
].join("\n");
const TOOLKITS = ["/usr/local", "/opt", "/usr/lib", "/usr/lib64"];
const FILE = /^libcublas\.so\.1[23](\.[\d.]+)?$/;
/** Folders between a toolkit or package and its libraries. */
const DEPTH = 5;
/** Milliseconds between two looks at whether the products are over. */
const LOOK_EVERY = 1;
/** Of products that take a few hundred milliseconds. */
const LIMIT_MILLISECONDS = 60_000;

/** Matrix products on a stream of this process. */
export class SameProduct implements AsyncDisposable {
  readonly #native: ReturnType<typeof openNative>;
  /** Which cuBLAS, and where it was found. */
  readonly library: string;

  private constructor(native: ReturnType<typeof openNative>, library: string) {
    this.#native = native;
    this.library = library;
  }

  /** @throws Error that says why there is no product: each cuBLAS that was tried, and what it said. */
  static async start(): Promise<SameProduct> {
    const native = openNative(await buildNative("gpu_product.c", "library"));
    const found = cublasLibraries();
    if (found.length === 0)
      throw new Error(
        `no libcublas.so.12 or .13 in the CUDA toolkit's folders or beside PyTorch; ${CUBLAS_VARIABLE} names one elsewhere`,
      );
    const said: string[] = [];
    for (const path of found) {
      const driver = process.env[CUDA_LIBRARY_VARIABLE] ?? "";
      const version = new Float64Array(new ArrayBuffer(8));
      const status = native.product_open(text(driver), text(path), text(ltBeside(path)), 0, version);
      if (status === 0) return new SameProduct(native, `cuBLAS ${version[0]} of ${path}`);
      said.push(`${path}: ${failureText(native, status)}`);
    }
    throw new Error(`no product with any cuBLAS here: ${said.join("; ")}`);
  }

  /** Queues so many products. */
  queue(count: number): void {
    const status = this.#native.product_queue(count);
    if (status !== 0) throw new Error(`queueing products: ${failureText(this.#native, status)}`);
  }

  /** Resolves with the milliseconds from the start of the first queued product to the end of the last. */
  async over(): Promise<number> {
    const millis = new Float64Array(new ArrayBuffer(8));
    const begun = performance.now();
    for (;;) {
      const status = this.#native.product_over(millis);
      if (status === 0) return millis[0] ?? Number.NaN;
      if (status < 0) throw new Error(`the products: ${failureText(this.#native, status)}`);
      if (performance.now() - begun > LIMIT_MILLISECONDS) throw new Error("the products do not end");
      await Bun.sleep(LOOK_EVERY);
    }
  }

  /** The matrices stay for the process. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.over().catch(() => 0);
  }
}

/** In a process of its own: null, or why this machine has no product. */
export async function trySameProduct(): Promise<string | null> {
  try {
    const product = await SameProduct.start();
    product.queue(1);
    await product.over();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Paths of every cuBLAS of this machine, PyTorch's first; each file once. */
export function cublasLibraries(): readonly string[] {
  const named = process.env[CUBLAS_VARIABLE];
  const found = [
    ...(named === undefined || named === "" ? [] : [named]),
    ...pythonFolders().flatMap((folder) => librariesUnder(folder, DEPTH)),
    ...TOOLKITS.flatMap((folder) => toolkitLibraries(folder)),
  ];
  const files = new Map<string, string>();
  for (const path of found) {
    const file = existsSync(path) ? realpathSync(path) : path;
    if (!files.has(file)) files.set(file, path);
  }
  return [...files.values()];
}

function pythonFolders(): readonly string[] {
  if (Bun.which("python3") === null) return [];
  const run = Bun.spawnSync(["python3", "-c", PYTHON_FOLDERS], { stdout: "pipe", stderr: "ignore" });
  return run.stdout.toString().split("\n").filter(Boolean);
}

/** In folders whose names begin with "cuda", and where distributions put libraries. */
function toolkitLibraries(folder: string): string[] {
  const names = entries(folder).map(({ name }) => name);
  const cuda = names
    .filter((name) => name.startsWith("cuda"))
    .toSorted()
    .toReversed();
  const plain = names.filter((name) => name.endsWith("-linux-gnu"));
  return [
    ...cuda.flatMap((name) => librariesUnder(join(folder, name), DEPTH)),
    ...plain.flatMap((name) => librariesUnder(join(folder, name), 1)),
    ...librariesUnder(folder, 1),
  ];
}

function librariesUnder(folder: string, depth: number): string[] {
  if (depth === 0) return [];
  const inside = entries(folder);
  const here = inside
    .filter(({ name }) => FILE.test(name))
    .map(({ name }) => join(folder, name))
    .toSorted((a, b) => b.localeCompare(a));
  const deeper = inside.filter(
    (entry) => entry.isDirectory() && !/^(?:doc|include|share|src|__pycache__)/.test(entry.name),
  );
  return [...here, ...deeper.flatMap(({ name }) => librariesUnder(join(folder, name), depth - 1))];
}

function entries(folder: string): { readonly name: string; isDirectory(): boolean }[] {
  try {
    return readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
}

/** The part that cuBLAS needs, in the same folder. */
function ltBeside(path: string): string {
  const [, major = ""] = /\.so\.(\d+)/.exec(basename(path)) ?? [];
  const part = join(dirname(path), `libcublasLt.so.${major}`);
  return existsSync(part) ? part : "";
}

function openNative(path: string) {
  return dlopen(path, {
    product_open: { args: ["ptr", "ptr", "ptr", "i32", "ptr"], returns: "i32" },
    product_queue: { args: ["u32"], returns: "i32" },
    product_over: { args: ["ptr"], returns: "i32" },
    product_failure: { args: ["ptr", "u32"], returns: "i32" },
  }).symbols;
}

function failureText(native: ReturnType<typeof openNative>, status: number): string {
  const words = new Uint8Array(new ArrayBuffer(512));
  native.product_failure(words, words.length);
  const said = new TextDecoder().decode(words.subarray(0, words.indexOf(0)));
  const kind =
    status <= -20_000
      ? `cuBLAS status ${-20_000 - status}`
      : status > -10_000
        ? `CUDA result ${-status}`
        : `failure ${-status - 10_000}`;
  return said === "" ? kind : `${kind}, ${said}`;
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(`${value}\0`);
}
