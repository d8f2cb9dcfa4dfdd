// node-postgres, with pg-copy-streams and pg-cursor: one step a line, see program.py.
'use strict'

const assert = require('node:assert/strict')
const { once } = require('node:events')
const readline = require('node:readline')
const { Readable, Transform } = require('node:stream')
const { pipeline } = require('node:stream/promises')

const { Client, Query } = require('pg')
const copy = require('pg-copy-streams')
const Cursor = require('pg-cursor')

const [port, user] = process.argv.slice(2)
const config = { host: '127.0.0.1', port: Number(port), user, database: 'postgres', ssl: false }

// Milliseconds; nothing here takes that long on a machine that is alive.
const PATIENCE = 20000

// The session that the steps are about, one that pipelines, and one that sends notifications.
let client, piped, other
const heard = []
let sent = 0
let fresh = 0

async function connect() {
  const options = '-c statement_timeout=55s'
  client = await new Client({ ...config, application_name: 'node', options }).connect()
  piped = await new Client({ ...config, pipeline: true }).connect()
  other = await new Client(config).connect()
  client.on('notification', ({ channel, payload }) => heard.push([channel, payload]))
  await client.query("SET TimeZone = 'Asia/Tokyo'")
  await client.query('SET search_path = "$user", pg_catalog')
  await client.query('LISTEN news')
  await client.query('PREPARE by_sql (int) AS SELECT $1 * 2 AS n')
}

// The one value of a query's one row.
async function value(text, values, on = client) {
  const { rows } = await on.query({ text, values, rowMode: 'array' })
  assert.equal(rows.length, 1)
  assert.equal(rows[0].length, 1)
  return rows[0][0]
}

async function refused(code, what) {
  await assert.rejects(what, (error) => {
    assert.equal(error.code, code, error.stack)
    return true
  })
}

function numbers(first, last) {
  return Array.from({ length: last - first + 1 }, (_, n) => first + n)
}

async function settings() {
  assert.equal(await value('SHOW application_name'), 'node')
  assert.equal(await value('SHOW statement_timeout'), '55s')
  assert.equal(await value('SHOW TimeZone'), 'Asia/Tokyo')
  assert.equal(await value('SHOW search_path'), '"$user", pg_catalog')
  assert.equal(await value('SELECT current_user'), user)
}

async function statements() {
  // Parsed once, at the first call, and known to the driver ever since.
  const kept = { name: 'kept', text: 'SELECT $1::int + 1 AS n, $2::text AS t' }
  for (const n of [1, 41]) {
    const { rows } = await client.query({ ...kept, values: [n, 'ä' + n] })
    assert.deepEqual(rows, [{ n: n + 1, t: 'ä' + n }])
  }
  assert.equal(await value('EXECUTE by_sql (21)'), 42)
  const known = 'SELECT from_sql FROM pg_prepared_statements WHERE name = $1'
  assert.equal(await value(known, ['kept']), false)
  assert.equal(await value(known, ['by_sql']), true)
  const name = 'fresh_' + ++fresh
  for (const n of [3, 4]) {
    const { rows } = await client.query({ name, text: `SELECT ${fresh} + $1::int AS n`, values: [n] })
    assert.deepEqual(rows, [{ n: fresh + n }])
  }
  await client.query(`DEALLOCATE ${name}`)
}

async function types() {
  const when = new Date('2024-02-29T12:34:56.789Z')
  const values = [
    7, '9007199254740993', 0.1, '1.50', true, 'text ä 日本', Buffer.from([0, 1, 254, 255]), when,
    { a: [1, null] }, [1, 2, 3], ['x,y', '"', null], null, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
  ]
  const casts = [
    'int', 'int8', 'float8', 'numeric', 'bool', 'text', 'bytea', 'timestamptz',
    'jsonb', 'int[]', 'text[]', 'text', 'uuid',
  ]
  const columns = casts.map((cast, at) => `$${at + 1}::${cast}`)
  const text = `SELECT ${columns.join(', ')}`
  for (const name of [undefined, 'types']) {
    const { rows } = await client.query({ name, text, values, rowMode: 'array' })
    assert.deepEqual(rows, [values])
  }
  const binary = { text: 'SELECT $1::int AS i, $2::text AS t', values: [5, '日本'], binary: true }
  assert.deepEqual((await client.query(binary)).rows, [{ i: 5, t: '日本' }])
  // In the session's own time zone: what the server tells the driver must fit.
  assert.equal(await value('SELECT $1::timestamptz::text', [when]), '2024-02-29 21:34:56.789+09')
}

