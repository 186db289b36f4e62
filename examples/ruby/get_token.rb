# frozen_string_literal: true

# ruby get_token.rb PROVIDER EXTERNAL_ID: prints a fresh access token, with nothing but Ruby's own OpenSSL and psql.
#
# DATABASE_URL connects as a reader (deploy/postgres/reader.sql); TOKENFLEET_ACCESS_KEYS holds the access ring. The contract:
# docs/reading-tokens.md; the format of sealed values: docs/envelope.md.

require 'json'
require 'open3'
require 'openssl'

NONCE = 12
TAG = 16
HEADER = 1 + 4 + NONCE
READ = <<~SQL
  SELECT to_json(t) FROM (
    SELECT account_id, status, encode(access_token, 'hex') AS access_token, generation,
           extract(epoch FROM expires_at - now()) AS seconds_left
    FROM tokenfleet_v1.access_tokens
    WHERE provider = :'provider' AND environment = 'production' AND external_id = :'external_id') t
SQL
REQUEST = <<~SQL
  SELECT to_json(r) FROM tokenfleet_v1.request_refresh(CAST(:'account_id' AS bigint), CAST(:'min_validity' AS interval)) r
SQL
KEYS = <<~SQL
  SELECT to_json(k) FROM (
    SELECT data_key_id, kek_id, encode(wrapped, 'hex') AS wrapped FROM tokenfleet_v1.access_keys) k
SQL

class NoToken < StandardError; end
class CannotOpen < StandardError; end

# Returns the rows of a statement, each as a hash. Values are psql's variables, which it quotes.
def query(statement, **values)
  options = values.flat_map { |name, value| ['-v', "#{name}=#{value}"] }
  command = ['psql', ENV.fetch('DATABASE_URL'), '-XqAt', '-v', 'ON_ERROR_STOP=1', *options]
  output, status = Open3.capture2(*command, stdin_data: statement)
  raise 'psql failed' unless status.success?

  output.lines.map { |line| JSON.parse(line) }
end

def hex(text)
  [text].pack('H*')
end

def decrypt(key, nonce, ciphertext_and_tag, associated_data)
  cipher = OpenSSL::Cipher.new('aes-256-gcm').decrypt
  cipher.key = key
  cipher.iv = nonce
  cipher.auth_tag = ciphertext_and_tag[-TAG..]
  cipher.auth_data = associated_data
  ciphertext = ciphertext_and_tag[0...-TAG]
  # An empty text is refused by update.
  (ciphertext.empty? ? ''.b : cipher.update(ciphertext)) + cipher.final
rescue OpenSSL::Cipher::CipherError
  raise CannotOpen, 'the sealed value was altered, or was sealed for another place'
end

# Returns key-encryption keys, id to 32 bytes, from id:base64, several with commas.
def parse_keys(text)
  text.split(',').to_h do |each|
    id, encoded = each.strip.split(':', 2)
    key = encoded.to_s.unpack1('m')
    raise CannotOpen, 'TOKENFLEET_ACCESS_KEYS is not id:base64 of 32 bytes' unless key.bytesize == 32

    [id, key]
  end
end

# Returns the data keys, id to 32 bytes, that the key-encryption keys of the access ring unwrap.
def unwrap(rows, access_keys)
  keks = parse_keys(access_keys)
  rows.select { |row| keks.key?(row['kek_id']) }.to_h do |row|
    wrapped = hex(row['wrapped'])
    place = "tokenfleet/1/data-key/access/#{row['data_key_id']}"
    key = decrypt(keks[row['kek_id']], wrapped[0...NONCE], wrapped[NONCE..], place)
    [row['data_key_id'], key]
  end
end

def open_envelope(envelope, data_keys, place)
  raise CannotOpen, 'the sealed value is truncated' if envelope.bytesize < HEADER + TAG

  version, key_id = envelope.unpack('CN')
  raise CannotOpen, 'the sealed value has another format version' unless version == 1

  key = data_keys.fetch(key_id) { raise CannotOpen, 'the data key of the sealed value is not held' }
  decrypt(key, envelope[5...HEADER], envelope[HEADER..], place).force_encoding(Encoding::UTF_8)
end

def open_token(envelope, rows, place)
  data_keys = unwrap(rows, ENV.fetch('TOKENFLEET_ACCESS_KEYS'))
  needed = rows.find { |row| row['data_key_id'] == envelope.unpack1('xN') }
  if needed && !data_keys.key?(needed['data_key_id'])
    raise CannotOpen, "key-encryption key #{needed['kek_id']} is not held: TOKENFLEET_ACCESS_KEYS lacks it"
  end

  open_envelope(envelope, data_keys, place)
end

def fresh_token(provider, external_id, min_validity: 30, timeout: 10)
  deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + timeout
  loop do
    row = query(READ, provider: provider, external_id: external_id).first
    raise NoToken, 'unknown' unless row
    raise NoToken, row['status'] unless %w[active connecting].include?(row['status'])

    left = row['seconds_left']
    if row['access_token'] && (left.nil? || left >= min_validity)
      place = "tokenfleet/1/access/account:#{row['account_id']}/access_token/#{row['generation']}"
      return open_token(hex(row['access_token']), query(KEYS), place)
    end
    asked = query(REQUEST, account_id: row['account_id'], min_validity: "#{min_validity} seconds").first
    raise NoToken, asked ? asked['answer'] : 'unknown' unless asked && %w[fresh requested].include?(asked['answer'])
    raise NoToken, 'timeout' if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline

    sleep 0.1
  end
end

if $PROGRAM_NAME == __FILE__
  unless ARGV.length == 2 && %w[DATABASE_URL TOKENFLEET_ACCESS_KEYS].all? { |name| ENV.key?(name) }
    warn('usage: DATABASE_URL=... TOKENFLEET_ACCESS_KEYS=... ruby get_token.rb PROVIDER EXTERNAL_ID')
    exit(2)
  end
  begin
    $stdout.write(fresh_token(*ARGV))
  rescue NoToken => e
    abort("no token: #{e.message}")
  rescue CannotOpen => e
    abort("cannot open: #{e.message}")
  end
end
