#!/usr/bin/env bash
# join-ray [OPTIONS OF ray start] -- COMMAND...
#
# Runs a command on a Ray node that offers nothing, no core and no GPU: a driver in the command (ray.init("auto")) is then
# inside the cluster at RAY_ADDRESS, and none of the cluster's work is placed beside it. The end of either ends the
# other, so that a container that has lost its cluster ends too, is started again and joins again.
set -euo pipefail

: "${RAY_ADDRESS:?is the address of the Ray head, such as ray-head:6379}"
port=${RAY_NODE_MANAGER_PORT:-6380}

options=()
while [ "$#" -gt 0 ] && [ "$1" != "--" ]; do
    options+=("$1")
    shift
done
if [ "$#" -lt 2 ]; then
    echo "join-ray: no command; write join-ray [OPTIONS OF ray start] -- COMMAND..." >&2
    exit 2
fi
shift

end() { # the command first: what it still does on Ray may come to its end
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

# a shell has what it starts in the background ignore SIGINT, with which a Prefect worker ends itself
env --default-signal=INT "$@" &
command=$!
status=0
wait -n || status=$?
end
exit "$status"
