#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# A standby relay with Pacemaker: pprelay runs on one of two hosts, and on the other one if that host
# fails. Replace names and addresses, and run it once, as root, on one of them. Before:
#   - corosync and pacemaker run: pcs cluster setup relay relay1 relay2 --start --enable
#   - both hosts have the same ppdaemon, /etc/ppdaemon/pprelay.yaml and user IDs
#   - in that file: submit and nodes listen on the address below, such as tcp://10.0.0.10:5570, and
#     state_dir is the folder below; send_visit.py and the nodes use the same address
#   - systemd does not start the relay by itself: systemctl disable --now pprelay (on both hosts)
set -eu
cib=$(mktemp)
trap 'rm -f "$cib"' EXIT
pcs cluster cib "$cib"  # all changes are made in a copy, and take effect together

# Fencing comes first. A host that does not answer may still run its relay and write to the disk: it
# must be switched off before the other host takes over. A host is never fenced by itself.
for n in 1 2; do
    pcs -f "$cib" stonith create fence-relay$n fence_ipmilan ip=10.0.1.$n username=fence \
        password_script=/root/fence.sh lanplus=1 pcmk_host_list=relay$n op monitor interval=60s
    pcs -f "$cib" constraint location fence-relay$n avoids relay$n
done
pcs -f "$cib" property set stonith-enabled=true

# The ledger is on a block device that both hosts reach (SAN, or DRBD as a promotable resource), with a
# local filesystem that one host at a time has mounted. Not NFS: SQLite needs locks that are reliable.
pcs -f "$cib" resource create relay-disk ocf:heartbeat:Filesystem \
    device=/dev/disk/by-label/pprelay directory=/var/lib/ppdaemon/relay fstype=xfs \
    op monitor interval=10s op stop timeout=60s on-fail=fence

# The address that script queue and nodes use.
pcs -f "$cib" resource create relay-address ocf:heartbeat:IPaddr2 ip=10.0.0.10 cidr_netmask=24 \
    op monitor interval=5s

# The relay itself. The cluster replaces Restart= of the unit. A relay whose loop hangs is killed by
# the watchdog of the unit.
pcs -f "$cib" resource create relay-program systemd:pprelay \
    op monitor interval=5s op start timeout=40s op stop timeout=30s on-fail=fence

# Together on one host, started in this order and stopped in the reverse one. Two failures within a
# minute move them. They stay when the first host is back: each move costs the seconds in which the
# nodes connect again.
pcs -f "$cib" resource group add relay relay-disk relay-address relay-program
pcs -f "$cib" resource meta relay migration-threshold=2 failure-timeout=60s resource-stickiness=100

pcs cluster cib-push "$cib" --config
