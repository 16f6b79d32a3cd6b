// What ncu prints as CSV, and which move of blocks each launch belongs to.

/** One move of blocks that the watched program made. */
export interface Move {
  readonly name: string;
  readonly round: number;
  readonly bytes: number;
  readonly method: string;
  readonly width: number;
}

/** What the watched program says at its end. */
export interface Moves {
  readonly moves: readonly Move[];
}

/** One figure of one launch. */
export interface Figure {
  /** The launch's number in ncu's order. */
  readonly launch: number;
  readonly kernel: string;
  readonly grid: string;
  readonly block: string;
  readonly metric: string;
  readonly unit: string;
  readonly value: number;
}

/** A figure, and the move that its launch is a part of. */
export interface MoveFigure extends Omit<Figure, "launch">, Move {
  /** 0 for the first launch of the move. */
  readonly launch: number;
}

/** The kernel that stands before each move. */
const MARK = "kvf_sleep";
/** Columns of every table that are no metrics. */
const PLAIN = new Set([
  "ID",
  "Process ID",
  "Process Name",
  "Host Name",
  "Kernel Name",
  "Kernel Time",
  "Context",
  "Stream",
  "Block Size",
  "Grid Size",
  "Device",
  "CC",
]);

/**
 * Reads ncu's CSV, with a row for each figure or with a row for each launch (`--page raw`); lines of other kinds around
 * it are left out. Values that are no numbers are left out too.
 */
export function readFigures(text: string): readonly Figure[] {
  const lines = text.split(/\r?\n/).filter((line) => line.startsWith('"'));
  const from = lines.findIndex((line) => line.startsWith('"ID",'));
  if (from < 0) return [];
  const header = cellsOf(lines[from] ?? "");
  const rows = lines.slice(from + 1).map((line) => {
    const cells = cellsOf(line);
    return new Map(header.map((name, column) => [name, cells[column] ?? ""]));
  });
  return header.includes("Metric Name") ? rows.flatMap(figureOf) : wideFigures(header, rows);
}

/**
 * The figures of launches that belong to moves: those between one mark and the next, without the marks.
 *
 * @throws Error when there are not as many marks as moves.
 */
export function figuresOfMoves(figures: readonly Figure[], moves: readonly Move[]): readonly MoveFigure[] {
  const kernels = new Map(figures.map(({ launch, kernel }) => [launch, kernel]));
  const order = [...kernels.keys()].toSorted((a, b) => a - b);
  const places = new Map<number, { readonly move: number; readonly launch: number }>();
  let [move, launch] = [-1, 0];
  for (const id of order)
    if (kernels.get(id)?.startsWith(MARK) === true) [move, launch] = [move + 1, 0];
    else {
      places.set(id, { move, launch });
      launch += 1;
    }
  if (move + 1 !== moves.length) throw new Error(`${move + 1} marks were seen for ${moves.length} moves`);
  return figures.flatMap((figure) => {
    const place = places.get(figure.launch);
    const made = place === undefined ? undefined : moves[place.move];
    return place === undefined || made === undefined ? [] : [{ ...made, ...figure, launch: place.launch }];
  });
}

function figureOf(row: ReadonlyMap<string, string>): Figure[] {
  const value = numberOf(row.get("Metric Value") ?? "");
  const metric = row.get("Metric Name") ?? "";
  if (value === null || metric === "") return [];
  return [{ ...launchOf(row), metric, unit: row.get("Metric Unit") ?? "", value }];
}

/** The first row has the units. */
function wideFigures(
  header: readonly string[],
  [units, ...rows]: readonly ReadonlyMap<string, string>[],
): Figure[] {
  return rows.flatMap((row) =>
    header
      .filter((name) => !PLAIN.has(name))
      .flatMap((metric) => {
        const value = numberOf(row.get(metric) ?? "");
        return value === null ? [] : [{ ...launchOf(row), metric, unit: units?.get(metric) ?? "", value }];
      }),
  );
}

function launchOf(row: ReadonlyMap<string, string>): Omit<Figure, "metric" | "unit" | "value"> {
  return {
    launch: Number(row.get("ID")),
    kernel: row.get("Kernel Name") ?? "",
    grid: row.get("Grid Size") ?? "",
    block: row.get("Block Size") ?? "",
  };
}

/** With commas between thousands. */
function numberOf(text: string): number | null {
  const plain = text.replaceAll(",", "");
  return plain === "" || !Number.isFinite(Number(plain)) ? null : Number(plain);
}

/** Cells of a line, each in quotes; a quote inside is doubled. */
function cellsOf(line: string): string[] {
  return [...line.matchAll(/"((?:[^"]|"")*)"(?:,|$)/g)].map(([, cell = ""]) => cell.replaceAll('""', '"'));
}
