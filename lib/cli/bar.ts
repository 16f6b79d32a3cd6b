/** Where a bar is drawn: a terminal's stream, or anything else, on which nothing is drawn. */
export interface BarStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

/** A bar on the last line of a terminal, which other lines go above of. */
export interface Bar {
  /** Draws how far the work is; at its end the bar goes away. */
  update(label: string, done: number, total: number): void;
  /** Takes the bar away, before another line is written. */
  clear(): void;
}

const ERASE = "\r\u001b[2K";
const DEFAULT_COLUMNS = 80;
const MOST_CELLS = 40;
const LEAST_CELLS = 10;

/** The line of a bar, never wider than the terminal: label, cells, percent. */
export function barLine(label: string, done: number, total: number, columns: number): string {
  const part = total > 0 ? Math.min(1, Math.max(0, done / total)) : 1;
  const percent = `${Math.floor(part * 100)}`.padStart(3);
  const cells = Math.min(MOST_CELLS, columns - label.length - percent.length - 6);
  if (cells < LEAST_CELLS) return `${label} ${percent} %`.slice(0, Math.max(0, columns - 1));
  const full = Math.floor(part * cells);
  return `${label} [${"#".repeat(full)}${"-".repeat(cells - full)}] ${percent} %`;
}

/** A bar on a terminal; on anything else nothing is drawn. */
export function barOn(stream: BarStream): Bar {
  let drawn = "";
  const clear = (): void => {
    if (drawn !== "") stream.write(ERASE);
    drawn = "";
  };
  return {
    clear,
    update(label, done, total) {
      if (stream.isTTY !== true) return;
      if (done >= total) {
        clear();
        return;
      }
      const line = barLine(label, done, total, stream.columns ?? DEFAULT_COLUMNS);
      if (line === drawn) return;
      stream.write(`${drawn === "" ? "" : ERASE}${line}`);
      drawn = line;
    },
  };
}
