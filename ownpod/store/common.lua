-- The records of jobs, and what their commands share. Every command is one atomic step.
--
-- common.py puts the constants in front: S (states), MOVES (allowed moves), the names of keys (keys.py),
-- the templates of messages (messages.py) and the limits that common.py, chunks.py, figures.py and queue.py
-- describe. scripts.py adds `now`, Redis's clock in ms, because callers' clocks may differ: all times
-- in arguments are durations.
--
-- ARGV[1] is the command's name. ARGV[2] is the call's token, '' where the command needs none; a call that is
-- repeated after a lost answer has the same token. The arguments in a command's comment begin at ARGV[3].
-- Every command but `republish` changes nothing when it is executed again.
--
-- JOB<id>                   hash   the record. Fields: those of NewJob.record and Job.FIELDS (rules/jobs.py), and
--                                  `queue`, the Celery queue in which the job waits: the endpoint's, or a
--                                  worker's own for a pinned job. Records of version 0.1.0 have none, and
--                                  wait in the endpoint's;
--                                  `affinity`, how much a pinned job needs its worker (rules/affinity.py);
--                                  `task`, what the request of a task was, JSON (rules/task_views.py);
--                                  `private`, the session or one-off task's worker that alone runs it; `movable`, it moves to
--                                  another session if that one ends; `moves`, how often it has; `code`, a word for its error;
--                                  `description`, what Flower shows as the task's arguments;
--                                  `claim`, the token of the delivery that runs the job;
--                                  `drained`, the "<attempt>-<index>" up to which /stream was read;
--                                  `stays`, set: it never goes to a cloud worker; `hops`, through how many OwnPods it came;
--                                  `remote`, the JSON of its run at a cloud worker's other side; `remote_begun`, the attempt
--                                  whose run has begun there;
--                                  `deliveries`, the JSON log of its webhook; `webhook_try`, see deliveries.lua;
--                                  `attempts`, the JSON log of requeued and lost attempts;
--                                  `callback`, the token of the run's callback;
--                                  `returned`, an output that came by callback while a node waited for the run;
--                                  `resume`, the worker whose next node adopts the run;
--                                  `awaits`, set while only the callback can still bring the result;
--                                  `progress`, the handler's last progress update;
--                                  `watched`, the channels, with spaces between, that are notified of the
--                                  job's end, `followed`, those that are notified of each change;
--                                  `chunk_bytes`, the size of CHUNKS, `chunk_calls`, the tokens of the last
--                                  calls that added chunks; `retry_call`, the token of the call that
--                                  submitted the job again
-- RUNS<worker id>           hash   "<id>:<attempt>" -> a JSON object about a run that may occupy the worker:
--                                  `attempt` and, from before the run may begin, `run`, the worker's id of it,
--                                  `look` (RunCheck in rules/runs.py), `timeoutMs`, `callback`. The entry
--                                  stays until the run's slot is free
-- CHUNKS<id>                list   what the handler has yielded in this attempt, JSON texts
-- ENDPOINT<ep>:queued       zset   ids of all jobs IN_QUEUE, by created_ms
-- ENDPOINT<ep>:low          zset   those of them with low priority that wait in the endpoint's queue
-- ENDPOINT<ep>:pinned       zset   those of them that wait in a worker's own queue
-- ENDPOINT<ep>:private      zset   ids of jobs IN_QUEUE of private workers, by created_ms; not in the two above
-- ENDPOINT<ep>:queues       hash   a worker's own queue -> how many jobs wait in it
-- WAITING<queue>            zset   ids of jobs that wait in a worker's own queue, by created_ms
-- WAITING<queue>:low        zset   those of them with low priority
-- DELAYED                   zset   ids of pinned jobs that were requeued, by the ms when they get a message
-- PREFERRING                zset   ids of jobs that wait in the own queue of a worker that they only prefer, by the
--                                  ms when they enter the endpoint's
-- ENDPOINT<ep>:resumes      set    ids of stopped workers that strict-resume jobs wait for
-- ENDPOINT<ep>:purging      zset   ids that a purge took out of `queued`, on their way to CANCELLED
-- ENDPOINT<ep>:purged       string "<token> <jobs>" of the last purge
-- ENDPOINT<ep>:left         zset   ids of CANCELLED jobs whose message is still in a list
-- ENDPOINT<ep>:running      hash   ids of jobs IN_PROGRESS -> worker id
-- ENDPOINT<ep>:recent       zset   ids of the last RECENT jobs, by created_ms; some records may be gone
-- ENDPOINT<ep>:counts       hash   terminal state, "submitted", "retried" (jobs), "begun", "lost" (attempts)
--                                  -> how many ever
-- ENDPOINT<ep>:tasks        hash   "<session or oneoff>:<terminal state>:<code, if it has one>" -> how many tasks have ended so
-- ENDPOINT<ep>:delay        hash   histogram: number of the bucket (BUCKETS_MS) -> jobs, "sum" -> ms; from
--                                  submission to the first attempt
-- ENDPOINT<ep>:execution    hash   the same, of attempts that brought a result
-- ENDPOINT<ep>:openai       hash   histograms of replies of OpenAI routes, see replies.py
-- ENDPOINT<ep>:history      list   the sweep's samples: [ms, waiting, running]
-- ENDPOINT<ep>:webhooks     hash   "delivered", "failed" (tries), "given_up" -> how many ever
-- MANAGED_IDLE              hash   see managed.lua
-- LEASES                    zset   ids of jobs IN_PROGRESS, by the ms when the lease expires
-- EXPIRIES                  zset   ids of jobs IN_QUEUE, by the ms when the ttl expires
-- WEBHOOKS                  zset   ids of jobs whose webhook is owed, by the ms of the next try; see deliveries.lua
-- EVENTS<process>           pub/sub "<id> <state>" for moves, "<id> CHUNK" for new chunks, of jobs that
--                                  have this channel in `followed`, with " <attempt> <index> <chunk>" behind it
--                                  for a single chunk that is not long; "<id> <state> <answer>" for the end of
--                                  jobs that have it in `watched`
-- <queue>                   list   Celery's messages for jobs of normal priority; <queue>LOW_SUFFIX, of low
--
-- Keys are computed from ids, so OwnPod needs one Redis, not a cluster; so does Celery's broker.

