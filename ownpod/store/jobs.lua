-- Every change of a job record, each one atomic step. store.py puts the constants in front:
-- S (states), MOVES (allowed moves), JOB, ENDPOINT, LEASES, EXPIRIES, CHUNKS, RUNS, WEBHOOKS
-- (see keys.py), DESCRIPTION, WEBHOOK_LIST and WEBHOOK_MESSAGE (see broker.py), WEBHOOK_LEASE_MS,
-- WEBHOOK_KEPT_S, RECENT, ATTEMPTS_LOGGED, ANSWER, LONGEST_TOLD, CHUNK_BYTES, RETRIED and LREM_MOST
-- (store.py); scripts.py puts `now` there, Redis's clock in ms: arguments are durations, as callers'
-- clocks may differ.
--
-- ARGV[2] of every command is the call's token, the same when the call is repeated after a lost answer;
-- '' where the command needs none. Every command but republish changes nothing when it is executed again.
--
-- JOB<id>                   hash   the record; fields in jobs.py (NewJob.record, Job.FIELDS), and
--                                  `claim`, the token of the delivery that runs it;
--                                  `drained`, the "<attempt>-<index>" up to which /stream was read;
--                                  `deliveries`, the JSON log of its webhook; `webhook_try`, see deliveries.lua;
--                                  `attempts`, the JSON log of attempts that were handed back;
--                                  `callback`, the token of the run's callback, and
--                                  `returned`, the output that came that way while a node waited for
--                                  its own; `resume`, the worker whose next node goes on with the run;
--                                  `progress`, what its handler last said of that;
--                                  `watched`, the channels, with spaces between, of processes in
--                                  which a request waits for its end, `followed`, for any news;
--                                  `awaits`, only the callback can still bring the result;
--                                  `chunk_bytes`, the size of CHUNKS, `chunk_calls`, the tokens of the
--                                  last calls that added to it; `retry_call`, the token of the call that
--                                  made the job wait again
-- RUNS<worker id>           hash   "<id>:<attempt>" -> what the worker may be at, a JSON object: `attempt`
--                                  and, from before it may begin, `run`, its own id, `look` (jobs.py),
--                                  `timeoutMs`, `callback`. Stays until its slot is free
-- CHUNKS<id>                list   what the handler has yielded in this attempt, JSON texts
-- ENDPOINT<ep>:queued       zset   ids of jobs IN_QUEUE, by created_ms
-- ENDPOINT<ep>:low          zset   those of them with low priority
-- ENDPOINT<ep>:purging      zset   ids taken out of `queued` by a purge, on their way to CANCELLED
-- ENDPOINT<ep>:purged       string "<token> <jobs>" of the last purge
-- ENDPOINT<ep>:left         zset   ids of CANCELLED jobs whose message is still in its list
-- ENDPOINT<ep>:running      hash   ids of jobs IN_PROGRESS -> worker id
-- ENDPOINT<ep>:recent       zset   ids of the last RECENT jobs, by created_ms; some may be gone
-- ENDPOINT<ep>:counts       hash   terminal state, "submitted", "retried" (jobs), "begun", "lost" (attempts)
--                                  -> how many ever
-- ENDPOINT<ep>:delay        hash   histogram: number of the bucket (BUCKETS_MS) -> jobs, "sum" -> ms; from
--                                  submission to the first attempt
-- ENDPOINT<ep>:execution    hash   the same, of attempts that brought a result
-- ENDPOINT<ep>:history      list   the sweep's samples: [ms, waiting, running]
-- ENDPOINT<ep>:webhooks     hash   "delivered", "failed" (tries), "given_up" -> how many ever
-- LEASES                    zset   ids of jobs IN_PROGRESS, by the ms when the lease runs out
-- EXPIRIES                  zset   ids of jobs IN_QUEUE, by the ms when their ttl has passed
-- WEBHOOKS                  zset   ids of jobs whose webhook is owed, by the ms of the next try; see deliveries.lua
-- EVENTS<process>           pub/sub "<id> <state>" for moves, "<id> CHUNK" for new chunks, of the jobs that
--                                  have this channel in `followed`, "<id> <state> <answer>" for the end
--                                  of those that have it in `watched`
-- Celery's lists (messages) come as arguments: their names and contents are broker.py's.
--
-- Keys are computed from ids, so this needs one Redis, not a cluster; so does Celery's broker.

