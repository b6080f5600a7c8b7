// Performs the requests that standard input lists with Node's fetch, in order, and prints what came back.
import { text } from 'node:stream/consumers';

const answers = [];
for (const step of JSON.parse(await text(process.stdin))) {
  const body = step.body === null ? undefined : Buffer.from(step.body, 'base64');
  const options = { method: step.method, headers: step.headers, redirect: 'manual' };
  if (body !== undefined) {
    options.body = step.chunked ? new Blob([body]).stream() : body;
    options.duplex = 'half';
  }
  const response = await fetch(step.url, options);
  answers.push({
    status: response.status,
    headers: [...response.headers],
    body: Buffer.from(await response.arrayBuffer()).toString('base64'),
  });
  // The body ends before its connection is free: the next request must not come in between.
  await new Promise(resolve => setTimeout(resolve, 5));
}
console.log(JSON.stringify(answers));
