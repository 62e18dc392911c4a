#!/usr/bin/env bash
# join-ray ADDRESS COMMAND...
# A Ray driver needs a Ray node in its own container. This one offers no processors, so no evaluation runs on it.
# After a restart of the head the node ends, but a driver would wait for its workers for ever: both end together.
set -euo pipefail

ray start --address="$1" --block --node-manager-port=6380 --num-cpus=0 --num-gpus=0 --object-store-memory="$RAY_OBJECT_STORE_BYTES" &
node=$!
until (: < /dev/tcp/127.0.0.1/6380) 2> /dev/null; do
    kill -0 "$node"
    sleep 0.5
done

"${@:2}" &
service=$!
trap : TERM INT
status=0
wait -n "$node" "$service" || status=$?
kill -TERM "$service" 2> /dev/null || true
sleep 50 & # less than stop_grace_period
wait -n "$service" $! || true
exit "$status"
