// What may go wrong in a world.
import type { Random } from "../random.ts";

/** What may go wrong in a case; everything off is a world without faults. */
export interface SimFaults {
  readonly refuse: number;
  readonly fail: number;
  readonly breakOff: number;
  readonly hang: number;
  readonly slow: number;
  readonly deafToCancel: number;
  /** Calls of the control thread that fail. */
  readonly control: number;
  /** Copies inside a process that take long: a disk that is busy. */
  readonly slowCopy: number;
  /** Copies inside a process of which the first piece takes very long, whatever they are asked. */
  readonly hangCopy: number;
}

/** A world in which nothing goes wrong. */
export const NO_FAULTS: SimFaults = {
  refuse: 0,
  fail: 0,
  breakOff: 0,
  hang: 0,
  slow: 0,
  deafToCancel: 0,
  control: 0,
  slowCopy: 0,
  hangCopy: 0,
};

/** Some of what may go wrong, at random rates. */
export function someFaults(random: Random): SimFaults {
  const some = (): number => (random.chance(0.5) ? random.between(0, 30) / 100 : 0);
  return {
    refuse: some() / 4,
    fail: some(),
    breakOff: some(),
    hang: some(),
    slow: some(),
    deafToCancel: some(),
    control: some() / 4,
    slowCopy: some() * 2,
    hangCopy: some() / 4,
  };
}
