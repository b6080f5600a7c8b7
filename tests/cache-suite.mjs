// Runs the public cache test-suite against a cache and prints every test with its kind and result as JSON.
//
// Usage: cache-suite.mjs PACKAGE BASE-URL [TEST-ID]; with an id only that test runs, and its dialogue goes to stderr.
//
// Some tests of this release expect what RFC 9111 says otherwise, and were corrected in the suite's repository later. They run as
// they are, and once more with what the RFC says, as kind `corrected`: so a fault of ours cannot hide behind them.

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [folder, base, only] = process.argv.slice(2)
const part = name => import(pathToFileURL(`${folder}/${name}`))
const fetch = createRequire(pathToFileURL(`${folder}/package.json`))('node-fetch')
const { default: suites } = await part('tests/index.mjs')
const { runTests, getResults } = await part('client/runner.mjs')

// Only the results belong on stdout.
console.log = console.error

// RFC 9111 §5.1: an Age that is no number is ignored; of several the first counts.
const AGES = ['nonnumeric', 'negative', 'float', 'prefix-twoline', 'dup-0', 'dup-0-twoline', 'dup-old'].map(id => `age-parse-${id}`)
// RFC 9111 §5.2.2: with the origin gone, an error and nothing of the origin's; the suite looks for its count in an error of ours.
const GONE = ['must-revalidate', 'proxy-revalidate', 'no-cache', 's-maxage=2'].map(id => `stale-close-${id}`)

function corrected (test) {
  const last = { ...test.requests.at(-1) }
  if (AGES.includes(test.id)) {
    last.expected_type = 'cached'
  } else if (GONE.includes(test.id)) {
    delete last.expected_type
    Object.assign(last, { expected_status: 502, check_body: false, expected_response_headers_missing: ['server-request-count'] })
  } else {
    return []
  }
  const requests = structuredClone([...test.requests.slice(0, -1), last])
  return [{ ...test, id: `${test.id} (corrected)`, kind: 'corrected', requests }]
}

const chosen = suites
  .map(suite => ({ ...suite, tests: suite.tests.flatMap(test => [test, ...corrected(test)]) }))
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
