#!/usr/bin/env bash
# join-ray ADDRESS COMMAND...
# A Ray driver needs a Ray node in its own container. This one offers no processors, so no evaluation runs on it.
set -euo pipefail
ray start --address="$1" --num-cpus=0 --num-gpus=0 --object-store-memory="$RAY_OBJECT_STORE_BYTES"
exec "${@:2}"
