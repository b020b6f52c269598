#!/bin/bash
# One training on all hosts of a Cloud TPU pod slice. It is started again until it is done or has an error to fix.
#
#   experiments/launch/tpu_pod.sh NAME ZONE --config configs/voc.py --config.data.dir=DIR --workdir DIR_THAT_ALL_HOSTS_SEE
#
# First put the repository with its .venv (`pip install .[tpu]`) into ~/deeplab_jax on every host, for instance by
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL deeplab_jax && ...'
# The hosts find each other by the TPU's metadata (--distributed auto).
#
# A preempted spot TPU never comes back. It has to be deleted and created again, with these variables of the environment:
#   TPU_CREATE='--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot'   flags of `tpu-vm create`
#   TPU_SETUP='git clone URL deeplab_jax && ...'                                         what prepares every host
# MAX_STARTS is the largest number of starts (30), and PAUSE the seconds between them (30).
set -uo pipefail
name=${1:?NAME ZONE FLAGS...}
zone=${2:?NAME ZONE FLAGS...}
shift 2

tpu() { # VERB FLAGS...
    gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"
}

on_all_hosts() { # COMMAND
    tpu ssh --worker=all --command="$1"
}

is_gone() {
    state=$(tpu describe --format='value(state)') || state=MISSING
    [[ $state =~ ^(PREEMPTED|TERMINATED|MISSING)$ ]]
}

create() {
    if [[ -z ${TPU_CREATE:-} || -z ${TPU_SETUP:-} ]]; then
        echo "tpu_pod.sh: $name in $zone is $state; create it, or set TPU_CREATE and TPU_SETUP, then start again" >&2
        exit 75
    fi
    [[ $state == MISSING ]] || tpu delete --quiet
    # shellcheck disable=SC2086 # Several flags.
    tpu create $TPU_CREATE
}

code=75
unprepared=
for ((start = 1; start <= ${MAX_STARTS:-30}; start++)); do
    ((start == 1)) || sleep "${PAUSE:-30}"
    if is_gone; then
        create || continue
        unprepared=yes
    fi
    [[ -z $unprepared ]] || on_all_hosts "$TPU_SETUP" || continue
    unprepared=
    on_all_hosts "cd deeplab_jax && .venv/bin/python -u -m deeplab_jax train --distributed auto $(printf '%q ' "$@")"
    code=$?
    # 75: saved after SIGTERM, or a host was lost. 134, 137, 143, 255: a host or the connection to it was lost. 139: a
    # segmentation fault. A TPU that is gone may give any code.
    case $code in
        0) exit 0 ;;
        75 | 134 | 137 | 139 | 143 | 255) ;;
        *) is_gone || exit "$code" ;;
    esac
done
echo "tpu_pod.sh: ended with $code after ${MAX_STARTS:-30} starts; see why, or set MAX_STARTS" >&2
exit "$code"
