-- Take leases for many accounts at once.
--
-- KEYS  tokenfleet:lease:<account id>   string, the owner's random token; expires by itself
-- ARGV  [1] owner   [2] life in milliseconds
-- Returns a list of 1 (held by the caller now) or 0 (held by somebody else), in the order of KEYS.
--
-- A value that is already the caller's counts as taken: redis-py sends a command again when the reply was
-- lost, and the second one must not find itself locked out.
local taken = {}
for position, key in ipairs(KEYS) do
  if redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then
    taken[position] = 1
  elseif redis.call('GET', key) == ARGV[1] then
    redis.call('PEXPIRE', key, ARGV[2])
    taken[position] = 1
  else
    taken[position] = 0
  end
end
return taken
