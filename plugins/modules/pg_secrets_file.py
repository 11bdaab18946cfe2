#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# The action plugin of the same name does the work on the controller.

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_secrets_file
short_description: Make fresh random secrets into a new vault file
version_added: 0.1.0
author: pg_ops.replication contributors (@pg-ops)
description:
  - Draws one random secret for each name and writes them as variables into a new file that is encrypted by Ansible Vault.
  - Runs on the controller. The secrets are drawn and encrypted in memory; they are neither written in plain text, nor returned,
    nor part of any argument, so no verbosity shows them.
  - The vault password is the one that the playbook was started with, by C(--ask-vault-pass), C(--vault-id) or
    C(--vault-password-file).
  - A file that exists already is never overwritten.
options:
  path:
    description:
      - The file to make, mode V(0600). A relative path starts at the directory that the playbook was started from.
      - Missing directories above it are made.
    type: str
    required: true
  names:
    description: The variables to draw a secret for.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: Checks path and vault password and writes nothing.
  diff_mode:
    support: none
    description: A difference would show secrets.
notes:
  - With several vault passwords, O(path) is encrypted by the one that C(ANSIBLE_VAULT_ENCRYPT_IDENTITY) names.
"""

EXAMPLES = r"""
- name: Make the secrets of a new installation
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Draw the passwords of the replication and the rewind role
      pg_ops.replication.pg_secrets_file:
        path: inventories/production/group_vars/pg_nodes/vault.yml
        names:
          - vault_pg_replication_password
          - vault_pg_rewind_password
"""

RETURN = r"""
path:
  description: The absolute path of the new file.
  type: str
  returned: success
  sample: /home/me/inventories/production/group_vars/pg_nodes/vault.yml
names:
  description: The variables in the new file.
  type: list
  elements: str
  returned: success
  sample: [vault_pg_replication_password, vault_pg_rewind_password]
reason:
  description: A stable code for the refusal.
  type: str
  returned: failure
  sample: file_exists
"""
