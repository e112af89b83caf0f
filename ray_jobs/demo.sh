#!/usr/bin/env bash
# `make demo`: a Ray of its own on this machine, the experiment as a job, its output followed to the table.
# By default it runs three of the table's points, with --all all of them; other arguments go to the experiment.
# Ctrl-C stops the job and Ray, and prints the command that resumes it.
set -euo pipefail
cd "$(dirname "$0")/.."

export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="${RAY_TRAIN_HEALTH_CHECK_INTERVAL_S:-0.2}"
export RAY_worker_maximum_startup_concurrency=16  # otherwise Ray warns of the small processes of three trials
export RAY_BACKEND_LOG_LEVEL=fatal  # suppresses its warnings about arguments of actors, but not the output of Python
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # for workers, which import torch first
temporary="${TMPDIR:-}"
if [ "${#temporary}" -gt 40 ]; then export RAY_TMPDIR=/tmp; fi  # the names of Ray's sockets would be too long
unset RAY_ADDRESS
# A token of its own, whatever ~/.ray contains, so that nobody else on the machine can submit jobs to this Ray.
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
dashboard=$(free_port)
log="$CORNERSTONE_HOME/logs"
mkdir -p "$log"
arguments="$*"
follower=
job="demo-$(date +%Y%m%d-%H%M%S)-$$"

# A process group of its own: Ctrl-C then reaches only this script, which stops the job first and Ray afterwards.
# Ports of its own: with Ray's usual ones, no job would start beside another Ray.
set -m
ray start --head --block --port="$(free_port)" --node-ip-address=127.0.0.1 --num-cpus="${CORNERSTONE_DEMO_CPUS:-$(nproc)}" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$(free_port)" \
    --metrics-export-port="$(free_port)" --ray-client-server-port="$(free_port)" \
    --disable-usage-stats >"$log/ray.log" 2>&1 &
ray_pid=$!
set +m
address="http://127.0.0.1:$dashboard"

finish() {
    trap - EXIT INT TERM
    kill -TERM -- "-$ray_pid" 2>/dev/null || true
    for _ in $(seq 10); do
        kill -0 "$ray_pid" 2>/dev/null || break
        sleep 0.5
    done
    kill -KILL -- "-$ray_pid" 2>/dev/null || true
    wait "$ray_pid" 2>/dev/null || true
}
interrupted() {
    trap '' INT TERM
    echo
    echo "stopping the job ..."
    ray job stop --address "$address" "$job" >"$log/stop.log" 2>&1 || true
    kill "$follower" 2>/dev/null || true  # it ignores Ctrl-C, and has printed the last output of the job
    wait "$follower" 2>/dev/null || true
    # The job names its sweep; a job that was stopped before it had one starts from the beginning.
    sweep=$(ray job logs --address "$address" "$job" 2>/dev/null | grep -o -- '--continue [^ ]*' | tail -1) || true
    words=$(sed 's/ *--continue[ =][^ ]*//' <<<"$arguments")${sweep:+ $sweep}
    echo "Resume with: make demo${words:+ ARGS='$words'}"
    finish
    exit 130
}
trap finish EXIT
trap interrupted INT TERM

echo "starting Ray (its log: $log/ray.log, its dashboard: $address)"
for _ in $(seq 120); do
    python - "$address" 2>/dev/null <<'PYTHON' && break
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + "/api/jobs/", timeout=1).read()
except urllib.error.HTTPError:  # it answers and wants the token, which `ray job submit` sends
    pass
PYTHON
    kill -0 "$ray_pid" 2>/dev/null || { echo "Ray did not start:"; tail -5 "$log/ray.log"; exit 1; }
    sleep 0.5
done

# Three small trials use two cores better side by side than one after another: a trial's start and its evaluation are
# serial work, and at this size one thread does two thirds of what two do. Options that are given replace these.
experiment=(--placement.cpus-per-worker 0.33 --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.33)
points="all points of the table"
case " $* " in
*" --all "*) ;;
*" --only "*) points="the points that you named" ;;
*)
    experiment+=(--only 0 2 "0, long loss × 3")
    points="3 of the table's 14 points (--all runs them all)"
    ;;
esac
for argument in "$@"; do
    [ "$argument" = --all ] || experiment+=("$argument")
done
echo "running $points: 3 points take about 6 minutes on 2 cores, all 14 about 28; the first start adds 1 for preparing data"

terminal=()  # a job has no terminal of its own: pass the width for its table
[ -t 1 ] && terminal=("COLUMNS=$(tput cols 2>/dev/null || echo 100)")

status=0
submit() {
    ray job submit --address "$address" --submission-id "$job" --no-wait \
        -- env "${terminal[@]}" python experiments/ablate_corner_tokens.py "${experiment[@]}" >"$log/submit.log" 2>&1
}
# On a busy machine the agent that accepts jobs starts some seconds after the dashboard.
for _ in $(seq 30); do
    submit && break
    grep -q "No available agent" "$log/submit.log" || { tail -5 "$log/submit.log"; exit 1; }
    sleep 2
done
python ray_jobs/follow.py "$address" "$job" &
follower=$!
wait "$follower" || status=$?
if [ "$status" -ne 0 ]; then
    echo "The demo did not finish (status $status). Ray's logs: $log"
fi
exit "$status"
