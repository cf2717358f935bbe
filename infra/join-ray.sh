#!/usr/bin/env bash
# join-ray [OPTIONS OF ray start] -- COMMAND...
#
# Starts a Ray node without cores and GPUs that joins the cluster at RAY_ADDRESS, and runs a command beside it. A driver
# in the command (ray.init("auto")) is then inside the cluster, and Ray places no work on its node. If the node or the
# command ends, the other one ends too, so that a container that has lost its cluster is restarted and joins again.
set -euo pipefail

: "${RAY_ADDRESS:?must be the address of the Ray head, such as ray-head:6379}"
port=${RAY_NODE_MANAGER_PORT:-6380}

options=()
while [ "$#" -gt 0 ] && [ "$1" != "--" ]; do
    options+=("$1")
    shift
done
if [ "$#" -lt 2 ]; then
    echo "join-ray: no command; usage: join-ray [OPTIONS OF ray start] -- COMMAND..." >&2
    exit 2
fi
shift

end() { # the command first, so that it can finish its work on Ray
    for process in ${command:-} ${node:-}; do
        kill -TERM "$process" 2>/dev/null || true
        wait "$process" || true
    done
}
trap 'end; exit 143' TERM INT

ray start --address="$RAY_ADDRESS" --node-manager-port="$port" --num-cpus=0 --num-gpus=0 \
    ${options[@]+"${options[@]}"} --block &
node=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    kill -0 "$node" 2>/dev/null || { wait "$node"; exit 1; }
    sleep 0.5
done

# a shell makes background processes ignore SIGINT, but a Prefect worker needs it to end itself
env --default-signal=INT "$@" &
command=$!
status=0
wait -n || status=$?
end
exit "$status"
