/**
 * Compiles copy.cu with NVRTC for every architecture that ships and writes embedded.bin, which the library includes
 * as it is, and embedded.h with its size and the hash of the sources.
 *
 *     bun cshim/kernels/build.ts           compile and write
 *     bun cshim/kernels/build.ts --check   only say whether what is there was made from these sources
 *
 * NVRTC 12.9 makes code that runs on drivers from 525 on; it needs no GPU, no nvcc and no host compiler. It is fetched
 * once, as a Python package, into the user's cache.
 */
import { CString, dlopen, ptr, type Pointer } from "bun:ffi";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const PACKAGE = "nvidia-cuda-nvrtc-cu12==12.9.86";
const HEADERS = [
  "program.h",
  "address.h",
  "vector.h",
  "rows.h",
  "pieces.h",
  "slices.h",
  "bulk.h",
  "body.h",
] as const;
const SOURCES = [...HEADERS, "copy.cu"] as const;
/** Machine code for these, and one text for everything newer or between. */
const CUBINS = [75, 80, 86, 89, 90, 100, 120] as const;
const PTX = 75;

const folder = import.meta.dir;
const hash = sourceHash();
if (Bun.argv.includes("--check")) {
  const stands = recordedHash();
  console.error(
    stands === hash ? `kernels: up to date (${hash})` : `kernels: made from ${stands}, sources are ${hash}`,
  );
  process.exit(stands === hash ? 0 : 1);
}
build();

function build(): void {
  const compile = openCompiler(fetchCompiler());
  const images = [
    ...CUBINS.map((arch) => ({ arch, text: 0, bytes: compile(arch, false) })),
    { arch: PTX, text: 1, bytes: compile(PTX, true) },
  ];
  const blob = pack(images);
  writeFileSync(join(folder, "embedded.bin"), blob);
  writeFileSync(join(folder, "embedded.h"), header(blob.length));
  for (const image of images)
    console.error(`${image.text ? "compute" : "sm"}_${image.arch}: ${image.bytes.length} bytes`);
  console.error(`embedded.bin: ${blob.length} bytes, sources ${hash}`);
}

/**
 * Images one after the other behind a table: count, then (arch, is text, offset, packed bytes, bytes) each, all 32-bit
 * words. An image is packed as runs of words: how many follow as they are, how many zeros come behind them; machine code
 * is a quarter zeros.
 */
function pack(images: readonly { arch: number; text: number; bytes: Uint8Array }[]): Uint8Array {
  const packed = images.map((image) => packZeros(image.bytes));
  let end = 4 * (1 + 5 * images.length);
  const table = [images.length];
  images.forEach((image, i) => {
    const bytes = packed[i]?.byteLength ?? 0;
    table.push(image.arch, image.text, end, bytes, image.bytes.length);
    end += bytes;
  });
  const blob = new Uint8Array(end);
  new Uint32Array(blob.buffer, 0, table.length).set(table);
  packed.forEach((words, i) => {
    blob.set(new Uint8Array(words.buffer, 0, words.byteLength), table[1 + 5 * i + 2]);
  });
  return blob;
}

function packZeros(bytes: Uint8Array): Uint32Array {
  const words = new Uint32Array(Math.ceil(bytes.length / 4));
  new Uint8Array(words.buffer).set(bytes);
  const out: number[] = [];
  for (let at = 0; at < words.length;) {
    let zeros = at;
    while (zeros < words.length && !(words[zeros] === 0 && words[zeros + 1] === 0 && words[zeros + 2] === 0))
      zeros++;
    let next = zeros;
    while (next < words.length && words[next] === 0) next++;
    out.push(zeros - at, next - zeros, ...words.subarray(at, zeros));
    at = next;
  }
  return Uint32Array.from(out);
}

function header(bytes: number): string {
  return [
    "/* Written by build.ts; do not edit. */",
    "#ifndef KVF_KERNELS_EMBEDDED_H",
    "#define KVF_KERNELS_EMBEDDED_H",
    "",
    `#define KVF_KERNELS_BYTES ${bytes}`,
    `#define KVF_KERNELS_HASH "${hash}"`,
    "",
    "#endif",
    "",
  ].join("\n");
}

function sourceHash(): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const name of SOURCES) hasher.update(readFileSync(join(folder, name)));
  hasher.update(`${PACKAGE} ${CUBINS.join()} ${PTX}`);
  return hasher.digest("hex").slice(0, 16);
}

