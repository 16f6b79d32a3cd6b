import type { BenchResult } from "./result.ts";

/** Rows that differ in the size at the end of their id only, smallest first; or a row of its own. */
export interface RowGroup {
  /** e.g. `F1.d2h.pool.4k to 256k`. */
  readonly name: string;
  readonly rows: readonly BenchResult[];
}

/** Rows in groups, in the order in which they stand. */
export function rowGroups(rows: readonly BenchResult[]): readonly RowGroup[] {
  const groups = Map.groupBy(rows, ({ id }) => (sizeOf(id) === null ? id : id.slice(0, id.lastIndexOf("."))));
  return [...groups].map(([, members]) => {
    const ordered = members.toSorted((a, b) => (sizeOf(a.id) ?? 0) - (sizeOf(b.id) ?? 0));
    const [first, last] = [ordered[0]?.id ?? "", ordered.at(-1)?.id ?? ""];
    const name = first === last ? first : `${first} to ${last.slice(last.lastIndexOf(".") + 1)}`;
    return { name, rows: ordered };
  });
}

/** The size that an id ends with: `F1.d2h.pool.64k` has 65,536. */
export function sizeOf(id: string): number | null {
  const found = /\.(\d+)(k|m|g)?$/.exec(id);
  if (found === null) return null;
  return (
    Number(found[1]) * { k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, "": 1 }[(found[2] ?? "") as "k" | "m" | "g" | ""]
  );
}

/** How sizes of these rows are written: as bytes, or as plain counts where no id gives one with a letter (`F7.submit.4096`). */
export function sizeWords(ids: readonly string[]): (size: number) => string {
  return ids.some((id) => /\.\d+[kmg]$/.test(id)) ? sizeText : (size) => size.toLocaleString("en-US");
}

/** A size in words. */
export function sizeText(bytes: number): string {
  if (bytes >= 2 ** 20) return `${bytes / 2 ** 20} MiB`;
  return bytes >= 2 ** 10 ? `${bytes / 2 ** 10} KiB` : `${bytes} B`;
}
