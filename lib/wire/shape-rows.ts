import type { Arrangement, RegionScheme } from "../core/arrangement.ts";
import { ENGINE_AXES } from "../core/axes.ts";
import { DTYPE_BITS } from "../core/dtype.ts";
import type { PackageComponent } from "../core/package.ts";

/** What all components of one shape have in common: everything but their memory. Frozen. */
export type PackageShape = Omit<
  PackageComponent,
  "storage" | "regionAddresses" | "regionSizes" | "nixlDevice"
>;

/** Numbers of a shape's row, 64-bit floats. */
export const SHAPE_NUMBERS = 17;
/** Words of a shape's row. */
export const SHAPE_WORDS = 6;

/** Stands for "not given" among a row's numbers, where 0 is a value. */
export const NONE = -1;

// An arrangement's word: a place in the first list, from FIRST_ENGINE on one in the second, from FIRST_SCHEME on one in the
// third, with strides among the numbers.
export const PRESETS: readonly Arrangement[] = [
  "fully-contiguous",
  "layer-separate/block-first",
  "layer-separate/block-second",
];
export const ENGINES: readonly string[] = Object.keys(ENGINE_AXES);
export const SCHEMES: readonly RegionScheme[] = ["one", "per-layer", "per-layer-and-outer"];
export const FIRST_ENGINE = 16;
export const FIRST_SCHEME = 64;

/** Element types by their words. */
export const DTYPES: readonly string[] = Object.keys(DTYPE_BITS);
