#!/usr/bin/env bash
# A real one-node SLURM for tests: munged, slurmctld and slurmd on this host,
# with no systemd, no cgroups and no accounting database. All state is in one folder.
#
#   start_slurm.sh [FOLDER]       start (FOLDER: a new temporary one by default)
#   start_slurm.sh stop FOLDER    cancel its jobs and stop its daemons
#
# The last line of stdout is "export SLURM_CONF=...", so a caller can do
#   eval "$(start_slurm.sh "$folder")"
# Everything else goes to stderr. A second start on a running folder changes nothing.
#
# Environment, all optional (read only when the daemons are really started):
#   SLURM_TEST_CPUS=N          CPUs the node declares (default: as many as the host has)
#   SLURM_TEST_GRACE=S         seconds between SIGTERM and the kill on preemption (20)
#   SLURM_TEST_REQUEUE_WAIT=S  seconds a requeued job waits before it may start (5; least 5)
#   SLURM_TEST_USER_SIGNAL=1   on preemption send the signal of `sbatch --signal`, where a
#                              job has one, instead of SIGTERM
#   SLURM_TEST_WAIT=S          seconds to wait for each daemon (60)
#   SLURM_TEST_NO_INSTALL=1    fail instead of installing missing Debian packages
set -euo pipefail

export PATH="$PATH:/usr/sbin:/sbin"
export LC_ALL=C

say() { printf 'start_slurm: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

# ---------------------------------------------------------------- processes

# pid_of NAME: the pid of this folder's daemon NAME, if it runs
pid_of() {
  local pid comm
  read -r pid 2>/dev/null < "$dir/run/$1.pid" || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  kill -0 "$pid" 2>/dev/null || return 1
  # a stale pid file may name a process of somebody else
  comm=$(cat "/proc/$pid/comm" 2>/dev/null) || return 1
  [[ $comm == "$1"* ]] || return 1
  # or the daemon of another folder: all three have the folder in their command line
  grep -qzF -- "$dir/" "/proc/$pid/cmdline" 2>/dev/null || return 1
  echo "$pid"
}

stop_daemon() {
  local pid _
  pid=$(pid_of "$1") || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in {1..50}; do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.2
  done
  say "$1 ($pid) ignored SIGTERM: killing it"
  kill -9 "$pid" 2>/dev/null || true
}

stop_all() {
  local _
  # jobs first: slurmstepd outlives slurmd
  if pid_of slurmctld >/dev/null && pid_of munged >/dev/null; then
    timeout 20 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 20 scancel 2>/dev/null || true
    for _ in {1..40}; do
      [[ -n $(timeout 20 squeue -h 2>/dev/null) ]] || break
      sleep 0.5
    done
  fi
  stop_daemon slurmd
  stop_daemon slurmctld
  stop_daemon munged
}

# why LOG...: what the first of these logs that is not empty complains of last, in one line
why() {
  local f lines
  for f in "$@"; do
    [[ -s $f ]] || continue
    # slurmd always complains of a PMIx library that nobody asked for
    lines=$(grep -iE 'fatal|error' "$f" | grep -vi pmix | tail -n 3) || true
    [[ -n $lines ]] || lines=$(tail -n 1 "$f")
    echo "${lines//$'\n'/ | }"
    return
  done
  echo "no log in $dir/log"
}

# launch NAME COMMAND...: start a daemon that detaches by itself. Its stdin, stdout and
# stderr are not ours, or a caller's $(...) would wait for it; 9 is our lock.
launch() {
  local name=$1
  shift
  : > "$dir/log/$name.out"
  "$@" < /dev/null >> "$dir/log/$name.out" 2>&1 9>&- \
    || die "$name did not start: $(why "$dir/log/$name.out" "$dir/log/$name.log")"
}

# wait_for NAME WHAT COMMAND...: until COMMAND succeeds
wait_for() {
  local name=$1 what=$2 end=$((SECONDS + wait_s))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) \
      || die "$what after ${wait_s} s: $(why "$dir/log/$name.log" "$dir/log/$name.out")"
    sleep 0.3
  done
}

node_up() {
  case $(timeout 20 sinfo -h -N -o %T 2>/dev/null | sort -u) in
    idle | mixed | allocated) return 0 ;;
    *) return 1 ;;
  esac
}

running() {
  pid_of munged >/dev/null && pid_of slurmctld >/dev/null && pid_of slurmd >/dev/null
}

# ---------------------------------------------------------------- installing

