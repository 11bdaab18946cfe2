# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The connection plugin pg_ops.replication.lxd."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd
short_description: LXD containers through C(lxc), also on a host under load
version_added: 0.1.0
author:
  - pg_ops.replication contributors (@pg_ops)
description:
  - Is P(community.general.lxd#connection), from which it inherits everything, but for what it does about one fault of LXD.
  - Before LXD 5.14 (Debian 12 has 5.0.2), C(lxc exec) loses what a program has printed when the program ends before LXD has begun to listen
    (U(https://github.com/canonical/lxd/issues/11422)). With both cores of a machine busy that was one C(echo) in twenty. Ansible then takes a
    directory that it has just made for missing, and the playbook ends in the middle.
  - Modules start Python and live long enough; shell commands of Ansible's own do not. They wait O(pause) seconds before they begin.
notes:
  - P(pg_ops.replication.lxd#inventory) sets it for its hosts.
requirements:
  - the program C(lxc) on the controller
options:
  pause:
    description: Seconds that a shell command waits in the container before it begins. V(0) is enough for LXD 5.14 and later.
    type: float
    default: 0.1
    vars:
      - name: ansible_lxd_pause
  remote_addr:
    description: Name of the container; of a name with dots, the part before the first.
    type: string
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: ansible_lxd_host
  executable:
    description: Shell that runs the commands.
    type: string
    default: /bin/sh
    vars:
      - name: ansible_executable
      - name: ansible_lxd_executable
  lxd_become_method:
    description: Program that changes to O(remote_user), where that is not V(root).
    type: str
    default: /bin/su
    vars:
      - name: lxd_become_method
  remote:
    description: LXD remote that has the container.
    type: string
    default: local
    vars:
      - name: ansible_lxd_remote
  remote_user:
    description: User that runs the commands in the container.
    type: string
    default: root
    vars:
      - name: ansible_user
    env:
      - name: ANSIBLE_REMOTE_USER
    ini:
      - section: defaults
        key: remote_user
    keyword:
      - name: remote_user
  project:
    description: LXD project of the container.
    type: string
    vars:
      - name: ansible_lxd_project
"""

EXAMPLES = r"""
# A container that the inventory plugin does not list:
#   all:
#     hosts:
#       archive-repo:
#         ansible_connection: pg_ops.replication.lxd
#         ansible_lxd_host: archive-repo
"""

from ansible.errors import AnsibleError

try:
    from ansible_collections.community.general.plugins.connection.lxd import Connection as CommunityConnection
except ImportError as error:
    MISSING = "This connection needs the collection community.general ({0}): ansible-galaxy collection install community.general".format(error)

    class CommunityConnection:
        """Stands in for what is missing, and says so."""

        def __init__(self, *args, **kwargs):
            raise AnsibleError(MISSING)


class Connection(CommunityConnection):
    """The connection of community.general, whose short commands do not outrun LXD."""

    transport = "pg_ops.replication.lxd"

    def exec_command(self, cmd, in_data=None, sudoable=True):
        """Run cmd in the container; return exit status, stdout and stderr."""
        pause = self.get_option("pause")
        if in_data is None and pause > 0:
            cmd = f"sleep {pause:g}; {cmd}"
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
