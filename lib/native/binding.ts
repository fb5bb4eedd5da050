/**
 * The whole surface of the native addon, as TypeScript sees it. Nothing else crosses the
 * boundary: programs and manifests go in as JSON text once, a step is one Int32Array, a result
 * is one Int32Array. Implemented in native/node/.
 *
 * Errors thrown or rejected carry `code` (lib/errors.ts) and, where they apply, `rank`, `op`,
 * `step`; load.ts turns them into EngineError.
 */

export interface DeviceDescription {
  /** `cpu`, `cuda:0`, … */
  readonly name: string
  readonly backend: 'cpu' | 'cuda'
  /** What a person calls it: `AMD EPYC 9354`, `NVIDIA H200`. */
  readonly model: string
  readonly memoryBytes: number
  readonly freeMemoryBytes: number
  /** CPU: hardware threads this process may use. CUDA: streaming multiprocessors. */
  readonly units: number
  /** CPU: `avx512bf16`, `amx-bf16`, …; CUDA: `sm_90`. */
  readonly features: readonly string[]
  /** Devices whose memory this one maps directly. */
  readonly peers: readonly string[]
}

export interface DevicesDescription {
  readonly devices: readonly DeviceDescription[]
  /** Why a backend is absent: `{ cuda: 'no GPU' }`. */
  readonly missing: Readonly<Record<string, string>>
  /** Addon version and build options. */
  readonly build: Readonly<Record<string, string>>
}

/** A library of NVIDIA's that is opened at run time where it is found: NCCL, cuBLASLt. */
export interface LibraryDescription {
  readonly name: string
  readonly version?: string
  readonly path?: string
  /** Why it is not there, and what to do; instead of version and path. */
  readonly missing?: string
}

/** Signature of a native op: names as in lib/ops; a trailing `?` marks an optional input. */
export interface OpDescription {
  readonly name: string
  readonly inputs: readonly string[]
  readonly outputs: readonly string[]
  /** Attribute name → `number` | `string` | `boolean` | `numbers`; a trailing `?` on the type marks an optional one. */
  readonly attrs: Readonly<Record<string, string>>
  /** Waits for other ranks. */
  readonly collective: boolean
}

export interface RuntimeOptions {
  /** One entry per rank: where it runs. Devices may repeat (virtual ranks). */
  readonly ranks: readonly { readonly device: string }[]
  /** Ranks per attention group. */
  readonly tp: number
  /** Symmetric heap of each rank; at least the largest arenaBytes of its programs. */
  readonly heapBytes: number
  /** Worker threads of each CPU rank; 0: share the machine's cores among the ranks. */
  readonly threadsPerRank: number
  /** Bound on every wait for a peer, milliseconds. */
  readonly waitTimeoutMs: number
  readonly deterministic: boolean
  /** Instruction set cap for the CPU kernels: `auto`, or `portable` | `avx2` | `avx512` | `avx512bf16` | `amx`. */
  readonly cpuIsa: string
  /** CUDA: capture decoding steps as graphs; default true. */
  readonly graphs?: boolean
}

export interface LoadProgress {
  readonly bytesDone: number
  readonly bytesTotal: number
}

export interface NativeRuntime {
  /** Creates weight and KV buffers of all ranks from a WeightManifest (JSON text). Bytes never cross JS. */
  loadWeights(manifest: string, onProgress?: (progress: LoadProgress) => void): Promise<void>
  /** Verifies and prepares a Program (JSON text); resolves to its id. */
  loadProgram(program: string): Promise<number>
  /** Runs one step; steps of one runtime run in the order submitted, each promise settles once. */
  submit(programId: number, step: Int32Array): Promise<Int32Array>
  /** Tests only: bytes of an arena buffer of a program (or, with id -1, of a weight or KV buffer, unpacked). */
  read(programId: number, buffer: string, rank: number): Promise<Uint8Array>
  /** Tests only: overwrites the first bytes of an arena buffer of a program (or a KV buffer with id -1). */
  write(programId: number, buffer: string, rank: number, bytes: Uint8Array): Promise<void>
  /** Refuses new work, lets submitted steps finish, joins the threads, frees everything. Idempotent. */
  close(): Promise<void>
}

export interface NativeBinding {
  describeDevices(): DevicesDescription
  /** Opens each library: takes a second where it was not read before. For `doctor`. */
  describeLibraries(): LibraryDescription[]
  describeOps(): OpDescription[]
  readonly Runtime: new (options: RuntimeOptions) => NativeRuntime
}
