import type { BlockRuns } from "./blocks.ts";

/** Segments of one length: pairs of places inside blocks where that many tokens follow each other on both sides. */
export interface SegmentGroup {
  /** Tokens in each segment. */
  readonly tokens: number;
  /** Byte offset of each segment's first token on each side: block and page, without layer, outer and head. */
  readonly source: Float64Array;
  readonly destination: Float64Array;
}

/** One side of two token streams. */
export interface Stream {
  readonly ids: Uint32Array;
  /** Tokens in a block. */
  readonly page: number;
  /** Byte strides of a block and of a page. */
  readonly blockStride: number;
  readonly pageStride: number;
  /** First token of the stream that is moved. */
  readonly start: number;
}

/**
 * Cuts two token streams where either side's block ends, and groups the segments by length, in stream order.
 *
 * Two pointers walk the streams once: linear in the number of blocks.
 *
 * @param count - Tokens to move; both streams hold at least `start + count`.
 */
export function segmentStreams(source: Stream, destination: Stream, count: number): readonly SegmentGroup[] {
  if (count === 0) return [];
  const most = segmentLimit(source, count) + segmentLimit(destination, count);
  const from = new Float64Array(most);
  const to = new Float64Array(most);
  const lengths = new Float64Array(most);
  let sourceBlock = Math.floor(source.start / source.page);
  let sourcePage = source.start % source.page;
  let destinationBlock = Math.floor(destination.start / destination.page);
  let destinationPage = destination.start % destination.page;
  let left = count;
  let found = 0;
  let alike = 0;
  while (left > 0) {
    const sourceLeft = source.page - sourcePage;
    const destinationLeft = destination.page - destinationPage;
    let length = sourceLeft < destinationLeft ? sourceLeft : destinationLeft;
    if (left < length) length = left;
    from[found] = (source.ids[sourceBlock] as number) * source.blockStride + sourcePage * source.pageStride; // in bounds
    to[found] =
      (destination.ids[destinationBlock] as number) * destination.blockStride + // in bounds
      destinationPage * destination.pageStride;
    lengths[found] = length;
    if (length === lengths[0]) alike++;
    found++;
    left -= length;
    sourcePage += length;
    destinationPage += length;
    if (sourcePage === source.page) {
      sourcePage = 0;
      sourceBlock++;
    }
    if (destinationPage === destination.page) {
      destinationPage = 0;
      destinationBlock++;
    }
  }
  const tokens = lengths[0] as number; // count > 0: there is a first segment
  if (alike === found)
    return [{ tokens, source: from.subarray(0, found), destination: to.subarray(0, found) }];
  return grouped(from, to, lengths.subarray(0, found));
}

/**
 * Finds runs of segments that follow each other at fixed strides on both sides, rising or falling, in list order.
 *
 * A falling run is given by its last segment, so that every run rises.
 */
export function segmentRuns(group: SegmentGroup, sourceStride: number, destinationStride: number): BlockRuns {
  const { source, destination } = group;
  const total = source.length;
  const head = new Uint32Array(total);
  const length = new Uint32Array(total);
  let runs = 0;
  let first = 0;
  let direction = 0;
  for (let index = 1; index <= total; index++) {
    let step = 0;
    if (index < total) {
      const ahead = (source[index] as number) - (source[index - 1] as number); // in bounds
      const along = (destination[index] as number) - (destination[index - 1] as number);
      if (ahead === sourceStride && along === destinationStride) step = 1;
      else if (ahead === -sourceStride && along === -destinationStride) step = -1;
    }
    if (step !== 0 && (direction === 0 || direction === step)) {
      direction = step;
      continue;
    }
    head[runs] = direction < 0 ? index - 1 : first;
    length[runs++] = index - first;
    first = index;
    direction = 0;
  }
  if (runs === total) return { total, runs, head: null, length: null, uniform: 1 };
  const common = length[0] ?? 0;
  let uniform = common;
  for (let index = 1; index < runs; index++) if (length[index] !== common) uniform = 0;
  return { total, runs, head: head.subarray(0, runs), length: length.subarray(0, runs), uniform };
}

/** One group for each length, in the order in which the lengths first appear. */
function grouped(from: Float64Array, to: Float64Array, lengths: Float64Array): readonly SegmentGroup[] {
  const sizes = new Map<number, number>();
  for (const length of lengths) sizes.set(length, (sizes.get(length) ?? 0) + 1);
  const groups: SegmentGroup[] = [];
  for (const [tokens, size] of sizes) {
    const group = { tokens, source: new Float64Array(size), destination: new Float64Array(size) };
    let at = 0;
    for (let index = 0; at < size; index++) {
      if (lengths[index] !== tokens) continue;
      group.source[at] = from[index] as number; // in bounds
      group.destination[at++] = to[index] as number; // in bounds
    }
    groups.push(group);
  }
  return groups;
}

function segmentLimit(stream: Stream, count: number): number {
  return Math.ceil(count / stream.page) + 1;
}
