/**
 * The timeline of the page: the last steps as they really were, from /steps. Script and style are
 * parts of the page's own.
 */

export const TIMELINE_STYLE = `
figure { margin: 0; font-size: .8rem; } figcaption { opacity: .8; }
#timeline { height: 4.5rem; }
#timeline .plan { fill: seagreen; } #timeline .queue { fill: currentColor; opacity: .18; }
#timeline .decode { fill: royalblue; } #timeline .prefill { fill: darkorange; }
#timeline .part { stroke: Canvas; stroke-width: 1; vector-effect: non-scaling-stroke; }
.key { display: inline-block; width: .7em; height: .7em; margin: 0 .3em 0 .8em; }
.key.plan { background: seagreen; } .key.queue { background: currentColor; opacity: .3; }
.key.decode { background: royalblue; } .key.prefill { background: darkorange; }
`

export const TIMELINE_SCRIPT = `
const SHOWN_STEPS = 24
const SVG = at('timeline').namespaceURI

function shape(name, attributes, parent) {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  parent.append(element)
  return element
}

function describeStep(step) {
  return 'step ' + step.id + ': ' + step.sequences + ' sequences, ' + step.decodeTokens + ' decode + ' +
    step.prefillTokens + ' prompt tokens, nano-batches of ' + step.nanoBatches.join(' + ') +
    ' tokens; planned ' + step.planMs.toFixed(2) + ' ms, waited ' + step.queueMs.toFixed(2) +
    ' ms, ran ' + step.runMs.toFixed(2) + ' ms'
}

function drawStep(step, x, parent) {
  const group = shape('g', {}, parent)
  const y = step.id % 2 === 0 ? 2 : 21
  const bar = (name, from, to) => shape('rect',
    { class: name, x: x(from), width: Math.max(0.4, x(to) - x(from)), y, height: 17 }, group)
  const startMs = step.submittedMs + step.queueMs
  bar('plan', step.submittedMs - step.planMs, step.submittedMs)
  bar('queue', step.submittedMs, startMs)
  bar(step.prefillTokens > 0 ? 'prefill' : 'decode', startMs, startMs + step.runMs)
  const tokens = step.nanoBatches.reduce((sum, count) => sum + count, 0)
  let before = 0
  for (const count of step.nanoBatches.slice(0, -1)) {
    before += count
    const at = x(startMs + step.runMs * before / tokens)
    shape('line', { class: 'part', x1: at, x2: at, y1: y, y2: y + 17 }, group)
  }
  shape('title', {}, group).textContent = describeStep(step)
}

function drawTimeline(steps) {
  const shown = steps.slice(-SHOWN_STEPS)
  at('timeline').replaceChildren()
  if (shown.length === 0) return
  const fromMs = shown[0].submittedMs - shown[0].planMs
  const toMs = Math.max(...shown.map((step) => step.endedMs))
  const x = (ms) => 240 * (ms - fromMs) / Math.max(0.001, toMs - fromMs)
  for (const step of shown) drawStep(step, x, at('timeline'))
  at('span').textContent = shown.length + ' steps in ' + (toMs - fromMs).toFixed(1) + ' ms'
  at('laststep').textContent = describeStep(shown.at(-1))
}
`

export const TIMELINE_HTML = `<figure>
  <svg id="timeline" viewBox="0 0 240 40" preserveAspectRatio="none" role="img" aria-label="The last steps of the engine"></svg>
  <figcaption><span id="span">No step yet</span>: <span class="key plan"></span>planned
    <span class="key queue"></span>waited for the step before <span class="key decode"></span>ran, decoding only
    <span class="key prefill"></span>ran, with prompt tokens. Lines divide a step by the tokens of its nano-batches;
    what happens inside a step is not timed.<br><span id="laststep"></span></figcaption>
</figure>`