local token = ARGV[2]

local function of(endpoint, what)
  return ENDPOINT .. endpoint .. ':' .. what
end

-- The arguments from `first` on.
local function rest(first)
  local values = {}
  for i = first, #ARGV do
    values[#values + 1] = ARGV[i]
  end
  return values
end

-- The fields of a record that moves depend on.
local function read(id)
  local values = redis.call(
    'HMGET', JOB .. id, 'status', 'endpoint', 'attempt', 'created_ms', 'ttl_ms', 'started_ms',
    'low_priority', 'worker_id', 'claim', 'callback', 'resume', 'returned', 'progress', 'awaits',
    'webhook', 'watched', 'followed', 'queue', 'private'
  )
  local shared = QUEUE_PREFIX .. (values[2] or '')
  local queue = values[18] or shared
  return {
    status = values[1], endpoint = values[2], attempt = values[3], created_ms = values[4],
    ttl_ms = values[5], started_ms = values[6], low = values[7] == '1', worker_id = values[8],
    claim = values[9], callback = values[10], resume = values[11], returned = values[12],
    passing = values[11] or values[12] or values[13] or values[14], awaits = values[14],
    webhook = values[15], watched = values[16], followed = values[17], queue = queue,
    pinned = queue ~= shared, private = values[19]
  }
end

-- A worker's own queue.
local function queue_of(endpoint, worker_id)
  return QUEUE_PREFIX .. endpoint .. '.' .. worker_id
end

local function is_running(job, attempt)
  return job.status == S.IN_PROGRESS and job.attempt == attempt
end

local function publish(channels, what)
  for channel in string.gmatch(channels or '', '%S+') do
    redis.call('PUBLISH', channel, what)
  end
end

-- A message from a template: pieces of text with the names of placeholders between them. The template is cut in
-- Python, because gsub over a message would cost half of a submission's time in Redis.
local function fill(template, values)
  local pieces = {}
  for i, piece in ipairs(template) do
    pieces[i] = i % 2 == 0 and values[piece] or piece
  end
  return table.concat(pieces)
end

local function job_message(id, job)
  return fill(JOB_MESSAGE, {
    job = id, queue = job.queue, priority = job.low and LOW_PRIORITY or NORMAL_PRIORITY,
    description = job.description or redis.call('HGET', JOB .. id, 'description') or ''
  })
end

local function list_of(job)
  return job.low and job.queue .. LOW_SUFFIX or job.queue
end

-- Pushes a waiting job's message: LPUSH, behind all others, or RPUSH, in front.
local function push_message(id, job, push)
  redis.call(push, list_of(job), job_message(id, job))
end

-- The zset that orders the jobs in this job's list.
local function index_of(job)
  if job.pinned then
    return WAITING .. job.queue .. (job.low and ':low' or '')
  end
  return of(job.endpoint, job.low and 'low' or 'queued')
end

local function count_pinned(job)
  local jobs = redis.call('ZCARD', WAITING .. job.queue)
  if jobs > 0 then
    redis.call('HSET', of(job.endpoint, 'queues'), job.queue, jobs)
  else
    redis.call('HDEL', of(job.endpoint, 'queues'), job.queue)
  end
end

local function enter_queue(id, job)
  if job.private then
    redis.call('ZADD', of(job.endpoint, 'private'), job.created_ms, id)
  else
    redis.call('ZADD', of(job.endpoint, 'queued'), job.created_ms, id)
  end
  if job.pinned then
    if not job.private then
      redis.call('ZADD', of(job.endpoint, 'pinned'), job.created_ms, id)
    end
    redis.call('ZADD', WAITING .. job.queue, job.created_ms, id)
    count_pinned(job)
  end
  if job.low then
    redis.call('ZADD', index_of(job), job.created_ms, id)
  end
  redis.call('ZADD', EXPIRIES, job.created_ms + job.ttl_ms, id)
end

local function leave_queue(id, job)
  redis.call('ZREM', of(job.endpoint, 'queued'), id)
  if job.low then
    redis.call('ZREM', index_of(job), id)
  end
  if job.pinned then
    redis.call('ZREM', of(job.endpoint, 'pinned'), id)
    redis.call('ZREM', of(job.endpoint, 'private'), id)
    redis.call('ZREM', WAITING .. job.queue, id)
    redis.call('ZREM', DELAYED, id)
    count_pinned(job)
  end
  redis.call('ZREM', EXPIRIES, id)
end

-- Removes the message of a waiting job. LPOS compares each message from an end of the list to this one, so the search
-- begins at the nearer end and has a limit. A message that is not found, or that version 0.1.0 wrote in another
-- form, stays; the claim drops it.
local function remove_message(id, job)
  local list, message, index = list_of(job), job_message(id, job), index_of(job)
  local oldest_first = (redis.call('ZRANK', index, id) or 0) < redis.call('ZCARD', index) / 2
  local from = oldest_first and -1 or 1
  if redis.call('LPOS', list, message, 'RANK', from, 'MAXLEN', LREM_MOST) then
    redis.call('LREM', list, from, message)
  elseif redis.call('ZSCORE', DELAYED, id) == false then
    redis.call('ZADD', of(job.endpoint, 'left'), now, id)
  end
end

-- A job whose worker was only preferred: from now on any worker of the endpoint may run it.
local function unpin(id, job)
  local waits = job.status == S.IN_QUEUE
  redis.call('ZREM', PREFERRING, id)
  if waits then
    redis.call('LREM', list_of(job), -1, job_message(id, job))
    leave_queue(id, job)
  end
  job.queue, job.pinned = QUEUE_PREFIX .. job.endpoint, false
  redis.call('HSET', JOB .. id, 'queue', job.queue)
  if waits then
    enter_queue(id, job)
    push_message(id, job, 'RPUSH')
  end
end

-- Why a private worker takes no job: the reason of its end, '' if that is not known; nil: it takes one.
local function refuses(job)
  local phase, endpoint, ending = unpack(redis.call('HMGET', MANAGED .. ':' .. job.private, 'phase', 'endpoint', 'ending'))
  return not (SERVES[phase or ''] and endpoint == job.endpoint) and (ending or '') or nil
end

-- Notes that a private worker has work, and whether a job of it has ended, which may end the worker of a one-off task.
-- -> its role, nil if it is gone
local function touch(job, ended)
  local key = MANAGED .. ':' .. job.private
  local role = redis.call('HGET', key, 'role')
  if role then
    redis.call('HSET', key, 'active_ms', now)
    if ended then
      redis.call('HINCRBY', key, 'tasks_done', 1)
    end
    if ended and role == 'task' then
      redis.call('PUBLISH', NOTICES, 'ended ' .. job.private)
    end
  end
  return role
end

local function count(endpoint, what)
  redis.call('HINCRBY', of(endpoint, 'counts'), what, 1)
end

-- Counts the end of a task with its word for programs, as end_code() in rules/event_data.py has it.
local function count_task(id, job, to, role)
  local code, error = unpack(redis.call('HMGET', JOB .. id, 'code', 'error'))
  if to == S.TIMED_OUT and not code then
    code = string.sub(error or '', 1, 4) == 'ttl:' and 'ttl' or 'executionTimeout'
  elseif to ~= S.FAILED and to ~= S.TIMED_OUT then
    code = ''
  end
  local kind = role == 'task' and 'oneoff' or 'session'
  redis.call('HINCRBY', of(job.endpoint, 'tasks'), kind .. ':' .. to .. ':' .. (code or 'handler'), 1)
end

-- Adds to a histogram. `ms` may be a worker's own figure, so it is any number.
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

-- The answer for clients that wait for a job's end: ANSWER's fields as a JSON list, '' if that is long.
local function answer(id)
  local key = JOB .. id
  if redis.call('HSTRLEN', key, 'output') + redis.call('HSTRLEN', key, 'error') > ANSWER_BYTES then
    return ''
  end
  return cjson.encode(redis.call('HMGET', key, unpack(ANSWER)))
end

-- Moves the job to a state, if the table of moves allows that. `fields` are name, value, ...
local function move(id, job, to, fields)
  local from = job.status
  if not from or not MOVES[from][to] then
    return false
  end
  if from == S.IN_QUEUE then
    leave_queue(id, job)
  else
    redis.call('HDEL', of(job.endpoint, 'running'), id)
    redis.call('ZREM', LEASES, id)
  end
  if job.passing then
    redis.call('HDEL', JOB .. id, 'returned', 'resume', 'awaits', 'progress')
  end
  if to == S.IN_QUEUE then
    redis.call('HDEL', JOB .. id, 'worker_id', 'started_ms', 'claim')
    enter_queue(id, job)
  end
  redis.call('HSET', JOB .. id, 'status', to, unpack(fields))
  job.status = to
  publish(job.followed, id .. ' ' .. to)
  if job.watched and next(MOVES[to]) == nil then
    publish(job.watched, id .. ' ' .. to .. ' ' .. answer(id))
  end
  return true
end

-- Moves the job to a terminal state. -> whether the table of moves allows that
local function finish(id, job, to, ttl_s, fields)
  fields[#fields + 1] = 'finished_ms'
  fields[#fields + 1] = now
  if not move(id, job, to, fields) then
    return false
  end
  redis.call('EXPIRE', JOB .. id, ttl_s)
  redis.call('EXPIRE', CHUNKS .. id, ttl_s)
  redis.call('EXPIRE', JOURNAL .. id, ttl_s)
  count(job.endpoint, to)
  if job.private then
    count_task(id, job, to, touch(job, true))
  end
  if job.webhook then
    redis.call('EXPIRE', JOB .. id, math.max(ttl_s, WEBHOOK_KEPT_S))
    redis.call('ZADD', WEBHOOKS, now + WEBHOOK_LEASE_MS, id)
    redis.call('LPUSH', WEBHOOK_LIST, fill(WEBHOOK_MESSAGE, {job = id}))
  end
  return true
end

-- Completes a job whose result came by callback, while its node brought none.
local function returned(id, job, ttl_s)
  return job.returned and finish(id, job, S.COMPLETED, ttl_s, {'output', job.returned})
end

local function expire_job(id, job, ttl_s)
  local waited = 'ttl: the job waited longer than ' .. (job.ttl_ms or 0) .. ' ms for a worker'
  return job.status == S.IN_QUEUE and finish(id, job, S.TIMED_OUT, ttl_s, {'error', waited})
end

-- The field of a run in RUNS.
local function run_field(id, attempt)
  return id .. ':' .. attempt
end

local function remember(id, endpoint, created_ms)
  local recent = of(endpoint, 'recent')
  redis.call('ZADD', recent, created_ms, id)
  redis.call('ZREMRANGEBYRANK', recent, 0, -RECENT - 1)
end

local commands = {}
