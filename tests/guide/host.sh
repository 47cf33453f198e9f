#!/usr/bin/env bash
# A host for the commands of one page, that nobody else sees and that is gone at its end.
#
# usage: unshare --mount --pid --fork --kill-child --mount-proc host.sh SCRATCH CHECKOUT BLOCKS
#
# SCRATCH is an empty directory, BLOCKS one with the blocks of the page, whose names are their
# lines. /etc, /var/lib and the checkout are copies that take everything, /run is empty, and /sys
# is that of the network namespace. PYTHON, and ELSEWHERE (the number of a descriptor of another
# host's network namespace) are in the environment.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
scratch=$1 checkout=$2 blocks=$3

copy_of() {
    mkdir -p "$scratch/$1/changes" "$scratch/$1/work" "$3"
    mount -t overlay overlay "$3" \
        -o "lowerdir=$2,upperdir=$scratch/$1/changes,workdir=$scratch/$1/work"
}

mount -t tmpfs tmpfs "$scratch"
copy_of etc /etc /etc
copy_of state /var/lib /var/lib
copy_of checkout "$checkout" "$scratch/here"
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys

echo 'nameserver 127.0.0.1' >/etc/resolv.conf
echo 'iface = "eth0"' >/etc/pktstun.toml
certificates=$here/../client/certificates
letsencrypt=/etc/letsencrypt/live/stun.example.org
mkdir -p "$letsencrypt"
cp "$certificates/server.pem" "$letsencrypt/fullchain.pem"
cp "$certificates/server.pem" "$letsencrypt/privkey.pem"
chmod 700 /etc/letsencrypt/live
mkdir -p /etc/pktstun
cp "$certificates/server.pem" /etc/pktstun/chain.pem
cp "$certificates/server.pem" /etc/pktstun/key.pem

export SCRATCH=$scratch PATH=$here/bin:$(dirname "$PYTHON"):$PATH
export SSL_CERT_FILE=$certificates/authority.pem
cd "$scratch/here"
cp "$blocks/"*.pcapng "$blocks/"*.bin .

run() {
    case $1 in
    *.sh) bash -euxo pipefail "$1" ;;
    *.toml)
        cp "$1" /etc/pktstun.toml
        pktstun check-config /etc/pktstun.toml
        ;;
    *.yaml) promtool check config "$1" ;;
    *.nft) nft --file "$1" ;;
    *.py)
        pktstun monitor stun.example.org --interval 0.2 --duration 3 >"$scratch/traffic" &
        until-it-speaks "$PYTHON" "$1"
        ;;
    esac
}

for block in "$blocks"/[0-9]*; do # by their lines
    if ! run "$block"; then
        echo "the block at line $(basename "$block") fails; the server's log:" >&2
        cat "$scratch/log" >&2 || true
        exit 1
    fi
done
stop-serving
! grep Traceback "$scratch/log"
