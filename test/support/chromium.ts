/** A page in a real browser: Chromium from the PATH, or NANOWEAVE_CHROMIUM. */

import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { chromium } from 'playwright-core'

export function findChromium(): string | undefined {
  const { NANOWEAVE_CHROMIUM, PATH = '' } = process.env
  if (NANOWEAVE_CHROMIUM !== undefined) return NANOWEAVE_CHROMIUM
  return PATH.split(delimiter)
    .flatMap((folder) =>
      ['chromium', 'chromium-browser', 'google-chrome'].map((name) => join(folder, name)),
    )
    .find((file) => existsSync(file))
}

export interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

/** A self-contained document, opened from memory; undefined: no Chromium here. */
export async function openInChromium(html: string) {
  const executablePath = findChromium()
  if (executablePath === undefined) return undefined
  const browser = await chromium.launch({
    executablePath,
    // Containers run as root, and have a small /dev/shm.
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  })
  const page = await browser.newPage({ viewport: { width: 1100, height: 900 } })
  const problems: string[] = []
  page.on('pageerror', (error) => problems.push(error.message))
  page.on('request', (request) => problems.push(request.url()))
  await page.setContent(html)
  return {
    problems,
    title: () => page.title(),
    text: (selector: string) => page.locator(selector).allInnerTexts(),
    boxes: (selector: string): Promise<Box[]> =>
      page.locator(selector).evaluateAll((elements) =>
        elements.map((element) => {
          const { x, y, width, height } = element.getBoundingClientRect()
          return { x, y, width, height }
        }),
      ),
    /** Texts of groups whose `inner` element is wider than their `outer` one. */
    overflowing: (group: string, outer: string, inner: string): Promise<string[]> =>
      page.locator(group).evaluateAll(
        (elements, [outside, inside]) =>
          elements.flatMap((element) => {
            const box = element.querySelector(outside!)?.getBoundingClientRect()
            const text = element.querySelector(inside!)
            const isWider = box && text && text.getBoundingClientRect().width > box.width + 1
            return isWider ? [text.textContent ?? ''] : []
          }),
        [outer, inner],
      ),
    close: () => browser.close(),
  }
}