function recordedHash(): string {
  const path = join(folder, "embedded.h");
  return existsSync(path)
    ? (/KVF_KERNELS_HASH "([0-9a-f]*)"/.exec(readFileSync(path, "utf8"))?.[1] ?? "nothing")
    : "nothing";
}

/** Returns the folder that holds libnvrtc.so.12, fetching it when it is not there yet. */
function fetchCompiler(): string {
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "kvferry", "nvrtc");
  const libraries = join(cache, "nvidia", "cuda_nvrtc", "lib");
  if (existsSync(join(libraries, "libnvrtc.so.12"))) return libraries;
  mkdirSync(cache, { recursive: true });
  run(["python3", "-m", "pip", "download", "-q", "--no-deps", "-d", cache, PACKAGE]);
  const wheel = readdirSync(cache).find((name) => name.endsWith(".whl"));
  if (wheel === undefined) throw new Error(`no package file in ${cache}`);
  run(["python3", "-m", "zipfile", "-e", join(cache, wheel), cache]);
  return libraries;
}

function run(command: string[]): void {
  const done = Bun.spawnSync(command, { stdout: "inherit", stderr: "inherit" });
  if (done.exitCode !== 0) throw new Error(`failed: ${command.join(" ")}`);
}

/** Loads NVRTC and returns a function that compiles copy.cu to machine code or to PTX. */
function openCompiler(libraries: string): (arch: number, text: boolean) => Uint8Array {
  const { symbols: nvrtc } = dlopen(join(libraries, "libnvrtc.so.12"), {
    nvrtcCreateProgram: { args: ["ptr", "ptr", "ptr", "i32", "ptr", "ptr"], returns: "i32" },
    nvrtcCompileProgram: { args: ["ptr", "i32", "ptr"], returns: "i32" },
    nvrtcGetCUBINSize: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetCUBIN: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetPTXSize: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetPTX: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetProgramLogSize: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetProgramLog: { args: ["ptr", "ptr"], returns: "i32" },
    nvrtcGetErrorString: { args: ["i32"], returns: "ptr" },
  });
  const text = (name: string): Uint8Array => terminated(readFileSync(join(folder, name), "utf8"));
  const kept = { source: text("copy.cu"), bodies: HEADERS.map(text), names: HEADERS.map(terminated) };

  return (arch, asText) => {
    const word = new BigUint64Array(new ArrayBuffer(8));
    check(
      nvrtc.nvrtcCreateProgram(
        word,
        kept.source,
        terminated("copy.cu"),
        HEADERS.length,
        addresses(kept.bodies),
        addresses(kept.names),
      ),
      "create",
    );
    const program = Number(word[0]) as Pointer;
    const options = [
      `--gpu-architecture=${asText ? "compute" : "sm"}_${arch}`,
      "--std=c++17",
      "-default-device",
      "--restrict",
    ].map(terminated);
    const status = nvrtc.nvrtcCompileProgram(program, options.length, addresses(options));
    const log = take(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program, "log");
    if (log.length > 1) console.error(new TextDecoder().decode(log));
    check(status, `compile for ${arch}`);
    return asText
      ? take(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program, "PTX")
      : take(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program, "machine code");
  };

  type Sized = (program: Pointer, out: NodeJS.TypedArray) => number;
  function take(size: Sized, get: Sized, program: Pointer, what: string): Uint8Array {
    const word = new BigUint64Array(new ArrayBuffer(8));
    check(size(program, word), `size of ${what}`);
    const bytes = new Uint8Array(new ArrayBuffer(Math.max(1, Number(word[0]))));
    check(get(program, bytes), what);
    return bytes;
  }

  function check(status: number, what: string): void {
    if (status === 0) return;
    const reason = nvrtc.nvrtcGetErrorString(status);
    throw new Error(`NVRTC: ${what}: ${reason === null ? status : new CString(reason).toString()}`);
  }
}

function terminated(value: string): Uint8Array {
  const bytes = new TextEncoder().encode(value);
  const out = new Uint8Array(new ArrayBuffer(bytes.length + 1));
  out.set(bytes);
  return out;
}

function addresses(of: readonly Uint8Array[]): BigUint64Array {
  const out = new BigUint64Array(new ArrayBuffer(8 * of.length));
  of.forEach((bytes, i) => {
    out[i] = BigInt(ptr(bytes));
  });
  return out;
}