install_missing() {
  local c missing=() sudo=()
  for c in munged slurmctld slurmd sbatch srun scontrol; do
    command -v "$c" >/dev/null || missing+=("$c")
  done
  ((${#missing[@]})) || return 0
  [[ -z ${SLURM_TEST_NO_INSTALL:-} ]] || die "missing: ${missing[*]} (Debian: slurm-wlm munge)"
  command -v apt-get >/dev/null || die "missing: ${missing[*]}, and there is no apt-get to install them"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "missing: ${missing[*]}, and installing slurm-wlm munge needs root"
    sudo=(sudo -n)
  fi
  say "installing slurm-wlm and munge with apt-get"
  local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
  local log=$dir/log/apt.log
  # a missing or old package list fails: update, then try again
  "${apt[@]}" install --no-install-recommends slurm-wlm munge > "$log" 2>&1 < /dev/null 9>&- \
    || { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends slurm-wlm munge; } \
      >> "$log" 2>&1 < /dev/null 9>&- \
    || die "apt-get could not install slurm-wlm and munge: $(grep -E '^E:' "$log" | tail -n 1)"
  hash -r
  for c in "${missing[@]}"; do
    command -v "$c" >/dev/null || die "slurm-wlm and munge are installed but have no $c"
  done
}

# ---------------------------------------------------------------- configuration

listening() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port PORT: PORT, or the next one after it that nobody listens on
free_port() {
  local p=$1
  while listening "$p"; do
    p=$((p + 10))
    ((p < 32000)) || die "no free port from $1 on"
  done
  echo "$p"
}

write_conf() {
  local user cpus wait mem ctl_port d_port preempt=''
  user=$(id -un)
  cpus=${SLURM_TEST_CPUS:-$(getconf _NPROCESSORS_ONLN)}
  [[ $cpus =~ ^[1-9][0-9]*$ ]] || die "SLURM_TEST_CPUS must be a positive number, not '$cpus'"
  # below 5 Slurm falls back to 120
  wait=${SLURM_TEST_REQUEUE_WAIT:-5}
  [[ $wait =~ ^([5-9]|[1-9][0-9]+)$ ]] \
    || die "SLURM_TEST_REQUEUE_WAIT must be a number, 5 or more, not '$wait'"
  mem=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
  ctl_port=$(free_port 6817)
  d_port=$(free_port 6818)
  [[ -z ${SLURM_TEST_USER_SIGNAL:-} ]] || preempt='SlurmctldParameters=preempt_send_user_signal'
  cat > "$SLURM_CONF" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctl_port
SlurmdPort=$d_port
SlurmUser=$user
SlurmdUser=$user

# our own munged; cred_expire is also how long a requeued job waits (120 s by default)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/run/munge.socket,cred_expire=$wait

StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SlurmctldDebug=info
SlurmdDebug=info

# no cgroups, no accounting; finished jobs are one line each in jobcomp.txt
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
PlugStackConfig=$dir/plugstack.conf

# schedule at once
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
PriorityType=priority/basic
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU

JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$preempt
KillWait=5
CompleteWait=0
MinJobAge=600
InactiveLimit=0
MessageTimeout=30
SlurmctldTimeout=120
SlurmdTimeout=300
ReturnToService=2

# believe the numbers below, not the hardware
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$mem State=UNKNOWN
PartitionName=DEFAULT Nodes=$host MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=test Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=${SLURM_TEST_GRACE:-20}
PartitionName=high PriorityTier=10 PreemptMode=OFF
CONF
  # slurmd reads these beside slurm.conf
  echo 'CgroupAutomount=no' > "$dir/cgroup.conf"
  : > "$dir/plugstack.conf"
}

# ---------------------------------------------------------------- main

start() {
  local _
  if running; then
    for _ in {1..20}; do
      if node_up; then
        say "already running in $dir"
        echo "export SLURM_CONF=$SLURM_CONF"
        return 0
      fi
      sleep 0.5
    done
  fi
  stop_all # what is left of a broken start
  install_missing

  trap '(($? == 0)) || stop_all' EXIT # leave nothing of a failed start
  rm -f "$dir"/run/*
  write_conf

  if [[ ! -s $dir/etc/munge.key ]]; then
    (umask 077 && dd if=/dev/urandom of="$dir/etc/munge.key" bs=1024 count=1 status=none)
  fi
  # --force: a warning, not an error, where a parent folder is writable by others
  launch munged munged --force --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.socket" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/etc/munged.seed"
  wait_for munged "munged does not answer" munge -n -S "$dir/run/munge.socket"

  launch slurmctld slurmctld -f "$SLURM_CONF"
  wait_for slurmctld "slurmctld does not answer" timeout 20 scontrol -o show partition test

  launch slurmd slurmd -f "$SLURM_CONF"
  wait_for slurmd "slurmd has no pid file" pid_of slurmd
  wait_for slurmd "the node is not idle" node_up

  say "$(sbatch --version) is up in $dir: $(sinfo -h -N -p test -o 'node %N, %c CPUs, %T')"
  echo "export SLURM_CONF=$SLURM_CONF"
}

case ${1:-} in
  -h | --help) usage ;;
  stop)
    [[ $# -eq 2 ]] || usage
    [[ -d $2 ]] || die "no such folder: $2"
    action=stop dir=$2
    ;;
  *)
    [[ $# -le 1 ]] || usage
    action=start dir=${1:-}
    # an empty argument means the default too
    [[ -n $dir ]] || dir=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")
    ;;
esac

umask 022
dir=$(realpath -m -- "$dir")
if [[ $action == start ]]; then
  [[ $dir =~ ^[A-Za-z0-9_./+-]+$ ]] || die "the folder's path has characters that slurm.conf cannot hold: $dir"
  # a Unix socket's path has 107 characters at most: FOLDER/spool/HOST_JOB.STEP
  host=$(uname -n)
  host=${host%%.*}
  longest=$((107 - 25 - ${#host}))
  ((${#dir} <= longest)) || die "the folder's path is too long for Unix sockets (${#dir} > $longest): $dir"
  mkdir -p "$dir"/{etc,run,log,state,spool} 2>/dev/null || die "cannot write in $dir"
  chmod 755 "$dir" "$dir/run" # every user of the host must reach the munge socket
fi
export SLURM_CONF=$dir/slurm.conf
wait_s=${SLURM_TEST_WAIT:-60}

# one start or stop at a time in a folder
exec 9> "$dir/.lock" || die "cannot write in $dir"
flock -w 600 9 || die "another start or stop in $dir has not ended"

if [[ $action == start ]]; then
  start
else
  [[ -f $SLURM_CONF ]] || die "no SLURM was started in $dir"
  stop_all
  say "stopped $dir"
fi
