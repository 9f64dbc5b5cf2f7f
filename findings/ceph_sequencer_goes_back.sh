#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The sequencer in a notice of Ceph's object gateway goes back every 256 s.
#
# Package:  radosgw, ceph-mon, ceph-osd 16.2.15+ds-0+deb12u2 of Debian 12, unpacked and not installed;
#           boto3 1.44.8, with Python 3.13. Date: 2026-11-30.
# Where:    a consumer of bucket notifications that keeps the newer one of two notices of the same raw, which
#           come in any order: one upload that was cut, or one that was replaced.
# Expected: Ceph's documents call it a monotonically increasing identifier for the object, hexadecimal; with
#           AWS the greater string is the later change.
# Seen:     it is the time with the bytes of the seconds reversed, so the first two digits change each second.
#           Of two uploads one second apart the later one has the smaller sequencer if 256 s are full between
#           them; of others it depends on their distance.
#
# Takes up to six minutes: it waits for such a second. Needs apt-get with the lists of Debian 12.
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
version=16.2.15+ds-0+deb12u2
mkdir -p "$work/archives/partial" "$work/root" "$work/mon" "$work/osd"
apt-get -y -qq -o "Dir::Cache::archives=$work/archives" -o Debug::NoLocking=1 --no-install-recommends \
    --download-only --reinstall install "ceph-mon=$version" "ceph-osd=$version" "radosgw=$version" >"$work/apt.log"
for archive in "$work"/archives/*.deb; do dpkg-deb --extract "$archive" "$work/root"; done
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check boto3==1.44.8

read -r monitor gateway listener < <("$work/venv/bin/python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in sockets))')
libraries=$(dirname "$(find "$work/root/usr/lib" -name rados-classes)")
paths=$(find "$work/root/usr/lib" "$work/root/lib" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cluster=$(cat /proc/sys/kernel/random/uuid) device=$(cat /proc/sys/kernel/random/uuid)
cat >"$work/ceph.conf" <<CONF
[global]
fsid = $cluster
mon_host = v2:127.0.0.1:$monitor
mon_initial_members = a
keyring = $work/keyring
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
osd_objectstore = memstore
run_dir = $work
log_file = $work/\$name.log
admin_socket = $work/\$name.asok
crash_dir = $work
plugin_dir = $libraries/ceph
erasure_code_dir = $libraries/ceph/erasure-code
osd_class_dir = $libraries/rados-classes
[mon]
mon_data = $work/mon
[osd]
osd_data = $work/osd
[client]
rgw_frontends = beast endpoint=127.0.0.1:$gateway
rgw_data = $work
CONF
ceph() { LD_LIBRARY_PATH=$paths PATH="$work/root/usr/bin:$PATH" "$@" -c "$work/ceph.conf" >>"$work/log" 2>&1; }
daemon() {
    LD_LIBRARY_PATH=$paths "$work/root/usr/bin/$1" -f "${@:2}" -c "$work/ceph.conf" >>"$work/log" 2>&1 &
    pids=($! "${pids[@]}")
}
ceph ceph-authtool --create-keyring "$work/keyring" --gen-key -n mon. --cap mon 'allow *'
ceph ceph-authtool "$work/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
ceph ceph-authtool "$work/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
ceph monmaptool --create --fsid "$cluster" --addv a "[v2:127.0.0.1:$monitor]" "$work/monmap"
ceph ceph-mon --mkfs -i a --monmap "$work/monmap" --keyring "$work/keyring"
daemon ceph-mon -i a
LD_LIBRARY_PATH=$paths "$work/venv/bin/python" - "$work/ceph.conf" "$device" <<'PY'
import ctypes
import json
import sys

rados, cluster = ctypes.CDLL("librados.so.2"), ctypes.c_void_p()
assert rados.rados_create(ctypes.byref(cluster), b"admin") == 0
assert rados.rados_conf_read_file(cluster, sys.argv[1].encode()) == 0
assert rados.rados_connect(cluster) == 0
request = json.dumps({"prefix": "osd new", "uuid": sys.argv[2], "id": 0}).encode()
answers = [ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_size_t()]
command = (ctypes.c_char_p * 1)(request)
assert rados.rados_mon_command(cluster, command, 1, None, 0, *map(ctypes.byref, answers)) == 0
PY
ceph ceph-osd --mkfs -i 0 --osd-uuid "$device"
daemon ceph-osd -i 0
ceph radosgw-admin user create --uid=user --display-name=user --access-key=user --secret-key=secret
daemon radosgw -n client.admin

"$work/venv/bin/python" - "$gateway" "$listener" <<'PY'
import http.server
import json
import sys
import threading
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

gateway, listener = sys.argv[1:]
records = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        records.extend(json.loads(body)["Records"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(listener)), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {
    "endpoint_url": f"http://127.0.0.1:{gateway}",
    "aws_access_key_id": "user",
    "aws_secret_access_key": "secret",
    "region_name": "default",
}
s3, sns = boto3.client("s3", **options), boto3.client("sns", **options)
for _ in range(60):
    try:
        s3.create_bucket(Bucket="raws")
        break
    except (BotoCoreError, ClientError):
        time.sleep(1)
topic = sns.create_topic(Name="topic", Attributes={"push-endpoint": f"http://127.0.0.1:{listener}/"})
s3.put_bucket_notification_configuration(
    Bucket="raws",
    NotificationConfiguration={
        "TopicConfigurations": [
            {"Id": "topic", "TopicArn": topic["TopicArn"], "Events": ["s3:ObjectCreated:*"]}
        ]
    },
)
time.sleep((254 - time.time()) % 256)
for number in range(1, 6):
    s3.put_object(Bucket="raws", Key="raw.fits", Body=b"x" * number)
    time.sleep(1)
sequencers = [record["s3"]["object"]["sequencer"] for record in sorted(records, key=lambda r: r["eventTime"])]
assert [r["s3"]["object"]["size"] for r in sorted(records, key=lambda r: r["eventTime"])] == [1, 2, 3, 4, 5]
print("sequencers in the order of the uploads:", *sequencers)
if [int(each, 16) for each in sequencers] == sorted(int(each, 16) for each in sequencers):
    sys.exit("CHANGED: a later upload has the greater sequencer")
print("still so: a later upload has the smaller one")
PY
