# frozen_string_literal: true

# Reads the published vectors with the code of the example and writes what each one gave, as JSON.

require_relative '../../examples/ruby/get_token'

vectors = JSON.parse(File.read(ARGV[0], encoding: 'UTF-8'))
data_keys = unwrap(vectors['data_keys'], vectors['key_encryption_keys']['access'])
results = (vectors['sealed'] + vectors['refused']).to_h do |each|
  place = "tokenfleet/1/#{each.values_at('ring', 'subject', 'field', 'generation').join('/')}"
  [each['name'], open_envelope(hex(each['envelope']), data_keys, place)]
rescue CannotOpen
  [each['name'], nil]
end
$stdout.write(JSON.generate(results))
