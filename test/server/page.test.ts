/**
 * The page at / in a real browser: Chromium from the PATH, or NANOWEAVE_CHROMIUM. Skipped, and said
 * so, where there is none.
 */

import { type Browser, chromium, type Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { findChromium } from '../support/chromium.ts'
import { expectBaseline, type Running, send, serveDemo } from './support.ts'

const executablePath = findChromium()
if (executablePath === undefined) console.warn('SKIPPED: the page in a browser; no Chromium here')

const KEY = 'page-key'
const POLL = { timeout: 20_000 }
const QUESTION = 'What is 3 + 4?'

describe('the page at /', () => {
  let running: Running
  beforeAll(async () => {
    running = await serveDemo({ apiKeys: [KEY] })
  })
  afterAll(() => running.close())

  it('is one document that may load nothing', async () => {
    const { status, headers, text } = await send(`${running.url}/`)
    expect(status).toBe(200)
    expect(headers.get('content-type')).toBe('text/html; charset=utf-8')
    expect(headers.get('content-security-policy')).toMatch(/^default-src 'none'/)
    expect(text).not.toMatch(/https?:\/\/|\bsrc=|<link|innerHTML/)
  })

  describe.skipIf(executablePath === undefined)('in Chromium', () => {
    let browser: Browser
    let page: Page
    const problems: string[] = []
    beforeAll(async () => {
      browser = await chromium.launch({
        executablePath: executablePath!,
        // Containers run as root, and have a small /dev/shm.
        args: ['--no-sandbox', '--disable-dev-shm-usage'],
      })
      page = await browser.newPage()
      page.on('pageerror', (error) => problems.push(error.message))
      page.on('request', (request) => {
        if (!request.url().startsWith(running.url)) problems.push(request.url())
      })
      await page.goto(running.url)
    })
    afterAll(() => browser.close())

    const ask = async (text: string) => {
      await page.fill('#text', text)
      await page.press('#text', 'Enter')
    }

    // From outside: the page's policy lets nobody evaluate code in it.
    const shows = (selector: string, text: RegExp) =>
      expect.poll(() => page.textContent(selector), POLL).toMatch(text)

    it('asks for the key, then streams an answer', async () => {
      await page.fill('#temperature', '0')
      await ask(QUESTION)
      await page.waitForSelector('#log .error')
      expect(await page.isVisible('#key')).toBe(true)
      await page.fill('#key', KEY)
      await ask(QUESTION)
      await shows('#log .assistant', /^3 \+ 4 = 7\.$/)
    })

    it('shows what the server does', async () => {
      expect(await page.textContent('#model')).toBe('tiny-dense')
      await shows('#rate', /tokens\/s/)
      await shows('#kv', /^0\.0 %$/)
      expect(await page.textContent('#waiting')).toBe('0')
    })

    it('shows the last steps as they were', async () => {
      const { json } = await send(`${running.url}/steps`)
      await expect
        .poll(() => page.locator('#timeline g').count(), POLL)
        .toBe(Math.min(24, json.steps.length))
      await shows('#laststep', /^step \d+: \d+ sequences, .*ran \d+\.\d\d ms$/)
      const last = (await page.textContent('#timeline g:last-child title')) ?? ''
      expect(last).toBe(await page.textContent('#laststep'))
      const bars = page.locator('#timeline g:last-child rect')
      expect(await bars.count()).toBe(3)
      for (const width of await bars.evaluateAll((all) =>
        all.map((bar) => bar.getAttribute('width')),
      ))
        expect(Number(width)).toBeGreaterThan(0)
    })

    it('shows markup as text', async () => {
      await ask('<img src=x onerror="document.title=1">')
      await expect.poll(() => page.locator('#log .user').count(), POLL).toBe(3)
      expect(await page.locator('#log img').count()).toBe(0)
    })

    it('stops, clears, and loads nothing from elsewhere', async () => {
      await page.click('#clear')
      expect(await page.locator('#log li').count()).toBe(0)
      await shows('#send', /^Send$/)
      await expectBaseline(running)
      expect(problems).toEqual([])
    })
  })
})
