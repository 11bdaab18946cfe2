#!/usr/bin/env python3
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory script: the addresses that the scenario's machines have got, over those of inventories/example."""

import json
import os
import subprocess

PREFIX = "ssh-sync-"


def addresses() -> dict[str, str]:
    """Return the pinned address of each machine by its name in inventories/example; empty before they are made."""
    try:
        listed = subprocess.run(["lxc", "list", "--format", "json"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for container in json.loads(listed.stdout):
        address = container["devices"].get("eth0", {}).get("ipv4.address")
        if container["name"].startswith(PREFIX) and address:
            found[container["name"][len(PREFIX) :]] = address
    return found


# 192.0.2.0/24 of inventories/example answers nowhere. The key is the scenario's, and so are the machines: nobody has seen them before.
login = {
    "ansible_ssh_private_key_file": os.path.join(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", ""), "admin_ed25519"),
    "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
}
hosts = {name: {**login, "ansible_host": address, "pg_address": address} for name, address in addresses().items()}
print(json.dumps({"_meta": {"hostvars": hosts}, "pg_nodes": {"hosts": list(hosts)}}))
