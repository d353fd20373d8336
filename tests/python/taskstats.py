"""taskstats.py PID...: what the kernel's task statistics (linux/taskstats.h) say of these processes, over all their threads.

Prints one JSON object: sums over the processes, ns and counts.
"""

import json
import socket
import struct
import sys

GENERIC = 16
ERROR = 2
REQUEST = 1
CONTROLLER, GET_FAMILY, FAMILY_ID, FAMILY_NAME = 16, 3, 1, 2
GET, TGID, AGGREGATE, STATS = 1, 2, 5, 3
# Where they lie in `struct taskstats`: the same in all versions of it, which only grows.
FIELDS = {"ran_ns": 72, "voluntary": 272, "involuntary": 280}


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack("=HH", data[:4])
        found[kind] = data[4:length]
        data = data[length + -length % 4 :]
    return found


def ask(netlink, family, command, payload):
    message = struct.pack("=BBH", command, 1, 0) + payload
    netlink.send(struct.pack("=IHHII", 16 + len(message), family, REQUEST, 0, 0) + message)
    answer = netlink.recv(1 << 16)
    if struct.unpack("=H", answer[4:6])[0] == ERROR:
        sys.exit(f"the kernel refuses: error {-struct.unpack('=i', answer[16:20])[0]}")
    return attributes(answer[20:])


def main():
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC)
    netlink.bind((0, 0))
    found = ask(netlink, CONTROLLER, GET_FAMILY, attribute(FAMILY_NAME, b"TASKSTATS\0"))
    family = struct.unpack("=H", found[FAMILY_ID])[0]
    sums = dict.fromkeys(FIELDS, 0)
    for pid in sys.argv[1:]:
        found = ask(netlink, family, GET, attribute(TGID, struct.pack("=I", int(pid))))
        stats = attributes(found[AGGREGATE])[STATS]
        for name, at in FIELDS.items():
            sums[name] += struct.unpack("=Q", stats[at : at + 8])[0]
    print(json.dumps(sums))


main()