async function errors() {
  await refused('22012', () => client.query('SELECT 1 / 0'))
  await refused('22012', () => client.query('SELECT 1 / $1::int', [0]))
  await refused('42601', () => client.query({ name: 'wrong_' + ++fresh, text: 'SELEC $1', values: [1] }))
  await client.query('BEGIN')
  await client.query('SAVEPOINT before')
  await refused('22P02', () => client.query('SELECT $1::int', ['none']))
  await refused('25P02', () => client.query('SELECT 1'))
  await client.query('ROLLBACK TO before')
  assert.equal(await value('SELECT 5'), 5)
  await client.query('COMMIT')
  assert.equal(await value('SELECT $1::int', [6]), 6)
}

function lines(last) {
  return numbers(1, last).map((n) => `${n}\tä ${n}\n`)
}

async function copyIn(on = client) {
  await on.query('TRUNCATE copied')
  const into = on.query(copy.from('COPY copied FROM STDIN'))
  await pipeline(Readable.from(lines(500)), into)
  assert.equal(into.rowCount, 500)
}

async function copyOut(text) {
  const out = client.query(copy.to(text))
  const chunks = []
  for await (const chunk of out) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

async function copy_in() {
  await copyIn()
  assert.equal(await value('SELECT sum(id) FROM copied'), '125250')
  assert.equal(await value('SELECT what FROM copied WHERE id = $1', [77]), 'ä 77')
}

async function copy_out() {
  await copyIn()
  assert.equal(await copyOut('COPY (SELECT * FROM copied ORDER BY id) TO STDOUT'), lines(500).join(''))
}

async function failing_copy() {
  await client.query('TRUNCATE copied')
  // The server does not take it.
  const wrong = ['1\tgood\n', 'no number\tbad\n']
  await refused('22P02', () => pipeline(Readable.from(wrong), client.query(copy.from('COPY copied FROM STDIN'))))
  // The client gives up in the middle: a CopyFail.
  const broken = new Transform({
    transform(chunk, _, done) {
      done(chunk.toString().startsWith('3') ? new Error('enough') : null, chunk)
    },
  })
  const into = client.query(copy.from('COPY copied FROM STDIN'))
  await assert.rejects(pipeline(Readable.from(lines(5)), broken, into), /enough/)
  // The server fails in the middle.
  await refused('22012', () => copyOut('COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT'))
  assert.equal(await value('SELECT count(*) FROM copied'), '0')
}

function query(text) {
  let running
  const done = new Promise((resolve, reject) => {
    running = new Query(text, undefined, (error, result) => (error ? reject(error) : resolve(result)))
  })
  client.query(running)
  return { running, done }
}

// Until the server has begun it.
async function running(text) {
  const active = 'SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query = $2 AND state = $3'
  for (const began = Date.now(); (await value(active, [user, text, 'active'], other)) === '0'; ) {
    assert.ok(Date.now() - began < PATIENCE, 'the server does not begin')
  }
}

// Until the request's connection is closed, as by a server that has acted.
async function stop(query) {
  const canceller = new Client(config)
  const over = new Promise((resolve) => canceller.connection.once('end', resolve))
  const connects = client.activeQuery === query
  canceller.cancel(client, query)
  if (connects) await over
}

async function cancel() {
  const text = 'SELECT pg_sleep(50)'
  const long = query(text)
  const began = Date.now()
  await running(text)
  const [stopped] = await Promise.allSettled([long.done, stop(long.running)])
  assert.equal(stopped.reason?.code, '57014')
  assert.ok(Date.now() - began < PATIENCE, 'canceled late')
  // One that comes about when its query ends meets that or nothing.
  const short = query('SELECT pg_sleep(0.002)')
  const [outcome] = await Promise.allSettled([short.done, stop(short.running)])
  if (outcome.reason) assert.equal(outcome.reason.code, '57014')
  assert.equal(await value('SELECT 8 FROM pg_sleep(0.002)'), 8)
}

async function cursor() {
  await client.query('BEGIN')
  const rows = client.query(new Cursor('SELECT n FROM generate_series(1, $1) n', [120]))
  const found = []
  for (;;) {
    const some = await rows.read(25)
    if (some.length === 0) break
    found.push(...some.map((row) => row.n))
  }
  await rows.close()
  assert.deepEqual(found, numbers(1, 120))
  await client.query('DECLARE declared CURSOR FOR SELECT n FROM generate_series(1, 120) n')
  for (const first of [1, 61]) {
    const part = await client.query('FETCH 60 FROM declared')
    assert.deepEqual(part.rows.map((row) => row.n), numbers(first, first + 59))
  }
  await client.query('COMMIT')
  // Outside of a transaction, and left before its end.
  const left = client.query(new Cursor('SELECT n FROM generate_series(1, 120) n'))
  assert.deepEqual((await left.read(3)).map((row) => row.n), [1, 2, 3])
  await left.close()
  assert.equal(await value('SELECT count(*) FROM pg_cursors WHERE name LIKE $1', ['declared%']), '0')
}

async function notifications() {
  assert.equal(await value('SELECT pg_listening_channels()'), 'news')
  const first = sent
  for (let n = 0; n < 5; n++) {
    await other.query("SELECT pg_notify('news', $1)", [String(sent++)])
    await client.query('SELECT 1')
  }
  const wanted = numbers(first, sent - 1).map((n) => `news ${n}`)
  const signal = AbortSignal.timeout(PATIENCE)
  for (;;) {
    const got = new Set(heard.map(([channel, payload]) => `${channel} ${payload}`))
    if (wanted.every((one) => got.has(one))) {
      // One may come twice; none of an earlier call that late, and no other.
      for (const one of got) assert.ok(wanted.includes(one) || Number(one.split(' ')[1]) < first, one)
      heard.length = 0
      return
    }
    await once(client, 'notification', { signal }).catch(() => {
      assert.fail(`sent ${wanted}, heard ${JSON.stringify(heard)}`)
    })
  }
}

async function batch() {
  // Each with its own Sync, all on their way before the first answer.
  const asked = numbers(1, 30).map((n) => {
    const many = { name: 'piped', text: 'SELECT $1::int AS n', values: [n] }
    return n === 13 ? piped.query('SELECT 1 / $1::int', [0]) : piped.query(many)
  })
  const outcomes = await Promise.allSettled(asked)
  outcomes.forEach((outcome, at) => {
    if (at === 12) assert.equal(outcome.reason?.code, '22012')
    else assert.deepEqual(outcome.value?.rows, [{ n: at + 1 }], String(outcome.reason))
  })
  const many = await client.query('SELECT 1 AS n; SELECT 2 AS n, 3 AS m; SELECT 4 AS n WHERE false')
  assert.deepEqual(many.map((one) => one.rows), [[{ n: 1 }], [{ n: 2, m: 3 }], []])
}

const steps = {
  settings, statements, types, errors, copy_in, copy_out, failing_copy, cancel, cursor, notifications, batch,
}

async function main() {
  await connect()
  console.log('ok')
  for await (const step of readline.createInterface({ input: process.stdin })) {
    try {
      await steps[step]()
      console.log('ok')
    } catch (error) {
      console.error(error)
      console.log(`failed: ${String(error).replaceAll(/\s+/g, ' ')}`)
    }
  }
  for (const session of [client, piped, other]) await session.end()
}

main()
