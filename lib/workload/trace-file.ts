/**
 * Recorded traces. Two forms: JSON lines `{"arrivalMs"?, "promptTokens", "outputTokens"}`, and the CSV of
 * AzurePublicDataset with the columns TIMESTAMP, ContextTokens, GeneratedTokens.
 */

import { EngineError } from '../errors.ts'

/** Requests a trace may have, and tokens a request may have. */
const MAX_REQUESTS = 1_000_000
const MAX_TOKENS = 10_000_000

export interface TraceRow {
  /** From the first request; undefined where the trace has lengths only. */
  readonly arrivalMs: number | undefined
  readonly promptTokens: number
  readonly outputTokens: number
}

/** Rows in order of arrival. ERR_USAGE names the line that cannot be read. */
export function parseTrace(text: string): readonly TraceRow[] {
  const lines = text.split(/\r?\n/)
  const rows = lines[0].trimStart().startsWith('{') ? parseJsonLines(lines) : parseCsv(lines)
  if (rows.length === 0) throw new EngineError('ERR_USAGE', 'the trace has no request')
  return fromFirstArrival(rows)
}

function parseJsonLines(lines: readonly string[]): TraceRow[] {
  return parseLines(lines, 0, (line) => {
    const { arrivalMs, promptTokens, outputTokens } = JSON.parse(line) as Partial<TraceRow>
    return { arrivalMs, promptTokens: Number(promptTokens), outputTokens: Number(outputTokens) }
  })
}

function parseCsv(lines: readonly string[]): TraceRow[] {
  const names = lines[0].split(',').map((name) => name.trim().toLowerCase())
  const column = (name: string): number => names.indexOf(name)
  const time = column('timestamp')
  const prompt = column('contexttokens')
  const output = column('generatedtokens')
  if (prompt < 0 || output < 0)
    throw new EngineError(
      'ERR_USAGE',
      'a trace is JSON lines, or CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens',
    )
  return parseLines(lines, 1, (line) => {
    const cells = line.split(',')
    return {
      arrivalMs: time < 0 ? undefined : parseTime(cells[time]),
      promptTokens: Number(cells[prompt]),
      outputTokens: Number(cells[output]),
    }
  })
}

function parseLines(
  lines: readonly string[],
  from: number,
  parse: (line: string) => TraceRow,
): TraceRow[] {
  const rows: TraceRow[] = []
  for (let at = from; at < lines.length; at++) {
    if (lines[at].trim() === '') continue
    if (rows.length === MAX_REQUESTS)
      throw new EngineError('ERR_USAGE', `a trace has at most ${MAX_REQUESTS} requests`)
    try {
      rows.push(checkRow(parse(lines[at])))
    } catch (cause) {
      throw new EngineError('ERR_USAGE', `line ${at + 1} of the trace is no request`, { cause })
    }
  }
  return rows
}

function checkRow(row: TraceRow): TraceRow {
  const { arrivalMs, promptTokens, outputTokens } = row
  if (arrivalMs !== undefined && !Number.isFinite(arrivalMs)) throw new RangeError('arrivalMs')
  for (const count of [promptTokens, outputTokens])
    if (!Number.isSafeInteger(count) || count < 0 || count > MAX_TOKENS)
      throw new RangeError('token count')
  // A request without a prompt or an output could not be sent.
  return {
    arrivalMs,
    promptTokens: Math.max(1, promptTokens),
    outputTokens: Math.max(1, outputTokens),
  }
}

const TIMESTAMP = /^\s*(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d(?:\.\d+)?)/
const DAY_MS = 86_400_000

/** Milliseconds of `2023-11-16 18:17:03.9799600`, without a time zone; seconds where it is a number. */
function parseTime(cell: string): number {
  const match = TIMESTAMP.exec(cell)
  if (match === null) return 1000 * Number.parseFloat(cell)
  const [year, month, day, hour, minute, second] = match.slice(1).map(Number)
  return daysSinceEpoch(year, month, day) * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000
}

/** Days of the proleptic Gregorian calendar (Hinnant, chrono-compatible date algorithms). */
function daysSinceEpoch(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year
  const era = Math.floor(y / 400)
  const yearOfEra = y - era * 400
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1
  const leapDays = Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100)
  return era * 146_097 + yearOfEra * 365 + leapDays + dayOfYear - 719_468
}

function fromFirstArrival(rows: readonly TraceRow[]): readonly TraceRow[] {
  const times = rows.map((row) => row.arrivalMs)
  const known = times.filter((time) => time !== undefined)
  if (known.length === 0) return rows
  if (known.length < rows.length)
    throw new EngineError('ERR_USAGE', 'some requests of the trace have no arrival time')
  const first = known.reduce((least, time) => Math.min(least, time))
  return rows
    .map((row) => ({ ...row, arrivalMs: row.arrivalMs! - first }))
    .sort((a, b) => a.arrivalMs - b.arrivalMs)
}
