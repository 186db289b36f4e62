-- Pace requests of provider apps: GCRA (the generic cell rate algorithm), in Redis time.
--
-- KEYS  tokenfleet:pace:<app id>   string, the theoretical arrival time of the next request, microseconds
-- ARGV  for each key three numbers: wanted, interval between requests in microseconds, burst
-- Returns for each key how many of the wanted requests may be sent now.
--
-- A negative "wanted" gives back requests that were granted and not used.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local granted = {}
for position, key in ipairs(KEYS) do
  local wanted = tonumber(ARGV[position * 3 - 2])
  local interval = tonumber(ARGV[position * 3 - 1])
  local burst = tonumber(ARGV[position * 3])
  local arrival = math.max(tonumber(redis.call('GET', key) or 0), now)
  local room = math.floor((now + interval * burst - arrival) / interval)
  local take = math.min(wanted, math.max(room, 0))
  arrival = math.max(arrival + take * interval, now)
  redis.call('SET', key, string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1000)
  granted[position] = take
end
return granted
