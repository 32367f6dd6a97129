-- Output of managed workers: one atomic step for each command. outputs.py puts the constants in front: MANAGED,
-- OUTPUT (keys.py), MOST_LINES, MOST_BYTES, KEPT_MS, and journal.lua with its own. ARGV[2] is the worker's id.
--
-- OUTPUT<worker>            stream  its last lines: t (ms, when they were kept), m (the text), j (the run's id, or no such
--                                   field), at most MOST_LINES and MOST_BYTES of texts; expires KEPT_MS after its end
-- OUTPUT<worker>:state      hash    what the agent needs to continue: position (in the engine's words), state (of
--                                   rules/output.py), batch (the last one that was kept); bytes, of all texts

local worker = ARGV[2]
local stream, notes = OUTPUT .. worker, OUTPUT .. worker .. ':state'

-- The job of a run, and its attempt: the run's id is the job's, with the attempt behind it from the second on. nil: this
-- worker does not run it any more, or never did, because a worker may write any id.
local function job_of(run)
  local id, attempt = run, 1
  if redis.call('EXISTS', JOB .. run) == 0 then
    id, attempt = string.match(run, '^(.+)%-([1-9]%d?%d?)$')
  end
  local readable, runs_on = pcall(redis.call, 'HGET', JOB .. (id or ''), 'worker_id')
  if readable and runs_on == worker then
    return id, attempt
  end
end

local commands = {}

-- worker, the batch before or '', this batch, position, state, text, run or '', data of its event or '', text, ... -> 1: the
-- lines are kept, those of a running job in its journal, too; 0: another agent has kept some since the batch before; -1: there
-- is no such worker
function commands.append()
  local phase = redis.call('HGET', MANAGED .. ':' .. worker, 'phase')
  local batch = redis.call('HGET', notes, 'batch') or ''
  if not phase then
    return -1
  elseif batch == ARGV[4] then
    return 1
  elseif batch ~= ARGV[3] then
    return 0
  end
  local bytes = 0
  for i = 7, #ARGV, 3 do
    if ARGV[i + 1] == '' then
      redis.call('XADD', stream, '*', 't', now, 'm', ARGV[i])
    else
      redis.call('XADD', stream, '*', 't', now, 'm', ARGV[i], 'j', ARGV[i + 1])
      local id, attempt = job_of(ARGV[i + 1])
      if id and ARGV[i + 2] ~= '' then
        try_add_entry(id, 'logs', ARGV[i + 2], attempt)
      end
    end
    bytes = bytes + #ARGV[i]
  end
  bytes = redis.call('HINCRBY', notes, 'bytes', bytes)
  redis.call('HSET', notes, 'batch', ARGV[4], 'position', ARGV[5], 'state', ARGV[6])
  local lines, dropped = redis.call('XLEN', stream), 0
  while lines > MOST_LINES or bytes - dropped > MOST_BYTES do
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not oldest then
      break
    end
    redis.call('XDEL', stream, oldest[1])
    lines, dropped = lines - 1, dropped + #oldest[2][4]
  end
  redis.call('HINCRBY', notes, 'bytes', -dropped)
  if phase == 'stopped' then
    redis.call('PEXPIRE', stream, KEPT_MS)
    redis.call('PEXPIRE', notes, KEPT_MS)
  end
  return 1
end
