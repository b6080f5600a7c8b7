// Runs the public cache test-suite against a cache and prints every test with its kind and result as JSON.
//
// Usage: cache-suite.mjs PACKAGE BASE-URL [TEST-ID]; with an id only that test runs, and its dialogue goes to stderr.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [folder, base, only] = process.argv.slice(2)
const part = name => import(pathToFileURL(`${folder}/${name}`))
const fetch = createRequire(pathToFileURL(`${folder}/package.json`))('node-fetch')
const { default: suites } = await part('tests/index.mjs')
const { runTests, getResults } = await part('client/runner.mjs')

// Only the results belong on stdout.
console.log = console.error

const chosen = suites
  .map(suite => ({ ...suite, tests: suite.tests.filter(test => !only || test.id === only) }))
  .filter(suite => suite.tests.length > 0)
if (only) chosen.forEach(suite => suite.tests.forEach(test => { test.dump = true }))

await runTests(chosen, fetch, false, base)

const results = getResults()
const report = {}
for (const suite of chosen) {
  for (const test of suite.tests) {
    if (!(test.id in results)) continue
    const result = results[test.id]
    const passed = result === true
    // The first word tells a failed assertion from a set-up that already went wrong.
    const reason = passed ? '' : `${result[0]}: ${result[1]}`.trim()
    report[test.id] = { kind: test.kind ?? 'required', suite: suite.id, name: test.name, passed, reason }
  }
}
process.stdout.write(`${JSON.stringify(report, null, 1)}\n`)
