-- Give leases back, each only if it is still the caller's.
--
-- KEYS  tokenfleet:lease:<account id>
-- ARGV  [1] owner
-- Returns how many were given back.
local released = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then
    released = released + redis.call('DEL', key)
  end
end
return released
