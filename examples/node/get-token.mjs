// node get-token.mjs PROVIDER EXTERNAL_ID: prints a fresh access token, for a program that reads it from a pipe.
//
// DATABASE_URL connects as a reader (deploy/postgres/reader.sql); TOKENFLEET_ACCESS_KEYS holds the access ring. Run
// `npm ci` here once before.

import pg from 'pg'

import { CannotOpen, NoToken, TokenReader, parseKeys } from './tokenfleet.mjs'

const [provider, externalId, ...more] = process.argv.slice(2)
const { DATABASE_URL: url, TOKENFLEET_ACCESS_KEYS: keys } = process.env

if (!provider || !externalId || more.length > 0 || !url || !keys) {
  console.error('usage: DATABASE_URL=... TOKENFLEET_ACCESS_KEYS=... node get-token.mjs PROVIDER EXTERNAL_ID')
  process.exit(2)
}

const pool = new pg.Pool({ connectionString: url })

try {
  const reader = new TokenReader(pool.query.bind(pool), parseKeys(keys))
  process.stdout.write(await reader.getToken(provider, externalId))
} catch (error) {
  if (!(error instanceof NoToken || error instanceof CannotOpen)) throw error
  console.error(`${error.code ?? 'cannot open'}: ${error.message}`)
  process.exitCode = 1
} finally {
  await pool.end()
}
