/**
 * Published hardware, by name. Every rate says where it comes from; what nobody has published for a
 * card is taken from its nearest relative, and the entry says so.
 */

import { EngineError } from '../errors.ts'
import type { Hardware, Interference, MatmulTile, ShareTable } from './hardware.ts'

const NANOFLOW = 'NanoFlow, https://arxiv.org/abs/2408.12757'
const TOKENWEAVE =
  'TokenWeave, https://github.com/microsoft/tokenweave, artifacts_results/output (8×H100 SXM)'
const MAMF =
  'best matmul rates found by https://github.com/stas00/ml-engineering (compute/accelerator, MAMF)'

/** NanoFlow, table 3 and §4.1.4 (attention at R = 0.4 keeps 80 % of its rate); A100. */
const NANOFLOW_MEMORY: ShareTable = [
  [0, 0],
  [0.1, 0.2],
  [0.2, 0.3],
  [0.4, 0.8],
  [0.8, 0.85],
  [0.9, 0.95],
  [1, 1],
]
const NANOFLOW_NETWORK: ShareTable = [
  [0, 0],
  [0.1, 0.3],
  [0.2, 0.5],
  [0.8, 0.9],
  [0.9, 1],
  [1, 1],
]

/**
 * TokenWeave, figure_4_10_hs_8192.csv, fused_arln_us at 8192 tokens: 1571, 913, 563, 504, 503 µs with
 * 2, 4, 8, 16, 32 of 132 multiprocessors.
 */
const MULTICAST_NETWORK: ShareTable = [
  [0, 0],
  [2 / 132, 0.32],
  [4 / 132, 0.55],
  [8 / 132, 0.894],
  [16 / 132, 1],
  [1, 1],
]

/** A multiprocessor stores some 8 GB/s to a peer over PCIe, so a few of them fill the link; not measured. */
const PCIE_NETWORK: ShareTable = [
  [0, 0],
  [2 / 128, 0.5],
  [4 / 128, 0.9],
  [8 / 128, 1],
  [1, 1],
]

const OVER_PCIE: Interference = { memory: NANOFLOW_MEMORY, network: PCIE_NETWORK }
const WITHOUT_MULTICAST: Interference = { memory: NANOFLOW_MEMORY, network: NANOFLOW_NETWORK }
const WITH_MULTICAST: Interference = { memory: NANOFLOW_MEMORY, network: MULTICAST_NETWORK }

/** mma.sync kernels: operands pass through registers, and 128×128 is nearly as good as it gets. */
const AMPERE_TILES: readonly MatmulTile[] = [
  { rows: 128, cols: 256, efficiency: 1 },
  { rows: 256, cols: 128, efficiency: 1 },
  { rows: 128, cols: 128, efficiency: 0.96 },
  { rows: 64, cols: 128, efficiency: 0.8 },
  { rows: 64, cols: 64, efficiency: 0.6 },
  { rows: 16, cols: 128, efficiency: 0.25 },
]
/** wgmma reads both operands from shared memory: smaller tiles cost more. */
const HOPPER_TILES: readonly MatmulTile[] = [
  { rows: 128, cols: 256, efficiency: 1 },
  { rows: 256, cols: 128, efficiency: 1 },
  { rows: 128, cols: 128, efficiency: 0.9 },
  { rows: 64, cols: 256, efficiency: 0.8 },
  { rows: 64, cols: 128, efficiency: 0.7 },
  { rows: 64, cols: 64, efficiency: 0.5 },
  { rows: 16, cols: 128, efficiency: 0.2 },
]

/** From one kernel of a replayed graph to the next: about 1.3 µs, and the drain and fill of the device. */
const GRAPH_LAUNCH = 2.5e-6
/** A kernel launch from native code that no graph holds. */
const EAGER_LAUNCH = 2.5e-6

