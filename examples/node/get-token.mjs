// node get-token.mjs PROVIDER EXTERNAL_ID: prints a fresh access token, for a program that reads it from a pipe.
//
// DATABASE_URL connects as a reader (deploy/postgres/reader.sql); TOKENFLEET_ACCESS_KEYS holds the access ring.

import pg from 'pg'

import { NoToken, TokenReader, parseKeys } from './tokenfleet.mjs'

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })
const reader = new TokenReader(pool.query.bind(pool), parseKeys(process.env.TOKENFLEET_ACCESS_KEYS))

try {
  process.stdout.write(await reader.getToken(process.argv[2], process.argv[3]))
} catch (error) {
  if (!(error instanceof NoToken)) throw error
  console.error(`${error.code}: ${error.message}`)
  process.exitCode = 1
} finally {
  await pool.end()
}
