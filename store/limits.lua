-- Slots for the requests of one provider app: GCRA (the generic cell rate algorithm), in Redis time.
--
-- KEYS  tokenfleet:slots:<app id>   hash: arrival, the theoretical arrival time of the next request; paused, the moment
--                                   before which nobody is asked. Microseconds.
-- ARGV  wanted, interval, tolerance, horizon, microseconds for which the caller knows the app to be paused, and 1 if
--       what the hash says of arrivals is not to be believed: the caller has sent without asking for a while
-- Returns how many slots were taken, how far from now the first one is (in microseconds, negative for the past), and for
-- how long the app is paused (0: it is not). No slot beyond the horizon is given out.
--
-- Nothing known (a first request, a wiped Redis) grants nothing until whatever was taken before has passed:
-- tokenfleet/pace.py has the same arithmetic, and says why.
local wanted, interval, tolerance = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local horizon, pause, blind = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local stored = redis.call('HMGET', KEYS[1], 'arrival', 'paused')

local latest = now + tolerance + horizon + interval
local arrival = latest
if stored[1] and not blind then
  arrival = math.min(math.max(tonumber(stored[1]), now), latest)
end
local paused = math.max(tonumber(stored[2] or 0), pause > 0 and now + pause or 0)

local first = arrival - tolerance - now
local taken = 0
if paused <= now then
  paused = 0
  if first <= horizon then
    taken = math.min(wanted, math.floor((horizon - first) / interval) + 1)
  end
end
redis.call('HSET', KEYS[1], 'arrival', string.format('%.0f', arrival + taken * interval),
  'paused', string.format('%.0f', paused))
local ahead = math.max(interval + tolerance, paused > 0 and paused - now or 0)
redis.call('PEXPIRE', KEYS[1], 3600000 + math.ceil(ahead / 1000))
return {taken, first, paused > 0 and paused - now or 0}
