#!/bin/bash
# One training on all hosts of a Cloud TPU pod slice, started again until it is done or something has to be mended.
#
#   experiments/launch/tpu_pod.sh NAME ZONE --config configs/voc.py --config.data.dir=DIR --workdir DIR_THAT_ALL_HOSTS_SEE
#
# Before, once: the repository with its .venv (`pip install .[tpu]`) in ~/deeplab_jax on every host, for instance by
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL deeplab_jax && ...'
# The hosts find each other by the TPU's metadata (--distributed auto).
set -uo pipefail
name=${1:?NAME ZONE FLAGS...}
zone=${2:?NAME ZONE FLAGS...}
shift 2

while true; do
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
        --command="cd deeplab_jax && .venv/bin/python -u -m deeplab_jax train --distributed auto $(printf '%q ' "$@")"
    code=$?
    # 75: saved after SIGTERM, or a host was lost; 134, 137, 255: a host or the connection to it went away.
    case $code in
        75 | 134 | 137 | 255) sleep 30 ;;
        *) exit "$code" ;;
    esac
done