local token = ARGV[2]

local function of(endpoint, what)
  return ENDPOINT .. endpoint .. ':' .. what
end

-- What moves depend on, read at once.
local function read(id)
  local found = redis.call(
    'HMGET', JOB .. id, 'status', 'endpoint', 'attempt', 'created_ms', 'ttl_ms', 'started_ms',
    'low_priority', 'worker_id', 'claim', 'callback', 'resume', 'returned', 'progress', 'awaits',
    'webhook', 'watched', 'followed'
  )
  return {
    status = found[1], endpoint = found[2], attempt = found[3], created_ms = found[4],
    ttl_ms = found[5], started_ms = found[6], low = found[7] == '1', worker_id = found[8],
    claim = found[9], callback = found[10], resume = found[11], returned = found[12],
    passing = found[11] or found[12] or found[13] or found[14], awaits = found[14],
    webhook = found[15], watched = found[16], followed = found[17]
  }
end

local function holds(job, attempt)
  return job.status == S.IN_PROGRESS and job.attempt == attempt
end

local function tell(channels, what)
  for channel in string.gmatch(channels or '', '%S+') do
    redis.call('PUBLISH', channel, what)
  end
end

-- What whoever waits for a job's end is to answer: ANSWER's fields as a JSON list, '' if that is long.
local function answer(id)
  local key = JOB .. id
  if redis.call('HSTRLEN', key, 'output') + redis.call('HSTRLEN', key, 'error') > LONGEST_TOLD then
    return ''
  end
  return cjson.encode(redis.call('HMGET', key, unpack(ANSWER)))
end

local function enter_queue(id, endpoint, created_ms, ttl_ms, low)
  redis.call('ZADD', of(endpoint, 'queued'), created_ms, id)
  if low then
    redis.call('ZADD', of(endpoint, 'low'), created_ms, id)
  end
  redis.call('ZADD', EXPIRIES, created_ms + ttl_ms, id)
end

local function count(endpoint, what)
  redis.call('HINCRBY', of(endpoint, 'counts'), what, 1)
end

-- `ms` may be a worker's own figure, so anything that is a number.
local function observe(key, ms)
  local bucket = 1
  if not (ms >= 0 and ms <= LONGEST_MS) then
    ms = ms > LONGEST_MS and LONGEST_MS or 0
  end
  while BUCKETS_MS[bucket] and ms > BUCKETS_MS[bucket] do
    bucket = bucket + 1
  end
  redis.call('HINCRBY', key, bucket, 1)
  redis.call('HINCRBY', key, 'sum', math.floor(ms))
end

-- Takes the job to a state, if the table of moves allows it. `fields` are name, value, ...
local function move(id, job, to, fields)
  local from = job.status
  if not from or not MOVES[from][to] then
    return false
  end
  if from == S.IN_QUEUE then
    redis.call('ZREM', of(job.endpoint, 'queued'), id)
    if job.low then
      redis.call('ZREM', of(job.endpoint, 'low'), id)
    end
    redis.call('ZREM', EXPIRIES, id)
  else
    redis.call('HDEL', of(job.endpoint, 'running'), id)
    redis.call('ZREM', LEASES, id)
  end
  if job.passing then
    redis.call('HDEL', JOB .. id, 'returned', 'resume', 'awaits', 'progress')
  end
  if to == S.IN_QUEUE then
    redis.call('HDEL', JOB .. id, 'worker_id', 'started_ms', 'claim')
    enter_queue(id, job.endpoint, job.created_ms, job.ttl_ms, job.low)
  end
  redis.call('HSET', JOB .. id, 'status', to, unpack(fields))
  job.status = to
  tell(job.followed, id .. ' ' .. to)
  if job.watched and next(MOVES[to]) == nil then
    tell(job.watched, id .. ' ' .. to .. ' ' .. answer(id))
  end
  return true
