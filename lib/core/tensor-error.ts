import { KvferryError } from "./errors.ts";

/** What errors say that was being done. */
export const TENSOR_OPERATION = "layoutFromTensor" as const;

/**
 * A tensor that cannot be a layout.
 *
 * @param axis - What is wrong: an axis, or a field of the description.
 * @param index - The axis's index, or -1 where it is none.
 */
export function wrongTensor(axis: string, index: number, message: string, found: unknown): KvferryError {
  return new KvferryError(
    "INVALID_CONFIG",
    TENSOR_OPERATION,
    index < 0 ? message : `${message} (axis ${index} of the tensor)`,
    "Compare shape, strides and axes with what the engine prints for the tensor.",
    { axis, index, found },
  );
}
