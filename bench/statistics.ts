/** Two bounds between which the true value lies with 95 % confidence. */
export type Interval = readonly [low: number, high: number];

/** How often {@link bootstrapRatio} draws; more changes the third digit only. */
const DRAWS = 2_000;

/** The middle value; the mean of the two middle ones for an even count. NaN of nothing. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** A quantile by linear interpolation between order statistics (Hyndman and Fan's type 7). NaN of nothing. */
export function quantile(values: readonly number[], at: number): number {
  const sorted = Float64Array.from(values).toSorted();
  if (sorted.length === 0) return Number.NaN;
  const position = (sorted.length - 1) * Math.min(1, Math.max(0, at));
  const below = Math.floor(position);
  const low = sorted[below] ?? Number.NaN;
  const high = sorted[Math.min(below + 1, sorted.length - 1)] ?? low;
  return low + (high - low) * (position - below);
}

/** Pairs that were measured one after the other in one process. */
export interface PairedSamples {
  readonly ours: readonly number[];
  readonly other: readonly number[];
}

/**
 * The median ratio ours / other of paired samples, and its 95 % interval by a two-level bootstrap: processes are drawn
 * with replacement, then pairs within each drawn process, because processes differ more than the samples inside one
 * (Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13: clustered data, percentile interval).
 *
 * @param processes - One entry for each process; its two lists are equally long.
 * @param seed - Of the draws: the same samples and seed give the same interval.
 * @throws RangeError when there are no pairs or a process has lists of different lengths.
 */
export function bootstrapRatio(
  processes: readonly PairedSamples[],
  seed = 1,
): { readonly ratio: number; readonly interval: Interval } {
  const ratios = processes.map(ratiosOf);
  const all = ratios.flat();
  if (all.length === 0) throw new RangeError("there are no pairs of samples");
  const random = seededRandom(seed);
  const medians: number[] = [];
  for (let draw = 0; draw < DRAWS; draw += 1) {
    const drawn: number[] = [];
    for (let count = 0; count < ratios.length; count += 1) {
      const one = ratios[Math.floor(random() * ratios.length)] ?? [];
      for (let pair = 0; pair < one.length; pair += 1)
        drawn.push(one[Math.floor(random() * one.length)] ?? Number.NaN);
    }
    if (drawn.length > 0) medians.push(median(drawn));
  }
  return { ratio: median(all), interval: [quantile(medians, 0.025), quantile(medians, 0.975)] };
}

/** Numbers in [0, 1) that depend on the seed only (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), 1 | state);
    word = (word + Math.imul(word ^ (word >>> 7), 61 | word)) ^ word;
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The numbers below `count` in an order that depends on the seed only. */
export function shuffled(count: number, seed: number): Uint32Array {
  const random = seededRandom(seed);
  const order = Uint32Array.from({ length: count }, (_, index) => index);
  for (let index = count - 1; index > 0; index -= 1) {
    const other = Math.floor(random() * (index + 1));
    const kept = order[index] as number; // in bounds
    order[index] = order[other] as number; // in bounds
    order[other] = kept;
  }
  return order;
}

function ratiosOf(pairs: PairedSamples): number[] {
  if (pairs.ours.length !== pairs.other.length)
    throw new RangeError(`${pairs.ours.length} samples of ours, but ${pairs.other.length} of the other`);
  return pairs.ours.map((ours, index) => ours / (pairs.other[index] ?? Number.NaN));
}
