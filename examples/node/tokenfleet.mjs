// Reads access tokens that a Tokenfleet keeps in Postgres: docs/reading-tokens.md is the contract, docs/envelope.md the
// format of sealed values. Only node:crypto is needed, and a function `query(text, values)` that resolves to
// `{ rows }`, as Pool.query of the package pg does.

import { createDecipheriv } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'

const FORMAT_VERSION = 1
const NONCE = 12
const TAG = 16
const HEADER = 1 + 4 + NONCE

/** No token can be had. `code` says why: unknown, needs_reauth, paused, revoked, waiting, unreachable, timeout. */
export class NoToken extends Error {
  constructor (code, message) {
    super(message)
    this.name = 'NoToken'
    this.code = code
  }
}

/** A sealed value was altered, stands somewhere else than it was sealed for, or is under a key that is not held. */
export class CannotOpen extends Error {
  name = 'CannotOpen'
}

/** Parses `TOKENFLEET_ACCESS_KEYS`: `id:base64`, several with commas. Returns a Map of id to key. Throws CannotOpen. */
export function parseKeys (text) {
  return new Map(text.split(',').map((each) => {
    const [id, encoded] = each.trim().split(':')
    const key = Buffer.from(encoded ?? '', 'base64')
    if (key.length !== 32) throw new CannotOpen('TOKENFLEET_ACCESS_KEYS is not id:base64 of 32 bytes')
    return [id, key]
  }))
}

function decrypt (key, nonce, ciphertextAndTag, associatedData) {
  const decipher = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: TAG })
  decipher.setAAD(Buffer.from(associatedData))
  decipher.setAuthTag(ciphertextAndTag.subarray(-TAG))
  try {
    return Buffer.concat([decipher.update(ciphertextAndTag.subarray(0, -TAG)), decipher.final()])
  } catch {
    throw new CannotOpen('the sealed value was altered, or was sealed for another place')
  }
}

/** Returns the data key of one row of tokenfleet_v1.access_keys, or undefined when its key-encryption key is not held. */
export function unwrap (row, keys) {
  const key = keys.get(row.kek_id)
  if (key === undefined) return undefined
  const place = `tokenfleet/1/data-key/access/${row.data_key_id}`
  return decrypt(key, row.wrapped.subarray(0, NONCE), row.wrapped.subarray(NONCE), place)
}

/** Opens an envelope. `dataKeys` is a Map of data key id to 32 bytes; `place` is the associated data. */
export function open (envelope, dataKeys, place) {
  if (envelope.length < HEADER + TAG) throw new CannotOpen('the sealed value is truncated')
  if (envelope[0] !== FORMAT_VERSION) throw new CannotOpen('the sealed value has another format version')
  const key = dataKeys.get(envelope.readUInt32BE(1))
  if (key === undefined) throw new CannotOpen('the data key of the sealed value is not held')
  return decrypt(key, envelope.subarray(5, HEADER), envelope.subarray(HEADER), place).toString()
}

export class TokenReader {
  #query
  #keys
  #dataKeys = new Map()

  constructor (query, keys) {
    this.#query = query
    this.#keys = keys
  }

  /**
   * Resolves to an access token that lives for `minValidity` more seconds. Asks the fleet for a new one where it must,
   * and waits up to `timeout` seconds for it. Throws NoToken.
   */
  async getToken (provider, externalId, { environment = 'production', minValidity = 30, timeout = 10 } = {}) {
    const deadline = performance.now() + timeout * 1000
    let pause = 10
    for (;;) {
      const row = await this.#read(provider, environment, externalId)
      if (!['active', 'connecting'].includes(row.status)) {
        throw new NoToken(row.status, `${provider}/${externalId} is ${row.status}`)
      }
      if (row.access_token !== null && (row.seconds_left === null || row.seconds_left >= minValidity)) {
        const place = `tokenfleet/1/access/account:${row.account_id}/access_token/${row.generation}`
        return await this.#open(row.access_token, place)
      }
      const answer = await this.#request(row.account_id, minValidity)
      if (['unreachable', 'refused', 'waiting'].includes(answer.answer)) {
        throw new NoToken(answer.answer, `no new token now: ${answer.last_error ?? answer.status}`)
      }
      if (performance.now() + pause > deadline) throw new NoToken('timeout', `no new token within ${timeout} s`)
      await sleep(pause)
      pause = Math.min(pause * 2, 250)
    }
  }

  async #read (provider, environment, externalId) {
    const { rows: [row] } = await this.#query(
      `SELECT account_id, status, access_token, generation,
              extract(epoch FROM expires_at - now())::float8 AS seconds_left
       FROM tokenfleet_v1.access_tokens WHERE provider = $1 AND environment = $2 AND external_id = $3`,
      [provider, environment, externalId])
    if (row === undefined) throw new NoToken('unknown', `there is no account ${provider}/${externalId}`)
    return row
  }

  async #request (accountId, minValidity) {
    const { rows: [row] } = await this.#query(
      'SELECT * FROM tokenfleet_v1.request_refresh($1, make_interval(secs => $2))', [accountId, minValidity])
    if (row === undefined) throw new NoToken('unknown', `account ${accountId} is gone`)
    return row
  }

  async #open (envelope, place) {
    if (this.#dataKeys.get(envelope.readUInt32BE(1)) === undefined) {
      // Data keys are replaced while readers run.
      const { rows } = await this.#query('SELECT data_key_id, kek_id, wrapped FROM tokenfleet_v1.access_keys', [])
      this.#dataKeys = new Map(rows.map((row) => [row.data_key_id, unwrap(row, this.#keys)]))
      const row = rows.find((each) => each.data_key_id === envelope.readUInt32BE(1))
      if (row !== undefined && !this.#keys.has(row.kek_id)) {
        throw new CannotOpen(`key-encryption key ${row.kek_id} is not held: TOKENFLEET_ACCESS_KEYS lacks it`)
      }
    }
    return open(envelope, this.#dataKeys, place)
  }
}
