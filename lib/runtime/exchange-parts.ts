export { checkImport, importChecked } from "../core/registry-import.ts";
export { decodePackage } from "../wire/index.ts";
export { checkBlob, namesStaging } from "./blob-check.ts";
export { exportMetadata } from "./exporting.ts";
export { checkPackage } from "./package-trust.ts";
