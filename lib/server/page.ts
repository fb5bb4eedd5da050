/**
 * The page at `/`: chat with the model, and see throughput, KV use, queue and the last steps as they are. One
 * document that loads nothing; its policy allows only its own script and style.
 */

import { createHash } from 'node:crypto'
import { TIMELINE_HTML, TIMELINE_SCRIPT, TIMELINE_STYLE } from './page-timeline.ts'

const STYLE = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; padding: 1rem; max-width: 56rem; display: flex; flex-direction: column;
  gap: 1rem; height: 100vh; box-sizing: border-box; }
h1 { font-size: 1.1rem; margin: 0; }
header { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: baseline; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0; font-size: .875rem; }
dl div { display: flex; gap: .4rem; }
dt { opacity: .7; } dd { margin: 0; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: 3rem; background: color-mix(in srgb, currentColor 6%, transparent); }
polyline { fill: none; stroke: currentColor; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
#log { flex: 1; overflow-y: auto; display: flex; flex-direction: column; gap: .75rem; margin: 0;
  padding: 0; list-style: none; }
#log li { padding: .5rem .75rem; border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; background: color-mix(in srgb, currentColor 7%, transparent); }
#log .user { align-self: flex-end; background: color-mix(in srgb, royalblue 25%, transparent); }
#log .error { background: color-mix(in srgb, crimson 25%, transparent); }
#log .reasoning { opacity: .7; font-size: .875rem; }
${TIMELINE_STYLE}
form { display: flex; gap: .5rem; } textarea { flex: 1; font: inherit; resize: vertical; }
button, input { font: inherit; }
`

const SCRIPT = `
const at = (id) => document.getElementById(id)
const messages = []
let controller
let last
const rates = []

function headers() {
  const key = at('key').value.trim()
  return { 'content-type': 'application/json', ...(key && { authorization: 'Bearer ' + key }) }
}

function addLine(role, text) {
  const line = document.createElement('li')
  line.className = role
  line.textContent = text
  at('log').append(line)
  line.scrollIntoView({ block: 'end' })
  return line
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    text += value
    const parts = text.split('\\n\\n')
    text = parts.pop()
    for (const part of parts) {
      if (!part.startsWith('data: ') || part === 'data: [DONE]') continue
      const event = JSON.parse(part.slice(6))
      if (event.error) throw new Error(event.error.message)
      yield event
    }
  }
}

async function ask(text) {
  messages.push({ role: 'user', content: text })
  addLine('user', text)
  const line = addLine('assistant', '')
  let reasoning
  let answer = ''
  controller = new AbortController()
  at('send').textContent = 'Stop'
  try {
    const response = await fetch('/v1/chat/completions', {
      method: 'POST', headers: headers(), signal: controller.signal,
      body: JSON.stringify({ messages, stream: true, temperature: Number(at('temperature').value) }),
    })
    if (response.status === 401) at('keys').hidden = false
    if (!response.ok) throw new Error((await response.json()).error.message)
    for await (const event of events(response)) {
      const delta = event.choices[0]?.delta ?? {}
      if (delta.reasoning_content) {
        reasoning ??= line.parentNode.insertBefore(document.createElement('li'), line)
        reasoning.className = 'reasoning'
        reasoning.textContent += delta.reasoning_content
      }
      answer += delta.content ?? ''
      line.textContent = answer
      line.scrollIntoView({ block: 'end' })
    }
  } catch (error) {
    if (error.name !== 'AbortError') addLine('error', error.message)
  }
  if (answer === '') { messages.pop(); line.remove() }
  else messages.push({ role: 'assistant', content: answer })
  controller = undefined
  at('send').textContent = 'Send'
}

at('form').addEventListener('submit', (event) => {
  event.preventDefault()
  if (controller) return controller.abort()
  const text = at('text').value.trim()
  if (text === '') return
  at('text').value = ''
  ask(text)
})
at('text').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    if (!controller) at('form').requestSubmit()
  }
})
at('clear').addEventListener('click', () => {
  controller?.abort()
  messages.length = 0
  at('log').replaceChildren()
})

${TIMELINE_SCRIPT}
async function refresh() {
  try {
    const response = await fetch('/stats', { headers: headers() })
    if (!response.ok) throw new Error(String(response.status))
    const stats = await response.json()
    const recent = await fetch('/steps', { headers: headers() })
    if (recent.ok) drawTimeline((await recent.json()).steps)
    const now = performance.now()
    if (last) {
      rates.push((stats.generatedTokens - last.generatedTokens) * 1000 / (now - last.now))
      if (rates.length > 120) rates.shift()
      at('rate').textContent = rates.at(-1).toFixed(0) + ' tokens/s'
      const top = Math.max(1, ...rates)
      at('line').setAttribute('points',
        rates.map((rate, x) => x + ',' + (40 - 38 * rate / top)).join(' '))
    }
    last = { ...stats, now }
    at('model').textContent = stats.model
    at('running').textContent = stats.running
    at('waiting').textContent = stats.waiting
    at('kv').textContent = (100 * stats.kvUsage).toFixed(1) + ' %'
    at('state').textContent = ''
  } catch {
    at('state').textContent = 'no answer from the server'
    last = undefined
  }
  setTimeout(refresh, 500)
}
refresh()
`

export const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nanoweave</title>
<style>${STYLE}</style>
<header>
  <h1>nanoweave · <span id="model"></span></h1>
  <dl>
    <div><dt>Throughput</dt><dd id="rate">–</dd></div>
    <div><dt>Running</dt><dd id="running">–</dd></div>
    <div><dt>Waiting</dt><dd id="waiting">–</dd></div>
    <div><dt>KV cache</dt><dd id="kv">–</dd></div>
    <div><dd id="state" role="status"></dd></div>
  </dl>
</header>
<svg viewBox="0 0 120 40" preserveAspectRatio="none" role="img" aria-label="Tokens per second">
  <polyline id="line"></polyline>
</svg>
${TIMELINE_HTML}
<ol id="log" aria-live="polite"></ol>
<div id="keys" hidden><label>API key <input id="key" type="password" autocomplete="off"></label></div>
<form id="form">
  <textarea id="text" rows="2" aria-label="Message" placeholder="Message" autofocus></textarea>
  <label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0.7"></label>
  <button id="send">Send</button>
  <button id="clear" type="button">Clear</button>
</form>
<script>${SCRIPT}</script>
</html>
`

const digest = (text: string): string =>
  `'sha256-${createHash('sha256').update(text).digest('base64')}'`

export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  'content-type': 'text/html; charset=utf-8',
  'content-security-policy': `default-src 'none'; connect-src 'self'; script-src ${digest(SCRIPT)}; style-src ${digest(STYLE)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
}
