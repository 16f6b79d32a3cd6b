/*
 * body.h - what the copy kernels do, for one thread of one CTA. The same text is compiled for the GPU and, with the
 * few operations below in plain C, for a host loop over CTAs and threads: no thread needs another one's result.
 *
 * Four shapes, each with a file of its own:
 *   rows    short rows: neighbouring threads take neighbouring vectors of W bytes of the flattened program, so that rows
 *           shorter than a warp's reach still fill it; every vector finds its own row.
 *   pieces  long rows: a warp takes a piece of a row and streams through it.
 *   slices  long rows of a list in host memory: a CTA takes neighbouring pieces, and fetches their pairs at once.
 *   bulk    pieces that the bulk copy engine moves through shared memory.
 * Rows need not be multiples of W: what is left over is copied byte by byte by the thread that owns the end.
 */
#ifndef KVF_KERNEL_BODY_H
#define KVF_KERNEL_BODY_H

#include "bulk.h"
#include "pieces.h"
#include "rows.h"
#include "slices.h"

#endif
