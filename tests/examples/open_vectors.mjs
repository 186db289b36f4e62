// Reads the published vectors with the code of the example and writes what each one gave, as JSON.

import { readFileSync } from 'node:fs'

import { CannotOpen, open, parseKeys, unwrap } from '../../examples/node/tokenfleet.mjs'

const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const keys = parseKeys(vectors.key_encryption_keys.access)
const dataKeys = new Map()
for (const each of vectors.data_keys) {
  const key = unwrap({ ...each, wrapped: Buffer.from(each.wrapped, 'hex') }, keys)
  if (key !== undefined) dataKeys.set(each.data_key_id, key)
}

function attempt (vector) {
  // The largest generation is no number of JavaScript's; a driver for Postgres gives it as text.
  const place = vector.associated_data ??
    ['tokenfleet', 1, vector.ring, vector.subject, vector.field, vector.generation].join('/')
  try {
    return open(Buffer.from(vector.envelope, 'hex'), dataKeys, place)
  } catch (error) {
    if (error instanceof CannotOpen) return null
    throw error
  }
}

const results = [...vectors.sealed, ...vectors.refused].map((each) => [each.name, attempt(each)])
process.stdout.write(JSON.stringify(Object.fromEntries(results)))
