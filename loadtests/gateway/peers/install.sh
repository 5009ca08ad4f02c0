#!/bin/sh
# Installs the peers that are programs of their own, each into an environment under DIRECTORY:
#   loadtests/gateway/peers/install.sh DIRECTORY
# Never into Hatrack's own environment: their dependencies are not ours. About 900 MB, two minutes.
set -eu
directory=${1:?usage: install.sh DIRECTORY}
python=${PYTHON:-python3}
mkdir -p "$directory"

install() { # name, requirement
    [ -x "$directory/$1/bin/python" ] || "$python" -m venv "$directory/$1"
    "$directory/$1/bin/pip" install --quiet "$2" || echo "$1 cannot be installed here: it will be reported as absent" >&2
}

install litellm 'litellm[proxy]==1.108.7'
install vllm-router 'vllm-router==0.1.17'
