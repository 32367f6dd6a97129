-- Webhooks that are owed; every command is one atomic step. deliveries.py puts the constants in front: JOB,
-- ENDPOINT, WEBHOOKS (keys.py), WEBHOOK_LIST and WEBHOOK_MESSAGE (messages.py), ENDED (the terminal
-- states), ANSWER (Job.FIELDS), LEASE_MS, KEPT_S; scripts.py adds `now`, Redis's clock in ms.
--
-- WEBHOOKS                  zset   ids of jobs whose webhook is owed, by the ms when the sweep checks it next;
--                                  written by common.lua when a job ends
-- JOB<id>                   hash   `webhook_try`, a JSON object about the webhook of the job's last end:
--                                  `ended`, which end that is, "<finished_ms>:<retries>": a try of an
--                                  earlier end of the same job is void;
--                                  `token`, of the claim that makes a try, or made the last one;
--                                  `settled`, that try has its result;
--                                  `until_ms`, no other try begins before: the end of the try's lease,
--                                  or of the pause after it;
--                                  `queued_ms`, when its message was put into WEBHOOK_LIST; without it,
--                                  that was when the job ended; false: its message was consumed;
--                                  `ttl_ms`, how long the record stays after the last try (?ttl=);
--                                  `deliveries`, the JSON log of tries
-- ENDPOINT<ep>:webhooks     hash   "delivered", "failed" (tries), "given_up" -> how many ever

local function message(id)
  return table.concat(WEBHOOK_MESSAGE, id)
end

-- The webhook of a job that has ended: its fields, and `try`, the current state of its delivery; or nil.
local function read(id)
  local values = redis.call(
    'HMGET', JOB .. id, 'status', 'finished_ms', 'retries', 'webhook', 'webhook_try', 'endpoint',
    'deliveries', 'request_id'
  )
  local status, finished_ms, url = values[1], values[2], values[4]
  if not status or not ENDED[status] or not finished_ms or not url then
    return nil
  end
  local ended = finished_ms .. ':' .. (values[3] or 0)
  local try = values[5] and cjson.decode(values[5])
  if not try or try.ended ~= ended then
    try = {ended = ended}
  end
  if try.queued_ms == nil then
    try.queued_ms = tonumber(finished_ms)
  end
  return {
    try = try, url = url, endpoint = values[6], log = values[7], request_id = values[8]
  }
end

local function write(id, try)
  redis.call('HSET', JOB .. id, 'webhook_try', cjson.encode(try))
end

-- The record must outlive what is owed.
local function keep(id, seconds)
  local left = redis.call('TTL', JOB .. id)
  if left >= 0 and left < seconds then
    redis.call('EXPIRE', JOB .. id, math.ceil(seconds))
  end
end

-- When the oldest message in the list was queued; older ones were consumed, because the list is first
-- in, first out. The least of several, because a message may be in the list twice after an upgrade. nil:
-- the list is empty, or its end holds no message of a webhook that is owed.
local function oldest_queued_ms()
  local oldest
  for _, text in ipairs(redis.call('LRANGE', WEBHOOK_LIST, -16, -1)) do
    local id = string.match(text, '"correlation_id": "webhook%-([%w_-]+)"')
    local owed = id and read(id)
    local queued_ms = owed and owed.try.queued_ms
    if queued_ms and (not oldest or queued_ms < oldest) then
      oldest = queued_ms
    end
  end
  return oldest
end

local commands = {}

-- id, token -> the webhook's URL, the tries so far, the request id, and ANSWER's fields of the job, for
-- one try that is this token's for LEASE_MS from now on; nil if no try is owed now, or another one has
-- its lease. The same token again is the same claim, repeated because its answer was lost.
function commands.claim()
  local id, token = ARGV[2], ARGV[3]
  local owed = redis.call('ZSCORE', WEBHOOKS, id) and read(id)
  if not owed then
    return false
  end
  local try = owed.try
  local mine = try.token == token and not try.settled
  if not mine and try.until_ms and try.until_ms > now then
    return false
  end
  try.token, try.settled, try.until_ms, try.queued_ms = token, nil, now + LEASE_MS, false
  write(id, try)
  redis.call('ZADD', WEBHOOKS, try.until_ms, id)
  keep(id, KEPT_S)
  local tries = owed.log and #cjson.decode(owed.log) or 0
  return {
    owed.url, tries, owed.request_id, unpack(redis.call('HMGET', JOB .. id, unpack(ANSWER)))
  }
end

-- id, token, delivery (JSON), pause in ms ('': this was the last try), ttl, result -> 1, or 0 if the try is
-- not this token's any more: then nothing is written. Repeated, it changes nothing.
function commands.settle()
  local id, token, delivery, pause_ms, ttl_s, result =
    ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local owed = read(id)
  if not owed or owed.try.token ~= token then
    return 0
  end
  local try = owed.try
  if try.settled then
    return 1
  end
  local log = owed.log and owed.log ~= '[]' and string.sub(owed.log, 1, -2) .. ',' or '['
  redis.call('HSET', JOB .. id, 'deliveries', log .. delivery .. ']')
  redis.call('HINCRBY', ENDPOINT .. owed.endpoint .. ':webhooks', result, 1)
  try.settled = true
  if pause_ms == '' then
    redis.call('ZREM', WEBHOOKS, id)
    redis.call('PEXPIRE', JOB .. id, math.min(ttl_s * 1000, try.ttl_ms or math.huge))
  else
    try.until_ms = now + pause_ms
    redis.call('ZADD', WEBHOOKS, try.until_ms, id)
    keep(id, KEPT_S + pause_ms / 1000)
  end
  write(id, try)
  return 1
end

-- limit -> ids whose try is due and has a message now, and ids that are owed no more, because their record
-- is gone. A message that is still in the list is not added again.
function commands.due()
  local queued, gone, tail_ms, tail_read = {}, {}, nil, false
  local ids = redis.call('ZRANGEBYSCORE', WEBHOOKS, '-inf', now, 'LIMIT', 0, ARGV[2])
  for _, id in ipairs(ids) do
    local owed = read(id)
    if not owed then
      redis.call('ZREM', WEBHOOKS, id)
      if redis.call('EXISTS', JOB .. id) == 0 then
        gone[#gone + 1] = id
      end
    elseif owed.try.until_ms and owed.try.until_ms > now then
      redis.call('ZADD', WEBHOOKS, owed.try.until_ms, id)
    else
      keep(id, KEPT_S)
      redis.call('ZADD', WEBHOOKS, now + LEASE_MS, id)
      if not tail_read then
        tail_ms, tail_read = oldest_queued_ms(), true
      end
      local try = owed.try
      if not try.queued_ms or not tail_ms or try.queued_ms < tail_ms then
        try.queued_ms = now
        write(id, try)
        redis.call('LPUSH', WEBHOOK_LIST, message(id))
        queued[#queued + 1] = id
      end
    end
  end
  return {queued, gone}
end

-- id, ms: the finished job's record expires after so long, if that is sooner than it would; while a webhook
-- is owed, so long after the last try
function commands.shorten()
  local id, ttl_ms = ARGV[2], tonumber(ARGV[3])
  local owed = redis.call('ZSCORE', WEBHOOKS, id) and read(id)
  if owed then
    owed.try.ttl_ms = math.min(ttl_ms, owed.try.ttl_ms or math.huge)
    write(id, owed.try)
  elseif redis.call('PTTL', JOB .. id) > ttl_ms then
    redis.call('PEXPIRE', JOB .. id, ttl_ms)
  end
  return 1
end
