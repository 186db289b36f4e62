-- The circuits of provider apps, by the rules of tokenfleet/circuit.py, in Redis time.
--
-- KEYS  three for each app:
--       tokenfleet:circuit:<app id>            hash: until (0 while closed), openings, trial_until, closed_at, and for
--                                              each 5 s of the last 30 s a<bucket> answers and o<bucket> outages
--       tokenfleet:circuit:<app id>:failing    sorted set: endpoints whose last answer was none, by moment
--       tokenfleet:circuit:<app id>:answering  sorted set: endpoints that answered, by moment
-- ARGV  a report for each app as JSON, {} to look only; see _argument in store/circuits.py
-- Returns for each app: state (0 closed, 1 open, 2 half open), milliseconds left of open, openings, milliseconds left
-- of the trial, 1 if the reporter may try, milliseconds since it closed (-1: not lately).
--
-- All moments are milliseconds. Nothing here is the only copy: workers remember what is not closed, and say so.
local BUCKET, BUCKETS = 5000, 6
local LEAST_OUTAGES, LEAST_ENDPOINTS = 10, 2
local FIRST_OPEN, LONGEST_OPEN, JITTER = 5000, 60000, 0.2
local TRIAL, RELAPSE, LIFE = 30000, 60000, 600000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function open(circuit, chance)
  circuit.openings = circuit.openings + 1
  local length = math.min(LONGEST_OPEN, FIRST_OPEN * 2 ^ math.min(math.max(circuit.openings - 1, 0), 10))
  circuit['until'] = now + math.floor(length * (1 - JITTER * chance))
  circuit.trial_until, circuit.closed_at = 0, 0
end

local function half_open(circuit, report, keys)
  if report.trial == 'answered' then
    redis.call('DEL', keys[1], keys[2], keys[3])
    circuit['until'], circuit.trial_until, circuit.closed_at = 0, 0, now
  elseif report.trial == 'outage' then
    open(circuit, report.chance or 0)
  elseif report.trial == 'unused' then
    circuit.trial_until = 0
  end
  if report.wants_trial and circuit['until'] > 0 and now >= circuit['until'] and now >= circuit.trial_until then
    circuit.trial_until = now + TRIAL
    return 1
  end
  return 0
end

local function note_endpoints(report, keys)
  local function note(endpoints, mine, other)
    for _, endpoint in ipairs(endpoints or {}) do
      redis.call('ZREM', other, endpoint)
      redis.call('ZADD', mine, now, endpoint)
    end
  end
  note(report.answering, keys[3], keys[2])
  note(report.failing, keys[2], keys[3])
  for position = 2, 3 do
    redis.call('ZREMRANGEBYSCORE', keys[position], '-inf', now - BUCKET * BUCKETS)
    redis.call('PEXPIRE', keys[position], BUCKET * BUCKETS)
  end
  local failing, answering = redis.call('ZCARD', keys[2]), redis.call('ZCARD', keys[3])
  return failing >= LEAST_ENDPOINTS and failing > answering
end

local function count(circuit, report, keys, counts)
  local bucket = math.floor(now / BUCKET)
  local answers, outages = report.answers, report.outages or 0
  redis.call('HINCRBY', keys[1], string.format('a%.0f', bucket), answers)
  if outages > 0 then
    redis.call('HINCRBY', keys[1], string.format('o%.0f', bucket), outages)
  end
  for field, value in pairs(counts) do
    if tonumber(string.sub(field, 2)) <= bucket - BUCKETS then
      redis.call('HDEL', keys[1], field)
    elseif string.sub(field, 1, 1) == 'a' then
      answers = answers + tonumber(value)
    else
      outages = outages + tonumber(value)
    end
  end
  local several = report.varies and note_endpoints(report, keys)
  if (report.outages or 0) > 0 and outages >= LEAST_OUTAGES and 2 * outages >= answers
      and (several or not report.varies) then
    if now - circuit.closed_at >= RELAPSE then
      circuit.openings = 0
    end
    open(circuit, report.chance or 0)
  end
end

local standings = {}
for app = 1, #ARGV do
  local keys = {KEYS[app * 3 - 2], KEYS[app * 3 - 1], KEYS[app * 3]}
  local report = cjson.decode(ARGV[app])
  local circuit, counts = {['until'] = 0, openings = 0, trial_until = 0, closed_at = 0}, {}
  local stored = redis.call('HGETALL', keys[1])
  for position = 1, #stored, 2 do
    local field = stored[position]
    if circuit[field] then
      circuit[field] = tonumber(stored[position + 1])
    else
      counts[field] = stored[position + 1]
    end
  end
  local before = {circuit['until'], circuit.openings, circuit.trial_until, circuit.closed_at}
  local memory = report.memory
  if circuit['until'] == 0 and circuit.closed_at == 0 and memory then
    circuit['until'], circuit.openings = now + memory.remaining_ms, memory.openings
    circuit.trial_until = memory.trial_left_ms > 0 and now + memory.trial_left_ms or 0
  end
  local granted = 0
  if circuit['until'] > 0 and now >= circuit['until'] then
    granted = half_open(circuit, report, keys)
  elseif circuit['until'] == 0 and (report.answers or 0) > 0 then
    count(circuit, report, keys, counts)
    redis.call('PEXPIRE', keys[1], LIFE)
  end
  if before[1] ~= circuit['until'] or before[2] ~= circuit.openings or before[3] ~= circuit.trial_until
      or before[4] ~= circuit.closed_at then
    for _, field in ipairs({'until', 'openings', 'trial_until', 'closed_at'}) do
      redis.call('HSET', keys[1], field, string.format('%.0f', circuit[field]))
    end
    redis.call('PEXPIRE', keys[1], LIFE)
  end
  if circuit['until'] == 0 then
    standings[app] = {0, 0, 0, 0, 0, circuit.closed_at > 0 and now - circuit.closed_at or -1}
  else
    standings[app] = {now < circuit['until'] and 1 or 2, math.max(0, circuit['until'] - now), circuit.openings,
      math.max(0, circuit.trial_until - now), granted, -1}
  end
end
return standings
