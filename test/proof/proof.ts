// What every proof is asked, and what it answers.

/** What a proof is asked to do. */
export interface ProofOptions {
  /** Cases to try; a proof may stop earlier when `minutes` are over. Each says what a case of its own is. */
  readonly cases: number;
  /** Seed of everything random: the same seed tries the same cases. */
  readonly seed: number;
  /** Stops after this time; default none. */
  readonly minutes?: number;
  /** Told now and then how far a long proof is. */
  readonly progress?: (line: string) => void;
}

/** The same where a case can be repeated alone. */
export interface RepeatableOptions extends ProofOptions {
  /** First case of the seed; default 0. */
  readonly first?: number;
}

/** What a proof found. */
export interface ProofResult {
  readonly name: string;
  readonly cases: number;
  readonly failures: number;
  readonly seed: number;
  readonly seconds: number;
  /** Enough of each failure to repeat it. */
  readonly findings: readonly string[];
  /** How the cases were spread: a proof over refusals only would prove nothing. */
  readonly tally: Readonly<Record<string, number>>;
}