end

local function finish(id, job, to, ttl_s, fields)
  fields[#fields + 1] = 'finished_ms'
  fields[#fields + 1] = now
  if not move(id, job, to, fields) then
    return false
  end
  redis.call('EXPIRE', JOB .. id, ttl_s)
  redis.call('EXPIRE', CHUNKS .. id, ttl_s)
  count(job.endpoint, to)
  if job.webhook then
    redis.call('EXPIRE', JOB .. id, math.max(ttl_s, WEBHOOK_KEPT_S))
    redis.call('ZADD', WEBHOOKS, now + WEBHOOK_LEASE_MS, id)
    redis.call('LPUSH', WEBHOOK_LIST, (string.gsub(WEBHOOK_MESSAGE, '@job@', id)))
  end
  return true
end

-- Completes a job whose result came by callback while its node did not.
local function returned(id, job, ttl_s)
  return job.returned and finish(id, job, S.COMPLETED, ttl_s, {'output', job.returned})
end

local function expire_job(id, job, ttl_s)
  local waited = 'ttl: the job waited longer than ' .. (job.ttl_ms or 0) .. ' ms for a worker'
  return job.status == S.IN_QUEUE and finish(id, job, S.TIMED_OUT, ttl_s, {'error', waited})
end

local function field(id, attempt)
  return id .. ':' .. attempt
end

-- What the worker may be at: a decoded entry of RUNS, with `run` if it may have begun; or nil.
local function run_of(worker_id, id, attempt)
  local entry = worker_id and redis.call('HGET', RUNS .. worker_id, field(id, attempt))
  return entry and cjson.decode(entry)
end

-- The run can bring its result to another node than the one that began it.
local function outlives(run)
  return run and run.run and (run.look == 'poll' or run.callback)
end

local function rest(first)
  local values = {}
  for i = first, #ARGV do
    values[#values + 1] = ARGV[i]
  end
  return values
end

-- A message with the job's description in its place.
local function filled(id, message)
  local description = redis.call('HGET', JOB .. id, 'description') or ''
  return (string.gsub(message, DESCRIPTION, function() return description end))
end

-- List and message for the job's priority, of the four arguments that begin at `first`.
local function ticket(id, job, first)
  if job.low then
    first = first + 2
  end
  return ARGV[first], filled(id, ARGV[first + 1])
end

local function remember(id, endpoint, created_ms)
  local recent = of(endpoint, 'recent')
  redis.call('ZADD', recent, created_ms, id)
  redis.call('ZREMRANGEBYRANK', recent, 0, -RECENT - 1)
end

-- Writes into the job's log that its attempt ends here and another will begin, or none.
local function log_attempt(id, job, lost, reason)
  local log = redis.call('HGET', JOB .. id, 'attempts')
  local entries = log and cjson.decode(log) or {}
  entries[#entries + 1] = {
    attempt = tonumber(job.attempt), workerId = job.worker_id, startedMs = tonumber(job.started_ms),
    endedMs = now, lost = lost, reason = reason
  }
  while #entries > ATTEMPTS_LOGGED do
    table.remove(entries, 1)
  end
  redis.call('HSET', JOB .. id, 'attempts', cjson.encode(entries))
end

-- Ends an attempt without a result: the job goes to the front of its endpoint's queue, with the ticket
-- at `first`, unless it was lost once too often. -> the state the job has now
local function give_up(id, job, lost, reason, ttl_s, first)
  if returned(id, job, ttl_s) then
    return S.COMPLETED
  end
  log_attempt(id, job, lost, reason)
  if lost then
    local times = redis.call('HINCRBY', JOB .. id, 'lost', 1)
    local most = redis.call('HGET', JOB .. id, 'max_attempts')
    count(job.endpoint, 'lost')
    if times >= tonumber(most) then
      finish(id, job, S.FAILED, ttl_s, {'error', reason})
      return S.FAILED
    end
    redis.call('HINCRBY', JOB .. id, 'retries', 1)
    count(job.endpoint, 'retried')
  end
  move(id, job, S.IN_QUEUE, {})
  redis.call('RPUSH', ticket(id, job, first))
  return S.IN_QUEUE
end

local commands = {}

-- id, endpoint, list, message, most queued (0: any), idempotency key ('': none), its seconds, the
-- body's digest, created_ms ('': now), ttl_ms, low priority (0|1), name, value, ...
-- -> "created", or "full", or the id and digest of the job that was created under the same key, while
-- there is a record of it
function commands.create()
  local id, endpoint, list, message = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local most, key, key_s, digest = tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]
  local created_ms, ttl_ms = tonumber(ARGV[11]) or now, tonumber(ARGV[12])
  if redis.call('EXISTS', JOB .. id) == 1 then
    return {'created'}
  end
  if key ~= '' then
    local earlier = redis.call('HMGET', key, 'job', 'digest')
    if earlier[1] and redis.call('EXISTS', JOB .. earlier[1]) == 1 then
      return earlier
    end
  end
  if most > 0 and redis.call('ZCARD', of(endpoint, 'queued')) >= most then
    return {'full'}
  end
  redis.call('HSET', JOB .. id, 'created_ms', created_ms, unpack(rest(14)))
  enter_queue(id, endpoint, created_ms, ttl_ms, ARGV[13] == '1')
  remember(id, endpoint, created_ms)
  redis.call('LPUSH', list, message)
  count(endpoint, 'submitted')
  if key ~= '' then
    redis.call('HSET', key, 'job', id, 'digest', digest)
    redis.call('EXPIRE', key, key_s)
  end
  return {'created'}
end

-- id, endpoint, new id, list, message, list, message (for low priority) -> the state the old job has; it is retried only if that is
-- FAILED or TIMED_OUT. nil if there is none. With its own id the job begins anew.
function commands.retry()
  local id, endpoint, new_id = ARGV[3], ARGV[4], ARGV[5]
  local key, again, job = JOB .. id, JOB .. new_id, read(id)
  local status = job.status
  if redis.call('HGET', again, 'retry_call') == token then
    -- The answer was lost; the old job was FAILED or TIMED_OUT.
    return S.FAILED
  end
  if job.endpoint ~= endpoint then
    return false
  end
  if status ~= S.FAILED and status ~= S.TIMED_OUT then
    return status
  end
  if new_id == id then
    redis.call('PERSIST', key)
    redis.call('HINCRBY', key, 'retries', 1)
  else
    if redis.call('EXISTS', again) == 1 then
      return status
    end
    local values, fields = redis.call('HMGET', key, unpack(RETRIED)), {}
    for i, name in ipairs(RETRIED) do
      if values[i] then
        fields[#fields + 1] = name
        fields[#fields + 1] = values[i]
      end
    end
    redis.call('HSET', again, 'id', new_id, 'attempt', 0, 'retries', 0, 'retry_of', id, unpack(fields))
    redis.call('HSET', key, 'retried_as', new_id)
  end
  redis.call(
    'HDEL', again, 'worker_id', 'started_ms', 'finished_ms', 'execution_ms', 'output', 'error',
    'claim', 'drained', 'deliveries', 'attempts', 'callback', 'retried_as', 'chunk_bytes', 'chunk_calls'
  )
  redis.call('DEL', CHUNKS .. new_id)
  redis.call('ZREM', WEBHOOKS, new_id)
  redis.call('HSET', again, 'status', S.IN_QUEUE, 'lost', 0, 'created_ms', now, 'retry_call', token)
  count(endpoint, 'retried')
  enter_queue(new_id, endpoint, now, job.ttl_ms, job.low)
  remember(new_id, endpoint, now)
  redis.call('LPUSH', ticket(new_id, job, 6))
  if new_id == id then
    tell(job.followed, id .. ' ' .. S.IN_QUEUE)
  end
  return status
end

-- id, worker id, claim, lease ms, record ttl, name, ... -> what RUNS says of it, and, if it can be
-- claimed, `now` and the named fields; nil if there is nothing to do. The same claim again is the same delivery,
-- repeated because its answer was lost on the way. A job whose ttl has passed ends here, without a
-- worker having seen it. A run that an earlier node of this worker began goes on as the same attempt.
function commands.claim()
  local id, worker_id, claim, lease_ms, ttl_s = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local key, runs, job = JOB .. id, RUNS .. worker_id, read(id)
  local function given(entry)
    return {entry, now, unpack(redis.call('HMGET', key, unpack(rest(8))))}
  end
  if not job.status then
    return false
  end
  if job.claim == claim then
    local entry = redis.call('HGET', runs, field(id, job.attempt)) or '{}'
    return given(entry)
  end
  if job.status == S.IN_PROGRESS and job.resume == worker_id then
    local entry = redis.call('HGET', runs, field(id, job.attempt))
    if entry then
      redis.call('HDEL', key, 'resume')
      redis.call('HSET', key, 'claim', claim)
      if cjson.decode(entry).look ~= 'poll' then
        redis.call('HSET', key, 'awaits', 1)
      end
      redis.call('ZADD', LEASES, now + lease_ms, id)
      return given(entry)
    end
  end
  if job.status == S.IN_QUEUE and job.created_ms + job.ttl_ms <= now then
    expire_job(id, job, ttl_s)
    return false
  end
  local number = job.attempt + 1
  local fields = {
    'attempt', number, 'worker_id', worker_id, 'claim', claim, 'callback', claim, 'started_ms', now
  }
  if job.status ~= S.IN_QUEUE or not move(id, job, S.IN_PROGRESS, fields) then
    redis.call('ZREM', of(job.endpoint, 'left'), id)
    local entry = redis.call('HGET', runs, field(id, job.attempt))
    return entry and {entry}
  end
  count(job.endpoint, 'begun')
  if number == 1 then
    observe(of(job.endpoint, 'delay'), now - job.created_ms)
  else
    redis.call('DEL', CHUNKS .. id)
    redis.call('HDEL', key, 'chunk_bytes', 'chunk_calls')
  end
  redis.call('HSET', of(job.endpoint, 'running'), id, worker_id)
  local entry = '{"attempt": ' .. number .. '}'
  redis.call('HSET', runs, field(id, number), entry)
  redis.call('EXPIRE', runs, RUNS_KEPT_S)
  redis.call('ZADD', LEASES, now + lease_ms, id)
  return given(entry)
end

-- worker id, id, attempt, entry: what the worker is at, unless its slot is free again
function commands.record_run()
  local runs, name = RUNS .. ARGV[3], field(ARGV[4], ARGV[5])
  if redis.call('HEXISTS', runs, name) == 1 then
    redis.call('HSET', runs, name, ARGV[6])
  end
  return 1
end

-- worker id, id, attempt: its slot is free
function commands.clear_run()
  return redis.call('HDEL', RUNS .. ARGV[3], field(ARGV[4], ARGV[5]))
end

-- id, attempt, worker id if its slot is free, or '', state, ttl, name, value, ... -> 1, or 0 if the
-- attempt is no longer the job's
function commands.finish()
  local id, attempt, free, to, ttl_s = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if free ~= '' then
    redis.call('HDEL', RUNS .. free, field(id, attempt))
  end
  local job, fields = read(id), rest(8)
  if not holds(job, attempt) or not finish(id, job, to, ttl_s, fields) then
    return 0
  end
  local ran_ms = now - job.started_ms
  for i = 1, #fields, 2 do
    if fields[i] == 'execution_ms' then
      ran_ms = tonumber(fields[i + 1]) or ran_ms
    end
  end
  observe(of(job.endpoint, 'execution'), ran_ms)
  return 1
end

-- id, endpoint, token, ttl, output -> the state the job has now, or nil if the token is not its run's.
-- A node that still waits gets the answer itself: then this is only kept, should the node not live.
function commands.callback()
  local id, endpoint, token, ttl_s, output = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local job = read(id)
  if job.endpoint ~= endpoint or job.callback ~= token then
    return false
  end
  if job.status == S.IN_PROGRESS and job.claim and not job.awaits then
    redis.call('HSET', JOB .. id, 'returned', output)
  else
    finish(id, job, S.COMPLETED, ttl_s, {'output', output})
  end
  return job.status
end

-- id, attempt, ttl, chunk, ... -> 1, or 0 if the attempt is no longer the job's. The token of a call that
-- has added its chunks adds them no second time. A job with more than CHUNK_BYTES of chunks is FAILED.
function commands.chunks()
  local id, key, job = ARGV[3], JOB .. ARGV[3], read(ARGV[3])
  if not holds(job, ARGV[4]) then
    return 0
  end
  local bytes, calls = unpack(redis.call('HMGET', key, 'chunk_bytes', 'chunk_calls'))
  if token ~= '' and string.find(calls or '', token, 1, true) then
    return 1
  end
  bytes = tonumber(bytes) or 0
  for i = 6, #ARGV do
    bytes = bytes + #ARGV[i]
  end
  if bytes > CHUNK_BYTES then
    local most = string.format('%d MiB', CHUNK_BYTES / 1024 / 1024)
    finish(id, job, S.FAILED, ARGV[5], {'error', 'the handler yielded more than ' .. most
      .. ' of chunks, the most that is kept of a job'})
    return 0
  end
  for i = 6, #ARGV do
    redis.call('RPUSH', CHUNKS .. id, ARGV[i])
  end
  -- Of several calls, as a late copy of one may come after the next.
  calls = string.sub(token .. ' ' .. (calls or ''), 1, CALLS_KEPT)
  redis.call('HSET', key, 'chunk_bytes', bytes, 'chunk_calls', calls)
  tell(job.followed, id .. ' CHUNK')
  return 1
end

-- id, attempt, output -> 1, or 0 if the attempt is no longer the job's
function commands.progress()
  if not holds(read(ARGV[3]), ARGV[4]) then
    return 0
  end
  return redis.call('HSET', JOB .. ARGV[3], 'progress', ARGV[5]) and 1
end

-- id, "watched" or "followed", channel: tells it what happens to the job from now on
function commands.subscribe()
  local key, name, channel = JOB .. ARGV[3], ARGV[4], ARGV[5]
  local told, exists = unpack(redis.call('HMGET', key, name, 'id'))
  if exists and not string.find(told or '', channel, 1, true) then
    redis.call('HSET', key, name, (told and told .. ' ' or '') .. channel)
  end
  return 1
end

-- id, old cursor, new cursor: moves /stream's own cursor, unless somebody else has
function commands.save_cursor()
  local id = ARGV[3]
  if (redis.call('HGET', JOB .. id, 'drained') or '') == ARGV[4] and redis.call('EXISTS', JOB .. id) == 1 then
    redis.call('HSET', JOB .. id, 'drained', ARGV[5])
  end
  return 1
end

-- id, attempt, worker id if its slot is free, or '', lost (0|1), reason, ttl, lease end (as `expired`
-- answered it: only if the lease was not renewed since; 0: whatever the lease is), list, message, list,
-- message (for low priority) -> the state the job has now, or nil if the attempt is no longer the job's
function commands.requeue()
  local id, attempt, free, lease_end = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[9])
  if free ~= '' then
    redis.call('HDEL', RUNS .. free, field(id, attempt))
  end
  local job = read(id)
  if not holds(job, attempt) then
    return false
  end
  if lease_end > 0 and tonumber(redis.call('ZSCORE', LEASES, id) or lease_end) ~= lease_end then
    return false
  end
  return give_up(id, job, ARGV[6] == '1', ARGV[7], ARGV[8], 10)
end

-- id, attempt, worker id, ttl, reason, lease ms, list, message, list, message (for low priority): a node
-- leaves a job to its successor, where the run outlives it; else hands it back uncounted.
-- -> the state the job has now, or nil if the attempt is no longer the job's
function commands.hand_over()
  local id, attempt, worker_id, job = ARGV[3], ARGV[4], ARGV[5], read(ARGV[3])
  if not holds(job, attempt) then
    return false
  end
  if not outlives(run_of(worker_id, id, attempt)) then
    return give_up(id, job, false, ARGV[7], ARGV[6], 9)
  end
  redis.call('HSET', JOB .. id, 'resume', worker_id)
  redis.call('HDEL', JOB .. id, 'claim')
  redis.call('ZADD', LEASES, now + ARGV[8], id)
  return S.IN_PROGRESS
end

-- id, attempt, worker id, ttl, reason, lease ms, the worker's own list, message that goes on with the
-- run, message that waits for its end, list, message, list, message (for low priority): a new node of
-- the worker, before it takes any job, settles what an earlier one has left. -> "resumed", "waits" for the
-- end of the run, or "free"
function commands.adopt()
  local id, attempt, worker_id, ttl_s, reason, lease_ms =
    ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
  local own, go_on, wait = ARGV[9], ARGV[10], ARGV[11]
  local job, run = read(id), run_of(worker_id, id, attempt)
  if not run then
    return 'free'
  end
  if holds(job, attempt) and job.worker_id == worker_id then
    if outlives(run) and not returned(id, job, ttl_s) then
      redis.call('HSET', JOB .. id, 'resume', worker_id)
      redis.call('HDEL', JOB .. id, 'claim')
      redis.call('ZADD', LEASES, now + lease_ms, id)
      redis.call('RPUSH', own, filled(id, go_on))
      return 'resumed'
    end
    if holds(job, attempt) then
      give_up(id, job, true, reason, ttl_s, 12)
    end
  end
  if run.run then
    redis.call('RPUSH', own, filled(id, wait))
    return 'waits'
  end
  redis.call('HDEL', RUNS .. worker_id, field(id, attempt))
  return 'free'
end

-- id, endpoint, ttl, reason, list, message, list, message (for low priority) -> the state the job has
-- now, or nil if there is none
function commands.cancel()
  local id, endpoint, ttl_s, reason = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local job = read(id)
  if job.endpoint ~= endpoint then
    return false
  end
  if job.status == S.IN_QUEUE then
    -- Each message from the end to this one is compared, so it is looked for from the nearer end, and not
    -- far. One that is not found stays, if it is there; the claim drops it.
    local set = of(endpoint, job.low and 'low' or 'queued')
    local oldest_first = (redis.call('ZRANK', set, id) or 0) < redis.call('ZCARD', set) / 2
    local list, message = ticket(id, job, 7)
    local from = oldest_first and -1 or 1
    if redis.call('LPOS', list, message, 'RANK', from, 'MAXLEN', LREM_MOST) then
      redis.call('LREM', list, from, message)
    else
      redis.call('ZADD', of(endpoint, 'left'), now, id)
    end
  end
  finish(id, job, S.CANCELLED, ttl_s, {'error', reason})
  return job.status
end

-- limit, ttl -> ids of jobs that waited longer than their ttl, and are TIMED_OUT now; ids of those that
-- cannot be read, which are tried again later
function commands.expire()
  local ended, broken = {}, {}
  local ids = redis.call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, ARGV[3])
  for _, id in ipairs(ids) do
    local read_well, is_over = pcall(function() return expire_job(id, read(id), ARGV[4]) end)
    if not read_well then
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

-- limit -> {id, endpoint, attempt, worker id, lease end} of running jobs whose lease has run out, the
-- oldest first; ids of those that cannot be read, which are answered again later. Only running jobs have a lease.
function commands.expired()
  local found, broken = {}, {}
  local ids = redis.call(
    'ZRANGEBYSCORE', LEASES, '-inf', '(' .. string.format('%.0f', now), 'WITHSCORES', 'LIMIT', 0, ARGV[3]
  )
  for i = 1, #ids, 2 do
    local id = ids[i]
    local read_well, job = pcall(read, id)
    if not read_well then
      broken[#broken + 1] = id
      redis.call('ZADD', LEASES, now + BROKEN_MS, id)
    elseif job.status == S.IN_PROGRESS then
      found[#found + 1] = {id, job.endpoint, job.attempt, job.worker_id or '', ids[i + 1]}
    else
      redis.call('ZREM', LEASES, id)
    end
  end
  return {found, broken}
end

-- endpoint, ms, most: adds to the history how many jobs wait and run, once in each period of so many ms,
-- and keeps the last entries -> 1, or 0 if this period has one
function commands.sample()
  local key, period_ms = of(ARGV[3], 'history'), tonumber(ARGV[4])
  local last = redis.call('LINDEX', key, -1)
  if last and math.floor(cjson.decode(last)[1] / period_ms) >= math.floor(now / period_ms) then
    return 0
  end
  local waiting = redis.call('ZCARD', of(ARGV[3], 'queued'))
  local running = redis.call('HLEN', of(ARGV[3], 'running'))
  redis.call('RPUSH', key, cjson.encode({now, waiting, running}))
  redis.call('LTRIM', key, -ARGV[5], -1)
  return 1
end

-- id, list, message, list, message (for low priority) -> 1 if the job waits: it has a message again, in
-- front
function commands.republish()
  local id, job = ARGV[3], read(ARGV[3])
  if job.status ~= S.IN_QUEUE then
    return 0
  end
  redis.call('RPUSH', ticket(id, job, 4))
  return 1
end

-- lease ms, id, attempt, id, attempt, ... -> ids whose attempt is no longer the job's. A record that
-- cannot be read keeps no other job's lease from being renewed.
function commands.renew()
  local lease_end, gone = now + ARGV[3], {}
  for i = 4, #ARGV, 2 do
    local read_well, job = pcall(read, ARGV[i])
    if not read_well or holds(job, ARGV[i + 1]) then
      redis.call('ZADD', LEASES, lease_end, ARGV[i])
    else
      gone[#gone + 1] = ARGV[i]
    end
  end
  return gone
end

-- endpoint, list, ... -> how many jobs are to be cancelled by purge_some; -1: an earlier purge is to be
-- finished first. Takes the same time for any queue.
function commands.purge()
  local queued, purging, purged = of(ARGV[3], 'queued'), of(ARGV[3], 'purging'), of(ARGV[3], 'purged')
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
  redis.call('UNLINK', of(ARGV[3], 'low'), of(ARGV[3], 'left'), unpack(rest(4)))
  local jobs = redis.call('ZCARD', purging)
  redis.call('SET', purged, token .. ' ' .. jobs, 'EX', 3600)
  return jobs
end

-- endpoint, limit, ttl, reason -> cancelled, left
function commands.purge_some()
  local purging, cancelled = of(ARGV[3], 'purging'), 0
  local ids = redis.call('ZRANGE', purging, 0, tonumber(ARGV[4]) - 1)
  for _, id in ipairs(ids) do
    local job = read(id)
    if job.status == S.IN_QUEUE and finish(id, job, S.CANCELLED, ARGV[5], {'error', ARGV[6]}) then
      cancelled = cancelled + 1
    end
  end
  if #ids > 0 then
    redis.call('ZREM', purging, unpack(ids))
  end
  return {cancelled, redis.call('ZCARD', purging)}
end
