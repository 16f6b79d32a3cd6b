/** What `kvferry/plugin` put into an executable. */
export interface EmbeddedShim {
  /** `linux-x64` or `linux-arm64`. */
  readonly platform: string;
  /** Path of the library, as the executable sees it. */
  readonly path: string;
  /** Hash of the native interface that it was built from. */
  readonly abi: string;
}

/** The native library inside this executable; null in everything that was not built with the plugin, which replaces this module. */
export const embeddedShim: EmbeddedShim | null = null;
