#!/usr/bin/env bash
# Runs a command on the first of two simulated hosts that share this machine's files: network namespaces, each with its own address,
# host name and sshd. FIRN_TEST_HOSTS names both for the command. As root, with openssh-server and iproute2:
#
#   scripts/two_hosts.sh .venv/bin/python -m pytest tests/integration/test_several_hosts.py
set -euo pipefail

fail() { printf 'two_hosts: %s\n' "$*" >&2; exit 1; }

[ "$#" -gt 0 ] || fail "no command given."
[ "$(id -u)" = 0 ] || fail "only root can make network namespaces."
sshd=$(PATH=$PATH:/usr/sbin command -v sshd) || fail "sshd is missing. Debian, Ubuntu: apt-get install openssh-server"
command -v ip >/dev/null || fail "ip is missing. Debian, Ubuntu: apt-get install iproute2"

folder=$(mktemp -d)
hosts=(firn-a-$$ firn-b-$$)
addresses=(10.77.0.1 10.77.0.2)
clean() {
    cat "$folder"/sshd-* 2>/dev/null | xargs --no-run-if-empty kill || true
    for host in "${hosts[@]}"; do ip netns delete "$host" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap clean EXIT

on_host() {  # NUMBER COMMAND...: runs it on a host that knows both names, with an ssh that has the key and records no hosts
    local number=$1
    shift
    ip netns exec "${hosts[$number]}" unshare --uts --mount bash -c '
        hostname "$1"
        mount --bind "$2/hosts" /etc/hosts
        mount --bind "$2/ssh_config" /etc/ssh/ssh_config
        shift 2
        exec "$@"' _ "${hosts[$number]}" "$folder" "$@"
}

ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
printf 'IdentityFile %s\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' "$folder/key" > "$folder/ssh_config"
printf '%s\n' "127.0.0.1 localhost" "${addresses[0]} ${hosts[0]}" "${addresses[1]} ${hosts[1]}" > "$folder/hosts"
for host in "${hosts[@]}"; do ip netns add "$host"; done
ip link add firn0 netns "${hosts[0]}" type veth peer name firn0 netns "${hosts[1]}"
mkdir -p /run/sshd
for number in 0 1; do
    ip -n "${hosts[$number]}" address add "${addresses[$number]}/24" dev firn0
    ip -n "${hosts[$number]}" link set firn0 up
    ip -n "${hosts[$number]}" link set lo up
    on_host "$number" "$sshd" -f /dev/null -h "$folder/key" -E "$folder/log-$number" \
        -o "AuthorizedKeysFile=$folder/key.pub" -o StrictModes=no -o "PidFile=$folder/sshd-$number"
done
for host in "${hosts[@]}"; do
    for _ in {1..50}; do
        on_host 0 ssh -o StrictHostKeyChecking=no "$host" true 2>/dev/null && continue 2
        sleep 0.1
    done
    fail "ssh does not reach $host: $(cat "$folder"/log-*)"
done
FIRN_TEST_HOSTS="${hosts[0]},${hosts[1]}" on_host 0 "$@"
