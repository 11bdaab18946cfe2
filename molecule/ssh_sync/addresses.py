# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory script: what only this scenario's machines know, over inventories/example: their addresses, and a repository of packages.

The repository stands for a vendor's: it is the one that the machines have, once more, under a name of its own.
"""

import json
import os
import subprocess

PREFIX = "ssh-sync-"


def ask(*arguments: str) -> str:
    """Return what lxc prints; empty where there is no LXD or no such machine yet."""
    try:
        return subprocess.run(["lxc", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True, text=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def repository(container: str) -> dict[str, str]:
    """Return the machine's own source of packages in the words of pg_node_repository; empty when it has none."""
    for line in ask("file", "pull", f"local:{container}/etc/apt/sources.list", "-").splitlines():
        words = line.split()
        if words[:1] == ["deb"] and len(words) >= 4:
            keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
            return {"name": "vendor", "uris": words[1], "suites": words[2], "components": words[3], "signed_by": keys}
    return {}


def addresses() -> dict[str, str]:
    """Return the pinned address of each machine by its name in inventories/example; empty before they are made."""
    listed = ask("list", "--format", "json")
    found = {}
    for container in json.loads(listed or "[]"):
        address = container["devices"].get("eth0", {}).get("ipv4.address")
        if container["name"].startswith(PREFIX) and address:
            found[container["name"][len(PREFIX) :]] = address
    return found


# 192.0.2.0/24 of inventories/example answers nowhere. The key is the scenario's, and so are the machines: nobody has seen them before.
login = {
    "ansible_ssh_private_key_file": os.path.join(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", ""), "admin_ed25519"),
    "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
}
hosts = {
    name: {**login, "ansible_host": address, "pg_address": address, "pg_node_repository": repository(PREFIX + name)}
    for name, address in addresses().items()
}
print(json.dumps({"_meta": {"hostvars": hosts}, "pg_nodes": {"hosts": list(hosts)}}))
