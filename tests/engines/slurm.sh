#!/usr/bin/env bash
# A real SLURM of two nodes on this machine: munge, slurmctld and two slurmd on loopback,
# in a folder of their own, with fake TPUs. For root, on Debian.
#
#   slurm.sh install            apt-get install slurm-wlm munge
#   slurm.sh start FOLDER       then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
set -euo pipefail

PORT=16817 # of slurmctld; the nodes have the two behind it

configure() { # writes the files of a cluster
  local folder=$1
  mkdir -p "$folder/state" "$folder/spool"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  chmod 755 "$folder"
  cat >"$folder/slurm.conf" <<EOF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=$PORT
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=tpu
KillWait=60
JobRequeue=1
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + 2))] CPUs=8 RealMemory=8000 Gres=tpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  echo 'NodeName=n[1-2] Name=tpu Count=4' >"$folder/gres.conf"
}

start() {
  local folder=$1 node
  configure "$folder"
  export SLURM_CONF=$folder/slurm.conf
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munge.seed"
  slurmctld -c
  for node in n1 n2; do slurmd -N "$node"; done
  for _ in $(seq 120); do
    if [ "$(sinfo --noheader --format=%D --states=idle 2>/dev/null)" = 2 ]; then return; fi
    sleep 0.5
  done
  tail -n 20 "$folder"/*.log >&2
  return 1
}

stop() {
  local folder=$1 file pid
  export SLURM_CONF=$folder/slurm.conf
  scancel --state=RUNNING --signal=KILL --full --user=root || true
  scancel --user=root || true
  for file in n1 n2 slurmctld munged; do
    pid=$(cat "$folder/$file.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

case "${1:-}" in
install)
  if command -v slurmctld slurmd munged sbatch >/dev/null; then exit 0; fi
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
  {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      slurm-wlm munge
  } >/dev/null
  ;;
start | stop) "$1" "$(realpath --canonicalize-missing "$2")" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
