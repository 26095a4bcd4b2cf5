#!/bin/bash
# Checks the shell scripts with shellcheck, and the Kubernetes Job with the schema of its resource. tests/suite/sweep.rs runs the
# scripts of scripts/cluster as local processes.
#
#   python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-cluster.txt
#   PATH=.venv/bin:$PATH scripts/check_cluster.sh

set -euo pipefail

cd "$(dirname "$0")/.."
shellcheck scripts/*.sh scripts/cluster/*.sh
kubernetes-validate --strict scripts/cluster/kubernetes.yaml
