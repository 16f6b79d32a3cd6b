import { open, readFile, rename, rm } from "node:fs/promises";
import { KvferryError } from "../core/errors.ts";
import type { ComponentShape } from "../core/layout.ts";

/** The file beside a layout's file that says what is in it. */
export function headerPath(path: string): string {
  return `${path}.kvferry`;
}

const FORMAT = 1;

/** What a header says: facts that decide whether blocks of a file are blocks of a layout. */
interface Header {
  readonly kvferryFile: number;
  readonly component: string;
  readonly fingerprint: string | null;
  readonly bytes: number;
  readonly shape: unknown;
}

/** Reads the header beside a file; null when there is none. */
export async function readHeader(path: string): Promise<Header | null> {
  let text: string;
  try {
    text = await readFile(headerPath(path), "utf8");
  } catch (error) {
    if (isMissing(error)) return null;
    throw unreadable(path, String(error), error);
  }
  try {
    const header = JSON.parse(text) as Header | null;
    if (typeof header === "object" && header !== null && header.kvferryFile === FORMAT) return header;
  } catch (error) {
    throw unreadable(path, "it is not JSON", error);
  }
  throw unreadable(path, "it is of another version", undefined);
}

/** Writes the header beside a file: under another name first, on the device, then renamed. */
export async function writeHeader(
  path: string,
  shape: ComponentShape,
  fingerprint: string | null,
  bytes: number,
): Promise<void> {
  const target = headerPath(path);
  const fresh = `${target}.${process.pid}.new`;
  try {
    const file = await open(fresh, "w", 0o644);
    try {
      await file.writeFile(`${JSON.stringify(headerOf(shape, fingerprint, bytes))}\n`);
      await file.datasync();
    } finally {
      await file.close();
    }
    await rename(fresh, target);
  } catch (error) {
    await rm(fresh, { force: true }).catch(() => undefined);
    throw new KvferryError(
      "IO",
      "register",
      `${target}: the header could not be written: ${String(error)}`,
      "Choose a directory that this process may write to, on a file system with space left.",
      { path: target },
      error,
    );
  }
}

/**
 * Refuses a file whose blocks are not blocks of this layout.
 *
 * @throws KvferryError `INCOMPATIBLE_LAYOUTS` that names the file and what differs.
 */
export function demandSame(
  path: string,
  header: Header,
  shape: ComponentShape,
  fingerprint: string | null,
  bytes: number,
): void {
  const wanted = headerOf(shape, fingerprint, bytes);
  const differs: string[] = [];
  if (header.fingerprint !== wanted.fingerprint) differs.push("fingerprint");
  if (header.component !== wanted.component) differs.push("component");
  if (header.bytes !== wanted.bytes) differs.push("bytes");
  const [was, is] = [header.shape as Record<string, unknown>, JSON.parse(JSON.stringify(wanted.shape))];
  for (const field of ["config", "arrangement", "order", "regions"])
    if (JSON.stringify(was?.[field]) !== JSON.stringify((is as Record<string, unknown>)[field]))
      differs.push(field);
  if (differs.length === 0) return;
  throw new KvferryError(
    "INCOMPATIBLE_LAYOUTS",
    "register",
    `${path}: was made for another layout: ${differs.join(", ")} differ`,
    'Give the config, arrangement and fingerprint that it was made with, or make it anew with `open: "create"`.',
    { path, differs },
  );
}

function headerOf(shape: ComponentShape, fingerprint: string | null, bytes: number): Header {
  return {
    kvferryFile: FORMAT,
    component: shape.name,
    fingerprint,
    bytes,
    shape: {
      config: shape.config,
      arrangement: shape.arrangement,
      order: shape.order,
      regions: shape.view.regionCount,
    },
  };
}

function unreadable(path: string, why: string, cause: unknown): KvferryError {
  return new KvferryError(
    "IO",
    "register",
    `${headerPath(path)}: the header could not be read: ${why}`,
    'Put the header back, or make the file anew with `open: "create"` after removing both.',
    { path: headerPath(path) },
    cause,
  );
}

function isMissing(error: unknown): boolean {
  return (
    typeof error === "object" &&
    error !== null &&
    "code" in error &&
    (error.code === "ENOENT" || error.code === "ENOTDIR")
  );
}
