-- What the sweep, the recovery and purges do to many jobs. See common.lua for the keys and the helpers.

-- Settles the waiting jobs of a zset whose time has come, ARGV[3] at most: `settle` returns whether it did something. How many
-- it settled; ids of records that cannot be read, which are tried again later.
local function settle_due(key, settle)
  local settled, broken = 0, {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[3])) do
    local readable, job = pcall(read, id)
    if not readable then
      broken[#broken + 1] = id
      redis.call('ZADD', key, now + BROKEN_MS, id)
    else
      redis.call('ZREM', key, id)
      if job.status == S.IN_QUEUE and settle(id, job) then
        settled = settled + 1
      end
    end
  end
  return {settled, broken}
end

-- limit, ttl -> ids of jobs that waited longer than their ttl, and are TIMED_OUT now; ids of records that
-- cannot be read, which are tried again later
function commands.expire()
  local ended, broken = {}, {}
  local ids = redis.call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, ARGV[3])
  for _, id in ipairs(ids) do
    local readable, is_over = pcall(function() return expire_job(id, read(id), ARGV[4]) end)
    if not readable then
      broken[#broken + 1] = id
      redis.call('ZADD', EXPIRIES, now + BROKEN_MS, id)
    else
      redis.call('ZREM', EXPIRIES, id)
      if is_over then
        ended[#ended + 1] = id
      end
    end
  end
  return {ended, broken}
end

-- limit -> {id, endpoint, attempt, worker id, lease end} of running jobs whose lease has expired, the
-- oldest first; ids of records that cannot be read, which are tried again later. Only running jobs have a lease.
function commands.expired()
  local expired, broken = {}, {}
  local ids = redis.call(
    'ZRANGEBYSCORE', LEASES, '-inf', '(' .. string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, ARGV[3]
  )
  for i = 1, #ids, 2 do
    local id = ids[i]
    local readable, job = pcall(read, id)
    if not readable then
      broken[#broken + 1] = id
      redis.call('ZADD', LEASES, now + BROKEN_MS, id)
    elseif job.status == S.IN_PROGRESS then
      expired[#expired + 1] = {id, job.endpoint, job.attempt, job.worker_id or '', ids[i + 1]}
    else
      redis.call('ZREM', LEASES, id)
    end
  end
  return {expired, broken}
end

-- id, endpoint, queue -> 1 if the job waits without a pause: it has another message, in front. A job that does not
-- wait is removed from a worker's own queue: version 0.1.0 ends jobs without that, and the counts would stay wrong.
function commands.republish()
  local id, endpoint, queue, job = ARGV[3], ARGV[4], ARGV[5], read(ARGV[3])
  if job.status ~= S.IN_QUEUE and queue ~= QUEUE_PREFIX .. endpoint then
    leave_queue(id, {endpoint = endpoint, queue = queue, pinned = true, low = true})
  end
  if job.status ~= S.IN_QUEUE or redis.call('ZSCORE', DELAYED, id) then
    return 0
  end
  push_message(id, job, 'RPUSH')
  return 1
end

-- limit -> how many requeued pinned jobs have a message now, because their pause is over; ids of records
-- that cannot be read, which are tried again later
function commands.publish_delayed()
  return settle_due(DELAYED, function(id, job)
    push_message(id, job, 'RPUSH')
    return true
  end)
end

-- limit -> how many jobs that waited for a worker that they only preferred wait in their endpoint's queue now; ids of
-- records that cannot be read, which are tried again later
function commands.release_preferring()
  return settle_due(PREFERRING, function(id, job)
    if not job.pinned then
      return false
    end
    unpin(id, job)
    return true
  end)
end

-- id, a worker's own queue, reason, ttl -> 1: the job waited there, and is FAILED now; 0: it does not
function commands.abandon()
  local id, job = ARGV[3], read(ARGV[3])
  if job.status ~= S.IN_QUEUE or job.queue ~= ARGV[4] then
    return 0
  end
  remove_message(id, job)
  return finish(id, job, S.FAILED, ARGV[6], {'error', ARGV[5]}) and 1 or 0
end

-- endpoint -> how many jobs purge_some is to cancel; -1: an earlier purge must be finished first. Takes the
-- same time for any queue.
function commands.purge()
  local endpoint = ARGV[3]
  local queued, purging, purged = of(endpoint, 'queued'), of(endpoint, 'purging'), of(endpoint, 'purged')
  local queue = QUEUE_PREFIX .. endpoint
  local last, removed = string.match(redis.call('GET', purged) or '', '^(%S+) (%d+)$')
  if last == token then
    return tonumber(removed)
  end
  if redis.call('EXISTS', purging) == 1 then
    return -1
  end
  if redis.call('EXISTS', queued) == 1 then
    redis.call('RENAME', queued, purging)
  end
  -- Workers' own lists stay: they also hold messages about runs.
  redis.call('UNLINK', of(endpoint, 'low'), of(endpoint, 'left'), queue, queue .. LOW_SUFFIX)
  local jobs = redis.call('ZCARD', purging)
  redis.call('SET', purged, token .. ' ' .. jobs, 'EX', 3600)
  return jobs
end

-- endpoint, limit, ttl, reason -> how many jobs were cancelled, how many are left
function commands.purge_some()
  local purging, cancelled = of(ARGV[3], 'purging'), 0
  local ids = redis.call('ZRANGE', purging, 0, tonumber(ARGV[4]) - 1)
  for _, id in ipairs(ids) do
    local job = read(id)
    if job.status == S.IN_QUEUE then
      if job.pinned then
        remove_message(id, job)
      end
      if finish(id, job, S.CANCELLED, ARGV[5], {'error', ARGV[6]}) then
        cancelled = cancelled + 1
      end
    end
  end
  if #ids > 0 then
    redis.call('ZREM', purging, unpack(ids))
  end
  return {cancelled, redis.call('ZCARD', purging)}
end

-- endpoint, ms, limit: adds to the history how many jobs wait and run, once in each period of so many ms,
-- and keeps the last entries -> 1, or 0 if this period has one
function commands.sample()
  local key, period_ms = of(ARGV[3], 'history'), tonumber(ARGV[4])
  local last = redis.call('LINDEX', key, -1)
  if last and math.floor(cjson.decode(last)[1] / period_ms) >= math.floor(now / period_ms) then
    return 0
  end
  local waiting = redis.call('ZCARD', of(ARGV[3], 'queued')) + redis.call('ZCARD', of(ARGV[3], 'private'))
  local running = redis.call('HLEN', of(ARGV[3], 'running'))
  redis.call('RPUSH', key, cjson.encode({now, waiting, running}))
  redis.call('LTRIM', key, -ARGV[5], -1)
  return 1
end