const A100: Hardware = {
  name: 'a100',
  title: 'NVIDIA A100 80 GB SXM',
  units: 108,
  matmulFlopPerSecond: { half: 0.95 * 312e12, f32: 0.9 * 19.5e12 },
  attentionFlopPerSecond: 190e12,
  memoryBytesPerSecond: 0.87 * 2.039e12,
  pagedEfficiency: 0.92,
  memoryBytes: 80e9,
  tiles: AMPERE_TILES,
  tileOverheadSeconds: 2e-6,
  launchSeconds: GRAPH_LAUNCH,
  hostSecondsPerOp: EAGER_LAUNCH,
  interconnect: { kind: 'nvlink', latencySeconds: 20e-6, busBytesPerSecond: 230e9 },
  interference: WITHOUT_MULTICAST,
  lanesOverlap: true,
  sources: [
    'units, memory, peak 312 TFLOP/s: NVIDIA A100 data sheet; the card holds its clock under load, so a full wave runs at 95 % of it',
    `matmuls of 2048 rows: table 2 of ${NANOFLOW}`,
    'attention: FlashAttention-2 forward, causal, head size 128, https://arxiv.org/abs/2307.08691',
    `decode attention 1.62 TB/s: table 2 of ${NANOFLOW} (462.2 GB on 8 devices in 35.6 ms)`,
    'links: 230 GB/s is the usual nccl-tests bus bandwidth of a DGX A100',
  ],
}

const H100: Hardware = {
  name: 'h100',
  title: 'NVIDIA H100 80 GB SXM',
  units: 132,
  matmulFlopPerSecond: { half: 700e12, f32: 0.9 * 67e12 },
  attentionFlopPerSecond: 550e12,
  memoryBytesPerSecond: 0.87 * 3.35e12,
  pagedEfficiency: 0.92,
  memoryBytes: 80e9,
  tiles: HOPPER_TILES,
  tileOverheadSeconds: 3e-6,
  launchSeconds: GRAPH_LAUNCH,
  hostSecondsPerOp: EAGER_LAUNCH,
  interconnect: {
    kind: 'nvlink',
    latencySeconds: 64e-6,
    busBytesPerSecond: 404e9,
    multicast: {
      latencySeconds: 14.5e-6,
      allReduceBytesPerSecond: 276e9,
      gatherBytesPerSecond: 373e9,
    },
  },
  interference: WITH_MULTICAST,
  lanesOverlap: true,
  sources: [
    'units, memory: NVIDIA H100 data sheet',
    `matmul: what the runs without communication of ${TOKENWEAVE} leave for the matmuls of Llama-3.3-70B at 8192 tokens; 794 TFLOP/s in short runs (${MAMF})`,
    'attention: FlashAttention-3 forward, causal, head size 128, https://arxiv.org/abs/2407.08608',
    `memory: RMSNorm of 8192×8192 in 184 µs, figure_4_10_hs_8192.csv of ${TOKENWEAVE}`,
    `links: straight lines through multimem_ar_us, pytorch_dist_ar_us and multimem_ag_us of figure_5_6_7_hs_8192.csv of ${TOKENWEAVE}`,
  ],
}

const H200: Hardware = {
  ...H100,
  name: 'h200',
  title: 'NVIDIA H200 141 GB SXM',
  memoryBytesPerSecond: 4.3e12,
  memoryBytes: 141e9,
  sources: [
    'memory: 4.3 TB/s of device copies as measured (docs/kernels.md §5), of 4.8 by the data sheet',
    'all else as the H100, whose chip it is',
  ],
}

const B200: Hardware = {
  ...H100,
  name: 'b200',
  title: 'NVIDIA B200 180 GB SXM',
  units: 148,
  matmulFlopPerSecond: { half: 1545e12, f32: 0.9 * 80e12 },
  attentionFlopPerSecond: 1100e12,
  memoryBytesPerSecond: 0.87 * 8e12,
  memoryBytes: 180e9,
  interconnect: {
    kind: 'nvlink',
    latencySeconds: 64e-6,
    busBytesPerSecond: 808e9,
    multicast: {
      latencySeconds: 14.5e-6,
      allReduceBytesPerSecond: 552e9,
      gatherBytesPerSecond: 746e9,
    },
  },
  sources: [
    'units, memory: NVIDIA B200 data sheet',
    `matmul: 1745 TFLOP/s in short runs (${MAMF}), lowered like the H100's`,
    'links: twice the H100 (NVLink 5 has twice the bandwidth of NVLink 4); not measured',
    'attention: twice the H100; not measured',
  ],
}

