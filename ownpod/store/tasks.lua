-- Runs of one-off tasks: each command is one atomic step. tasks.py puts the constants in front: those of journal.lua, and MANAGED, TASK,
-- NOTICES (keys.py), CHUNK_BYTES, KEPT_MS. journal.lua is in front, too. ARGV[2] is the worker's id, ARGV[3] the run,
-- "<job id>:<attempt>".
--
-- MANAGED:<worker>          hash   see managed.lua; `run`: the last run that the worker's node has begun
-- TASK<worker>              hash   of this run: run; `began`, set before its container may run; `ran`, set since it did; batch,
--                                  position, state: how far its output is kept (as in outputs.lua); final, the output that it has
--                                  written, JSON; stop, why its container is to be stopped; result, JSON of
--                                  rules/task_ending.py; and `container`, the run of the container that there may be
-- TASK<worker>              pub/sub "<run> DONE"; "@worker started": its agent can start containers

local worker, run = ARGV[2], ARGV[3]
local record, task = MANAGED .. ':' .. worker, TASK .. worker

-- Whether the worker may have a container.
local function lives(phase)
  return phase == 'starting' or phase == 'ready' or phase == 'draining'
end

-- Whether the task's key is about this run.
local function is_current()
  return redis.call('HGET', task, 'run') == run
end

-- Whether the job runs this attempt.
local function is_running(id, attempt)
  local status, current = unpack(redis.call('HMGET', JOB .. id, 'status', 'attempt'))
  return status == IN_PROGRESS and current == attempt
end

local commands = {}

-- worker, run -> 1: the worker's agent is to start its container, or has; 0: the worker takes no run now
function commands.begin()
  if is_current() then
    return 1
  end
  local phase = redis.call('HGET', record, 'phase')
  if phase ~= 'starting' and phase ~= 'ready' then
    return 0
  end
  local container = redis.call('HGET', task, 'container')
  redis.call('DEL', task)
  redis.call('HSET', task, 'run', run)
  if container then
    redis.call('HSET', task, 'container', container)
  end
  redis.call('PEXPIRE', task, KEPT_MS)
  redis.call('HSET', record, 'run', run)
  redis.call('PUBLISH', NOTICES, 'run ' .. worker)
  return 1
end

-- worker, run, reason -> 1: its container is to be stopped; 0: it has ended, or it is another one's turn
function commands.stop()
  if not is_current() or redis.call('HEXISTS', task, 'result') == 1 then
    return 0
  end
  redis.call('HSETNX', task, 'stop', ARGV[4])
  redis.call('PUBLISH', NOTICES, 'stop ' .. worker)
  return 1
end

-- worker, run, host, id, attempt -> 1: the host may start the container of this run; 0: it may not
function commands.launch()
  local phase, host = unpack(redis.call('HMGET', record, 'phase', 'host'))
  local container = redis.call('HGET', task, 'container')
  if not is_current() or host ~= ARGV[4] or not lives(phase) or not is_running(ARGV[5], ARGV[6])
    or redis.call('HEXISTS', task, 'result') == 1 or container and container ~= run then
    return 0
  end
  redis.call('HSET', task, 'container', run, 'began', 1)
  return 1
end

-- worker, run, id, attempt, event, data, event, data, ...: the container runs
function commands.launched()
  if is_current() and redis.call('HSETNX', task, 'ran', 1) == 1 then
    for i = 6, #ARGV, 2 do
      add_entry(ARGV[4], ARGV[i], ARGV[i + 1], ARGV[5])
    end
  end
  return 1
end

-- worker, run, id, attempt, the batch before or '', this batch, position, state, final or '', kind, value, ... -> 1: what the output
-- has brought is kept. A kind is 'chunk' with JSON, or an event with its data. 0: another agent has kept some since the batch
-- before; -1: the run is over; -2: there are too many chunks
function commands.append()
  local id, attempt, batch = ARGV[4], ARGV[5], redis.call('HGET', task, 'batch') or ''
  if not is_current() or redis.call('HEXISTS', task, 'result') == 1 then
    return -1
  elseif batch == ARGV[7] then
    return 1
  elseif batch ~= ARGV[6] then
    return 0
  elseif not is_running(id, attempt) then
    return -1
  end
  local bytes, chunks = tonumber(redis.call('HGET', JOB .. id, 'chunk_bytes')) or 0, 0
  for i = 11, #ARGV, 2 do
    if ARGV[i] == 'chunk' then
      bytes = bytes + #ARGV[i + 1]
    end
  end
  if bytes > CHUNK_BYTES then
    return -2
  end
  for i = 11, #ARGV, 2 do
    if ARGV[i] == 'chunk' then
      redis.call('RPUSH', CHUNKS .. id, ARGV[i + 1])
      chunks = chunks + 1
    else
      add_entry(id, ARGV[i], ARGV[i + 1], attempt)
    end
  end
  redis.call('HSET', task, 'batch', ARGV[7], 'position', ARGV[8], 'state', ARGV[9])
  if ARGV[10] ~= '' then
    redis.call('HSET', task, 'final', ARGV[10])
  end
  if chunks > 0 then
    redis.call('HSET', JOB .. id, 'chunk_bytes', bytes)
    for channel in string.gmatch(redis.call('HGET', JOB .. id, 'followed') or '', '%S+') do
      redis.call('PUBLISH', channel, id .. ' CHUNK')
    end
  end
  return 1
end

-- worker, run, id, attempt, result, exit code or '', code or '', data of the `worker` event -> 1: the run has this result; 0: it has
-- another one, or is not the worker's any more
function commands.done()
  local id, attempt = ARGV[4], ARGV[5]
  if not is_current() then
    return 0
  elseif redis.call('HSETNX', task, 'result', ARGV[6]) == 0 then
    return redis.call('HGET', task, 'result') == ARGV[6] and 1 or 0
  end
  redis.call('HDEL', task, 'state', 'final')
  if is_running(id, attempt) then
    redis.call('HDEL', JOB .. id, 'exit_code', 'code')
    if ARGV[7] ~= '' then
      redis.call('HSET', JOB .. id, 'exit_code', ARGV[7])
    end
    if ARGV[8] ~= '' then
      redis.call('HSET', JOB .. id, 'code', ARGV[8])
    end
    add_entry(id, 'worker', ARGV[9], attempt)
  end
  redis.call('PUBLISH', task, run .. ' DONE')
  return 1
end

-- worker, run: nothing is left of its container
function commands.cleared()
  if redis.call('HGET', task, 'container') == run then
    redis.call('HDEL', task, 'container')
  end
  return 1
end
