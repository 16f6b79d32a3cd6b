import type { DTypeName } from "./config.ts";
import { dtypeBits, isDTypeName } from "./dtype.ts";
import { checkedInteger } from "./integers.ts";
import { TENSOR_OPERATION, wrongTensor } from "./tensor-error.ts";

/** An element type: kvferry's name, PyTorch's (`torch.bfloat16`) or DLPack's triple. */
export type TensorDType = string | { readonly code: number; readonly bits: number; readonly lanes: number };

/**
 * Bits and kvferry's name of an element type; null where there is a width but no name.
 *
 * @throws KvferryError `INVALID_CONFIG` for an unknown name, or more than 64 bits.
 */
export function resolveDType(given: TensorDType): {
  readonly bits: number;
  readonly dtype: DTypeName | null;
} {
  if (typeof given === "object" && given !== null) {
    const lanes = checkedInteger(given.lanes, "dtype.lanes", 1, 64, TENSOR_OPERATION);
    const bits = checkedInteger(given.bits, "dtype.bits", 1, 64, TENSOR_OPERATION) * lanes;
    checkedInteger(bits, "dtype.bits x dtype.lanes", 1, 64, TENSOR_OPERATION);
    return { bits, dtype: lanes === 1 ? (DLPACK_DTYPES[`${given.code}/${bits}`] ?? null) : null };
  }
  const short = typeof given === "string" ? given.replace(/^torch\./, "") : "";
  const dtype = isDTypeName(short)
    ? short
    : Object.hasOwn(TORCH_DTYPES, short)
      ? TORCH_DTYPES[short]
      : undefined;
  if (dtype === undefined)
    throw wrongTensor("dtype", -1, `unknown element type ${JSON.stringify(given)}`, given);
  return { bits: dtypeBits(dtype), dtype };
}

const TORCH_DTYPES: Readonly<Record<string, DTypeName>> = {
  float16: "f16",
  half: "f16",
  bfloat16: "bf16",
  float32: "f32",
  float: "f32",
  float64: "f64",
  double: "f64",
  float8_e4m3fn: "fp8",
  float8_e4m3fnuz: "fp8",
  float8_e5m2: "fp8",
  float8_e5m2fnuz: "fp8",
  int8: "int8",
  uint8: "u8",
  int32: "i32",
  int64: "i64",
};

/** By DLPack's type code and bits. */
const DLPACK_DTYPES: Readonly<Record<string, DTypeName>> = {
  "0/8": "int8",
  "0/32": "i32",
  "0/64": "i64",
  "1/8": "u8",
  "2/16": "f16",
  "2/32": "f32",
  "2/64": "f64",
  "4/16": "bf16",
};