const H100_PCIE: Hardware = {
  ...H100,
  name: 'h100-pcie',
  title: 'NVIDIA H100 80 GB PCIe',
  units: 114,
  matmulFlopPerSecond: { half: 0.75 * 756e12, f32: 0.9 * 51e12 },
  attentionFlopPerSecond: 400e12,
  memoryBytesPerSecond: 0.87 * 2e12,
  interconnect: { kind: 'pcie', latencySeconds: 60e-6, busBytesPerSecond: 40e9 },
  interference: OVER_PCIE,
  sources: [
    'units, memory, peak 756 TFLOP/s: NVIDIA H100 data sheet; 350 W hold about three quarters of it',
    'links: PCIe 5 ×16 moves 64 GB/s at most, of which peers reach about 40; not measured',
    `interference of attention: A100, ${NANOFLOW}`,
  ],
}

const A100_PCIE: Hardware = {
  ...A100,
  name: 'a100-pcie',
  title: 'NVIDIA A100 80 GB PCIe',
  matmulFlopPerSecond: { half: 0.85 * 312e12, f32: 0.9 * 19.5e12 },
  memoryBytesPerSecond: 0.87 * 1.935e12,
  interconnect: { kind: 'pcie', latencySeconds: 50e-6, busBytesPerSecond: 20e9 },
  interference: OVER_PCIE,
  sources: [
    `matmul: 256 TFLOP/s in short runs (${MAMF})`,
    'links: PCIe 4 ×16 moves 32 GB/s at most, of which peers reach about 20; not measured',
    'all else as the A100 SXM',
  ],
}

const L40S: Hardware = {
  ...A100,
  name: 'l40s',
  title: 'NVIDIA L40S 48 GB',
  units: 142,
  matmulFlopPerSecond: { half: 0.7 * 362e12, f32: 0.8 * 91.6e12 },
  attentionFlopPerSecond: 150e12,
  memoryBytesPerSecond: 0.85 * 864e9,
  memoryBytes: 48e9,
  interconnect: { kind: 'pcie', latencySeconds: 50e-6, busBytesPerSecond: 20e9 },
  interference: OVER_PCIE,
  sources: [
    'units, memory, peak 362 TFLOP/s: NVIDIA L40S data sheet; 350 W hold about 70 % of it; not measured',
    'links: PCIe 4 ×16 as above; attention: not measured',
    `interference: A100, ${NANOFLOW}`,
  ],
}

/** Two cores of an AVX-512 server: what `bench --tune` found on the machine of bench/results/cpu.json. */
const CPU: Hardware = {
  name: 'cpu',
  title: 'CPU, 2 cores with AVX512-BF16',
  units: 2,
  matmulFlopPerSecond: { half: 380e9, f32: 190e9 },
  attentionFlopPerSecond: 100e9,
  memoryBytesPerSecond: 20e9,
  pagedEfficiency: 0.8,
  memoryBytes: 24e9,
  tiles: [{ rows: 1, cols: 16, efficiency: 1 }],
  tileOverheadSeconds: 0,
  launchSeconds: 1e-6,
  hostSecondsPerOp: 0,
  interconnect: { kind: 'memory', latencySeconds: 5e-6, busBytesPerSecond: 6e9 },
  interference: {
    memory: [
      [0, 0],
      [1, 1],
    ],
    network: [
      [0, 0],
      [1, 1],
    ],
  },
  lanesOverlap: false,
  sources: ['order of magnitude of bench/results/cpu.json; run nanoweave bench --tune'],
}

const PRESETS: readonly Hardware[] = [A100, A100_PCIE, H100, H100_PCIE, H200, B200, L40S, CPU]

export function hardwareNames(): string[] {
  return PRESETS.map(({ name }) => name)
}

/** Undefined: no preset has that name. */
export function findHardware(name: string): Hardware | undefined {
  return PRESETS.find((preset) => preset.name === name.toLowerCase())
}

/** ERR_USAGE lists the presets. */
export function hardwarePreset(name: string): Hardware {
  const found = findHardware(name)
  if (found !== undefined) return found
  throw new EngineError(
    'ERR_USAGE',
    `there is no hardware called ${name}; known: ${hardwareNames().join(', ')}, or the path of a tune file`,
  )
}

/** The preset of a device as its driver names it: `NVIDIA H100 80GB HBM3`. */
export function hardwareOfDevice(title: string): Hardware | undefined {
  const name = title.toLowerCase()
  const isPcie = name.includes('pcie')
  const model = ['b200', 'h200', 'h100', 'a100', 'l40s'].find((known) => name.includes(known))
  return model === undefined ? undefined : findHardware(isPcie ? `${model}-pcie` : model)
}
