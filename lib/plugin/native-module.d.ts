/** Given by the plugin of `kvferry/plugin`: what a build embedded, or what a process that preloads the plugin uses. */
declare module "kvferry:native" {
  /** Null in a build for a platform that has no native library: there `Transport.open` throws `UNSUPPORTED_PLATFORM`. */
  // oxlint-disable-next-line typescript/consistent-type-imports -- an ambient module cannot import a file
  export const native: import("./index.ts").NativeModule | null;
}
